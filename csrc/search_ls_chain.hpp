#ifndef IVDTOOL_SEARCH_LS_CHAIN_HPP_
#define IVDTOOL_SEARCH_LS_CHAIN_HPP_

#include <cstddef>
#include <cstdint>

#include "search.hpp"

namespace ivdtool {

// Least squares on a chain. With template points u, chosen candidates p and scores s,
//
//   cost = min over k, t of  sum_present w_i |k p_i + t - u_i|^2
//                            + chain_weight * sum_steps w_ij |k (p_j - p_i) - (u_j - u_i)|^2
//          + score_weight * sum_present (1 - s_i) + sum_missing missing_cost_i
//
// where a step leads from one present disc to the next. Discs must descend: the step of a pair is
// longer than 0 rows and at least min_gap times its rows in the template.
struct LsChainProblem {
  CandidateLists candidates;
  const double* template_mm;    // (channels, 2) row, col
  const double* disc_weights;   // w_i (channels), > 0
  const double* pair_weights;   // w_ij (channels, channels), >= 0, read where i < j
  const double* missing_costs;  // (channels), mm^2, >= 0, may be infinite
  double score_weight;          // mm^2, >= 0
  double chain_weight;          // >= 0
  SimilarityLimits limits;
  double min_gap;           // share of the template's step, >= 0
  std::size_t min_present;  // a labelling of fewer discs is not feasible, >= 1
};

// The n best labellings, exactly, by branch and bound. When node_budget runs out the best found so
// far is returned with optimal = false and a proved lower bound. A second budget of the same size
// is shared by the margins of all discs; 0 nodes are spent on them unless with_margins.
SearchResult search_ls_chain(const LsChainProblem& problem, std::size_t n_best,
                             std::int64_t node_budget, bool with_margins);

}  // namespace ivdtool

#endif  // IVDTOOL_SEARCH_LS_CHAIN_HPP_
