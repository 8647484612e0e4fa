#ifndef IVDTOOL_SEARCH_EXHAUSTIVE_HPP_
#define IVDTOOL_SEARCH_EXHAUSTIVE_HPP_

#include <cstdint>

#include "search_paper.hpp"

namespace ivdtool {

// The papers' own algorithm, one combination after the other: the first `most` of them, the last
// channel turning fastest. What search_paper is compared with, in answers and in time.
SearchResult search_exhaustive(const PaperProblem& problem, std::int64_t most);

}  // namespace ivdtool

#endif  // IVDTOOL_SEARCH_EXHAUSTIVE_HPP_
