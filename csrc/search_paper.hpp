#ifndef IVDTOOL_SEARCH_PAPER_HPP_
#define IVDTOOL_SEARCH_PAPER_HPP_

#include <cstddef>

#include "search.hpp"

namespace ivdtool {

// Paper 1, equation 3: both skeletons are shifted to disc v1 and divided by the distance v1 - v5,
// then compared disc by disc.
struct PaperProblem {
  CandidateLists candidates;
  const double* mean_mm;      // (channels, 2)
  std::size_t first_anchor;   // channel of v1
  std::size_t second_anchor;  // channel of v5
  bool squared;               // false: sum of distances (the text); true: its 2-norm (the code)
};

// The n best labellings, exactly, in polynomial time, and all margins if they are wanted. A channel
// without candidates is left out of the sum; without candidates for v1 or v5 there is no labelling.
SearchResult search_paper(const PaperProblem& problem, std::size_t n_best, bool with_margins);

}  // namespace ivdtool

#endif  // IVDTOOL_SEARCH_PAPER_HPP_
