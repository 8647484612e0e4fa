#ifndef IVDTOOL_SEARCH_LS_CHAIN_HPP_
#define IVDTOOL_SEARCH_LS_CHAIN_HPP_

#include <cstddef>
#include <cstdint>

#include "search.hpp"

namespace ivdtool {

// What is known of a level beforehand.
enum class Rule : std::uint8_t {
  kFree = 0,     // present or missing
  kAbsent = 1,   // no disc of this level is to be named
  kPresent = 2,  // its disc is there
  kOwn = 3,      // its disc is there, at a candidate of its own channel
};
constexpr std::size_t kRules = 4;

// Least squares on a chain. With the skeleton's mean points u, chosen candidates p and scores s,
//
//   cost = min over k, t of  sum_present w_i |k p_i + t - u_i|^2
//                            + chain_weight * sum_steps w_ij |k (p_j - p_i) - (u_j - u_i)|^2
//          + score_weight_mm2 * sum_present (1 - s_i) + sum_missing missing_cost_i
//          + sum_present borrow_mm2 [o_i != 0] + sum_steps offset_change_mm2 [o_i != o_j]
//          + offset_start_mm2 [o of the first present disc != 0]
//
// where a step leads from one present disc to the next. Discs must descend: the step of a pair is
// longer than 0 rows and at least min_gap times its mean rows. The offset o_i in -1, 0,
// 1 is how many channels below its own one a disc's candidate was found; with an infinite
// borrow_mm2 it is always 0.
struct LsChainProblem {
  CandidateLists candidates;
  const double* mean_mm;        // (channels, 2) row, col
  const double* disc_weights;   // w_i (channels), > 0
  const double* pair_weights;   // w_ij (channels, channels), >= 0, read where i < j
  const double* missing_costs;  // (channels), mm^2, >= 0, may be infinite
  double score_weight_mm2;      // mm^2, >= 0
  double chain_weight;          // >= 0
  SimilarityLimits limits;
  double min_gap;             // share of the mean step, >= 0
  std::size_t min_present;    // a labelling of fewer discs is not feasible, >= 1
  std::size_t max_present;    // nor one of more
  const std::int64_t* rules;  // (channels) of Rule
  double borrow_mm2;          // mm^2, >= 0, may be infinite
  double offset_change_mm2;
  double offset_start_mm2;
};

// What makes the search short. Left out, the answer is the same, and takes longer.
enum class Shortcut : std::uint8_t {
  kNone,
  kChain,  // a bound: the later steps cost at least what they do fitted one by one
  kShape,  // a bound: the discs so far cost at least what they do fitted without the later ones
  kSeed,   // a good labelling to begin with
  kSort,   // of the next discs, the most promising one first
};

struct LsChainEffort {
  std::size_t n_best;
  std::int64_t node_budget;
  bool with_margins;
  std::size_t tree_size;  // how many nodes of the search tree to report
  Shortcut without;       // to test it, and to measure what it is worth
};

// The n best labellings, exactly, by branch and bound. When the budget runs out the best found so
// far is returned with optimal = false and a proved lower bound. A second budget of the same size
// is shared by the margins of all discs; 0 nodes are spent on them unless with_margins.
SearchResult search_ls_chain(const LsChainProblem& problem, const LsChainEffort& effort);

}  // namespace ivdtool

#endif  // IVDTOOL_SEARCH_LS_CHAIN_HPP_
