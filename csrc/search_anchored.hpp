#ifndef IVDTOOL_SEARCH_ANCHORED_HPP_
#define IVDTOOL_SEARCH_ANCHORED_HPP_

#include <cstddef>

#include "search.hpp"

namespace ivdtool {

// Two discs, the anchors, fix how the skeleton is laid over the candidates; every other disc then
// costs its distance from it, or what it costs to be missing. Discs must descend as in ls_chain.
struct AnchoredProblem {
  CandidateLists candidates;
  const double* mean_mm;        // (channels, 2) row, col
  const double* missing_costs;  // (channels), >= 0, may be infinite
  double min_gap;               // share of the mean step, >= 0
};

// Paper 1, equation 3, with the order of the discs and missing ones: both skeletons are shifted to
// disc v1 and divided by the distance v1 - v5, both of which must be present.
struct PaperOrderProblem {
  AnchoredProblem common;
  std::size_t first_anchor;   // channel of v1
  std::size_t second_anchor;  // channel of v5
  bool squared;  // false: sum of distances (the text); true: the 2-norm of the sum of squares
};

// The anchors are the first and the last present disc, which the similarity p -> k p + t maps onto
// the mean skeleton exactly. The others cost their squared distance from it, mm^2; any disc costs
// score_weight_mm2 (1 - score). Anchors that need a k beyond the limits are not feasible.
struct FirstLastProblem {
  AnchoredProblem common;
  double score_weight_mm2;  // mm^2, >= 0
  SimilarityLimits limits;
};

// The n best labellings, exactly, in polynomial time, and all margins if they are wanted.
SearchResult search_paper_order(const PaperOrderProblem& problem, std::size_t n_best,
                                bool with_margins);
SearchResult search_first_last(const FirstLastProblem& problem, std::size_t n_best,
                               bool with_margins);

}  // namespace ivdtool

#endif  // IVDTOOL_SEARCH_ANCHORED_HPP_
