#ifndef IVDTOOL_SEARCH_HPP_
#define IVDTOOL_SEARCH_HPP_

#include <array>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <utility>
#include <vector>

#include "skeleton.hpp"

namespace ivdtool {

constexpr std::int64_t kMissing = -1;
constexpr double kInfinity = std::numeric_limits<double>::infinity();

// Candidates of every channel, channel c holding indices offsets[c] .. offsets[c + 1] - 1.
struct CandidateLists {
  std::size_t channels;
  const std::int64_t* offsets;  // (channels + 1)
  const double* positions_mm;   // (offsets[channels], 2) row, col
  const double* scores;         // (offsets[channels]); not used by the paper's cost

  Vector position(std::size_t candidate) const {
    return {positions_mm[2 * candidate], positions_mm[2 * candidate + 1]};
  }
};

// What a labelling costs; the total is the sum.
struct CostTerms {
  double shape = 0.0;    // distance from the mean skeleton, disc by disc
  double chain = 0.0;    // distance from the mean skeleton, step by step
  double score = 0.0;    // doubt of the network
  double missing = 0.0;  // absent discs
  double offset = 0.0;   // candidates of neighbouring channels

  double total() const { return shape + chain + score + missing + offset; }
};

// For each channel the chosen candidate or kMissing.
struct Labelling {
  std::vector<std::int64_t> choice;
  CostTerms terms;
  double cost = 0.0;
  Vector multiplier{1.0, 0.0};  // k of the fit p -> k p + t
};

// The n best distinct labellings so far, by cost, then by choice (kMissing first).
class Ranking {
 public:
  explicit Ranking(std::size_t size) : size_(size) {}

  // A labelling that costs this much or more does not enter.
  double limit() const { return best_.size() < size_ ? kInfinity : best_.back().cost; }
  void add(Labelling labelling);
  const std::vector<Labelling>& best() const { return best_; }

 private:
  std::size_t size_;
  std::vector<Labelling> best_;
};

// How much dearer the best labelling is that treats this disc differently. Infinite if none does.
struct Margin {
  double value = kInfinity;
  bool proved = true;  // otherwise value is a lower bound
};

// What became of a node of the search tree.
enum class Fate : std::uint8_t {
  kExpanded = 0,
  kOrder = 1,      // cut: the disc is not far enough below the last one
  kChain = 2,      // cut: even with the later steps fitted one by one it costs too much
  kShape = 3,      // cut: so it does once this disc is fitted together with the earlier ones
  kIncumbent = 4,  // cut: a better labelling was found before its turn came
  kBudget = 5,     // left unexplored
};
constexpr std::size_t kFates = 6;

struct TreeNode {
  std::int64_t parent;     // index into the tree, -1 for the root
  std::int64_t channel;    // of the disc, -1 at the root
  std::int64_t candidate;  // -1 at the root
  Fate fate;
  double bound;  // no labelling below this node costs less; infinite where there is none
};

// What the search did.
struct Statistics {
  std::array<std::int64_t, kFates> fates{};  // nodes by what became of them
  std::int64_t depth = 0;                    // most discs present in an expanded node
  std::vector<std::pair<std::int64_t, double>> improvements;  // nodes taken, best cost so far
  std::vector<TreeNode> tree;                                 // the first nodes, if asked for
};

struct SearchResult {
  std::vector<Labelling> best;  // best first; empty if no labelling is feasible
  std::vector<Margin> margins;  // one per channel; empty if not asked for or nothing was found
  std::int64_t nodes = 0;
  double lower_bound = kInfinity;  // no labelling costs less
  bool optimal = true;             // best[0] is proved to be the best
  Statistics statistics;
};

}  // namespace ivdtool

#endif  // IVDTOOL_SEARCH_HPP_
