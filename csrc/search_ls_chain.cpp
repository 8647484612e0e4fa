#include "search_ls_chain.hpp"

#include <algorithm>
#include <cmath>
#include <utility>
#include <vector>

namespace ivdtool {
namespace {

// A disc choice the search is told not to make, for the margins.
struct Forbidden {
  std::size_t channel;
  std::int64_t choice;  // a candidate or kMissing
};

// A candidate of a level. Levels are the channels that have candidates to choose from; the others
// are missing in every labelling and cost a constant.
struct Choice {
  std::size_t level;
  std::size_t channel;  // of the disc; the candidate may be a neighbouring channel's
  std::int64_t candidate;
  int offset;          // channel of the candidate minus that of the disc
  Vector p;            // about the mean candidate, for precision
  Vector u;            // about the mean of all of them
  double weight;       // w_i
  double unary = 0.0;  // score term and the price of borrowing
};

// Least cost of everything below a choice, given that this choice is made.
struct Completion {
  double cost = kInfinity;
  std::size_t successor = 0;  // the next present choice; 0 is none
};

// Rounding in the sums of squares, as a share of them. Improvements below it are not followed:
// that would visit all of the equally good labellings that duplicate candidates make.
constexpr double kPrecision = 1e-14;

// Branch and bound over the present discs, top to bottom. A node is a choice of the first present
// discs; a child adds the next present one, so missing discs add no nodes.
//
// The bound of a node is the sum of
//   the cost of its discs and steps, each best fitted      (a term added later cannot lower it),
//   the least completion, in which every later step is fitted on its own and the shape term of
//   later discs is left out                                (a minimum of sums >= sum of minima).
// Where the number of discs is limited, completions are kept for every number of later discs, since
// one with a disc too many would be too low a bound by the cost of a missing disc.
class LsChainSearch {
 public:
  LsChainSearch(const LsChainProblem& problem, const LsChainEffort& effort,
                const Forbidden* forbidden)
      : problem_(problem), effort_(effort), ranking_(effort.n_best) {
    collect_choices(forbidden);
    const std::size_t few = 2;  // which hardly any completion falls short of
    counted_ = problem.min_present > few || problem.max_present < levels();
    counts_ = counted_ ? std::min(problem.max_present, levels()) + 1 : 1;
    complete();
    for (const Choice& choice : choices_) {
      tolerance_ += kPrecision * choice.weight * squared_norm(choice.u);
    }
  }

  void seed(const std::vector<std::int64_t>& choice) {
    std::vector<std::size_t> path;
    for (std::size_t i = 1; i < choices_.size(); ++i) {
      if (choice[choices_[i].channel] == choices_[i].candidate) path.push_back(i);
    }
    offer(path);
  }

  SearchResult run() {
    if (effort_.without != Shortcut::kSeed) seed_by_alternation();
    if (effort_.without == Shortcut::kChain) {
      for (Completion& completion : completions_) completion.cost = 0.0;
    }
    Node root;
    root.fixed = constant_;
    root.bound = root.fixed + least_completion(0, 0);
    root.record = record(-1, 0, Fate::kExpanded, root.bound);
    expand(root, 0);
    SearchResult result;
    result.statistics = std::move(statistics_);
    result.best = ranking_.best();
    result.nodes = nodes_;
    const double best = result.best.empty() ? kInfinity : result.best[0].cost;
    result.lower_bound = std::min(best, open_bound_);
    result.optimal = open_bound_ >= best;
    return result;
  }

 private:
  struct Node {
    std::size_t choice = 0;  // the last present disc; 0 at the root
    double fixed = 0.0;      // score and missing terms so far
    double residual = 0.0;   // shape and chain terms so far
    double bound = 0.0;
    std::int64_t record = -1;  // index into the reported tree
    FitSums sums;
  };

  void collect_choices(const Forbidden* forbidden) {
    const CandidateLists& lists = problem_.candidates;
    const auto total = static_cast<std::size_t>(lists.offsets[lists.channels]);
    Vector candidate_mean;
    Vector centre;
    for (std::size_t i = 0; i < total; ++i) {
      candidate_mean = candidate_mean + (1.0 / static_cast<double>(total)) * lists.position(i);
    }
    for (std::size_t i = 0; i < lists.channels; ++i) {
      centre = centre + (1.0 / static_cast<double>(lists.channels)) * mean_point(i);
    }
    choices_.push_back({});  // index 0 stands for none
    for (std::size_t channel = 0; channel < lists.channels; ++channel) {
      const std::size_t first = choices_.size();
      for (const int offset : {0, -1, 1}) {
        if (rule(channel) == Rule::kAbsent) break;
        if (offset != 0 && (std::isinf(problem_.borrow_mm2) || rule(channel) == Rule::kOwn)) break;
        if ((offset < 0 && channel == 0) || (offset > 0 && channel + 1 == lists.channels)) continue;
        const std::size_t source = offset < 0 ? channel - 1 : channel + (offset > 0 ? 1 : 0);
        for (std::int64_t i = lists.offsets[source]; i < lists.offsets[source + 1]; ++i) {
          if (forbidden != nullptr && forbidden->channel == channel && forbidden->choice == i) {
            continue;
          }
          const auto index = static_cast<std::size_t>(i);
          Choice choice{};
          choice.level = level_begin_.size();
          choice.channel = channel;
          choice.candidate = i;
          choice.offset = offset;
          choice.p = lists.position(index) - candidate_mean;
          choice.u = mean_point(channel) - centre;
          choice.weight = problem_.disc_weights[channel];
          choice.unary = problem_.score_weight_mm2 * (1.0 - std::min(1.0, lists.scores[index]));
          if (offset != 0) choice.unary += problem_.borrow_mm2;
          choices_.push_back(choice);
        }
      }
      const bool must_be_present =
          rule(channel) == Rule::kPresent || rule(channel) == Rule::kOwn ||
          (forbidden != nullptr && forbidden->channel == channel && forbidden->choice == kMissing);
      const double missing = must_be_present ? kInfinity : problem_.missing_costs[channel];
      if (choices_.size() == first) {
        constant_ += missing;
      } else {
        level_begin_.push_back(first);
        missing_.push_back(missing);
      }
    }
    level_begin_.push_back(choices_.size());
    missing_after_.assign(level_begin_.size() + 1, 0.0);
    for (std::size_t level = missing_.size(); level-- > 0;) {
      missing_after_[level] = missing_[level] + missing_after_[level + 1];
    }
  }

  Vector mean_point(std::size_t channel) const {
    return {problem_.mean_mm[2 * channel], problem_.mean_mm[2 * channel + 1]};
  }
  Rule rule(std::size_t channel) const { return static_cast<Rule>(problem_.rules[channel]); }
  bool improves(double bound) const { return bound < ranking_.limit() - tolerance_; }
  std::size_t levels() const { return missing_.size(); }
  std::size_t next_level(std::size_t choice) const {
    return choice == 0 ? 0 : choices_[choice].level + 1;
  }

  bool descends(const Choice& upper, const Choice& lower) const {
    const double rows = lower.p.row - upper.p.row;
    return rows > 0.0 && rows >= problem_.min_gap * (lower.u.row - upper.u.row);
  }

  double step_weight(const Choice& upper, const Choice& lower) const {
    return problem_.chain_weight *
           problem_.pair_weights[upper.channel * problem_.candidates.channels + lower.channel];
  }

  // The price of the offsets of two neighbours; upper is 0 where lower is the first present disc.
  double offset_cost(std::size_t upper, const Choice& lower) const {
    if (upper == 0) return lower.offset == 0 ? 0.0 : problem_.offset_start_mm2;
    return choices_[upper].offset == lower.offset ? 0.0 : problem_.offset_change_mm2;
  }

  void add_step(FitSums& sums, const Choice& upper, const Choice& lower) const {
    sums.add_difference(step_weight(upper, lower), lower.p - upper.p, lower.u - upper.u);
  }

  Completion& completion(std::size_t choice, std::size_t later) {
    return completions_[choice * counts_ + later];
  }

  // Over the numbers of later discs that are allowed after `present` ones.
  double least_completion(std::size_t choice, std::size_t present) {
    if (!counted_) return completion(choice, 0).cost;
    double least = kInfinity;
    const std::size_t fewest = problem_.min_present - std::min(problem_.min_present, present);
    for (std::size_t later = fewest; later + present < counts_; ++later) {
      least = std::min(least, completion(choice, later).cost);
    }
    return least;
  }

  // The completions of every choice, from the bottom up; step_cost(upper, lower) and
  // disc_cost(lower) are the parts that depend on the fit.
  template <typename StepCost, typename DiscCost>
  void complete(const StepCost& step_cost, const DiscCost& disc_cost) {
    completions_.assign(choices_.size() * counts_, {});
    for (std::size_t i = choices_.size(); i-- > 0;) {
      const std::size_t first_level = next_level(i);
      completion(i, 0).cost = missing_after_[first_level];
      double skipped = 0.0;
      for (std::size_t level = first_level; level < levels(); ++level) {
        // All that may be added to a later completion must cost less than the worst one so far.
        double worst = completion(i, 0).cost;
        for (std::size_t later = 1; later < counts_; ++later) {
          worst = std::max(worst, completion(i, later).cost);
        }
        if (!(skipped < worst)) break;
        for (std::size_t j = level_begin_[level]; j < level_begin_[level + 1]; ++j) {
          const Choice& lower = choices_[j];
          if (i != 0 && !descends(choices_[i], lower)) continue;
          double cost = skipped + lower.unary + offset_cost(i, lower) + disc_cost(lower);
          if (!counted_ && cost + completion(j, 0).cost >= completion(i, 0).cost) continue;
          if (i != 0) cost += step_cost(choices_[i], lower);
          const std::size_t more = counted_ ? 1 : 0;
          for (std::size_t later = 0; later + more < counts_; ++later) {
            const double total = cost + completion(j, later).cost;
            if (total < completion(i, later + more).cost) {
              completion(i, later + more) = {total, j};
            }
          }
        }
        skipped += missing_[level];
      }
    }
  }

  // With every step fitted on its own: a lower bound.
  void complete() {
    complete(
        [this](const Choice& upper, const Choice& lower) {
          FitSums sums;
          add_step(sums, upper, lower);
          return sums.residual(problem_.limits);
        },
        [](const Choice&) { return 0.0; });
  }

  std::vector<std::size_t> least_path() {
    std::size_t later = 0;
    if (counted_) {
      for (std::size_t n = problem_.min_present; n < counts_; ++n) {
        if (later == 0 || completion(0, n).cost < completion(0, later).cost) later = n;
      }
    }
    std::vector<std::size_t> path;
    for (std::size_t i = completion(0, later).successor; i != 0;
         i = completion(i, later).successor) {
      path.push_back(i);
      if (counted_) --later;
    }
    return path;
  }

  FitSums sums_of(const std::vector<std::size_t>& path) const {
    FitSums sums;
    for (std::size_t i = 0; i < path.size(); ++i) {
      const Choice& choice = choices_[path[i]];
      sums.add_point(choice.weight, choice.p, choice.u);
      if (i > 0) add_step(sums, choices_[path[i - 1]], choice);
    }
    return sums;
  }

  // A first labelling, so that the search has something to prune with: best path for a fixed fit
  // and best fit for a fixed path, in turns, from the path of the lower bound.
  void seed_by_alternation() {
    constexpr int kMaxTurns = 10;
    std::vector<Completion> bounds = completions_;
    std::vector<std::size_t> path = least_path();
    for (int turn = 0; turn < kMaxTurns && !path.empty(); ++turn) {
      offer(path);
      const FitSums sums = sums_of(path);
      const FitSums centred = sums.centred();
      const Multiplier fit(centred.pp, centred.pu, problem_.limits);
      const Vector k = fit.scale * fit.direction;
      const Vector t = (1.0 / sums.weight) * (sums.u - product(k, sums.p));
      complete(
          [&](const Choice& upper, const Choice& lower) {
            return step_weight(upper, lower) *
                   squared_norm(product(k, lower.p - upper.p) - (lower.u - upper.u));
          },
          [&](const Choice& lower) {
            return lower.weight * squared_norm(product(k, lower.p) + t - lower.u);
          });
      std::vector<std::size_t> next = least_path();
      if (next == path) break;
      path = std::move(next);
    }
    completions_ = std::move(bounds);
  }

  // Rank a labelling, if it is feasible. Its terms are summed from the fit itself, free of the
  // cancellation in FitSums::residual.
  void offer(const std::vector<std::size_t>& path) {
    if (path.size() < problem_.min_present || path.size() > problem_.max_present) return;
    const FitSums sums = sums_of(path);
    const FitSums centred = sums.centred();
    const Multiplier fit(centred.pp, centred.pu, problem_.limits);
    const Vector k = fit.scale * fit.direction;
    const Vector t = (1.0 / sums.weight) * (sums.u - product(k, sums.p));

    Labelling labelling;
    labelling.choice.assign(problem_.candidates.channels, kMissing);
    labelling.multiplier = k;
    labelling.terms.missing = constant_;
    std::size_t level = 0;
    for (std::size_t i = 0; i < path.size(); ++i) {
      const Choice& choice = choices_[path[i]];
      labelling.choice[choice.channel] = choice.candidate;
      labelling.terms.shape += choice.weight * squared_norm(product(k, choice.p) + t - choice.u);
      if (choice.offset != 0) labelling.terms.offset += problem_.borrow_mm2;
      labelling.terms.offset += offset_cost(i == 0 ? 0 : path[i - 1], choice);
      labelling.terms.score += choice.unary - (choice.offset != 0 ? problem_.borrow_mm2 : 0.0);
      for (; level < choice.level; ++level) labelling.terms.missing += missing_[level];
      ++level;
      if (i == 0) continue;
      const Choice& upper = choices_[path[i - 1]];
      if (!descends(upper, choice)) return;
      labelling.terms.chain += step_weight(upper, choice) *
                               squared_norm(product(k, choice.p - upper.p) - (choice.u - upper.u));
    }
    labelling.terms.missing += missing_after_[level];
    labelling.cost = labelling.terms.total();
    if (!(labelling.cost < ranking_.limit())) return;
    if (ranking_.best().empty() || labelling.cost < ranking_.best()[0].cost) {
      statistics_.improvements.emplace_back(nodes_, labelling.cost);
    }
    ranking_.add(std::move(labelling));
  }

  // Count a node, and report it if there is room: its place among the reported ones or -1.
  std::int64_t record(std::int64_t parent, std::size_t choice, Fate fate, double bound) {
    ++statistics_.fates[static_cast<std::size_t>(fate)];
    std::vector<TreeNode>& tree = statistics_.tree;
    if (tree.size() >= effort_.tree_size) return -1;
    const std::int64_t channel =
        choice == 0 ? -1 : static_cast<std::int64_t>(choices_[choice].channel);
    const std::int64_t candidate = choice == 0 ? -1 : choices_[choice].candidate;
    tree.push_back({parent, channel, candidate, fate, bound});
    return static_cast<std::int64_t>(tree.size()) - 1;
  }

  // Explore a node; false once the budget is spent. depth is the number of present discs.
  bool expand(const Node& node, std::size_t depth) {
    statistics_.depth = std::max(statistics_.depth, static_cast<std::int64_t>(depth));
    const std::size_t first_level = next_level(node.choice);
    if (improves(node.fixed + node.residual + missing_after_[first_level])) offer(path_);

    if (children_.size() <= depth) children_.resize(depth + 1);
    std::vector<Node> children = std::move(children_[depth]);  // reused, to spare allocations
    children.clear();
    const bool shaped = effort_.without != Shortcut::kShape;
    const double shape_bound = shaped ? node.residual : 0.0;
    double skipped = 0.0;
    const bool full = depth >= problem_.max_present;
    for (std::size_t level = first_level; level < levels() && !full; ++level) {
      if (!improves(node.fixed + shape_bound + skipped)) break;
      for (std::size_t j = level_begin_[level]; j < level_begin_[level + 1]; ++j) {
        const Choice& choice = choices_[j];
        if (node.choice != 0 && !descends(choices_[node.choice], choice)) {
          record(node.record, j, Fate::kOrder, kInfinity);
          continue;
        }
        Node child;
        child.fixed = node.fixed + skipped + choice.unary + offset_cost(node.choice, choice);
        const double below = least_completion(j, depth + 1);
        const double chain_bound = child.fixed + shape_bound + below;
        if (!improves(chain_bound)) {
          record(node.record, j, Fate::kChain, chain_bound);
          continue;
        }
        child.choice = j;
        child.sums = node.sums;
        child.sums.add_point(choice.weight, choice.p, choice.u);
        if (node.choice != 0) add_step(child.sums, choices_[node.choice], choice);
        // The true residual cannot fall; rounding may.
        child.residual = std::max(node.residual, child.sums.residual(problem_.limits));
        child.bound = child.fixed + (shaped ? child.residual : 0.0) + below;
        if (improves(child.bound)) {
          children.push_back(child);
        } else {
          record(node.record, j, Fate::kShape, child.bound);
        }
      }
      skipped += missing_[level];
    }
    if (effort_.without != Shortcut::kSort) {
      std::sort(children.begin(), children.end(), [](const Node& a, const Node& b) {
        return a.bound != b.bound ? a.bound < b.bound : a.choice < b.choice;
      });
    }

    bool within_budget = true;
    for (Node& child : children) {
      if (!improves(child.bound)) {
        record(node.record, child.choice, Fate::kIncumbent, child.bound);
        continue;
      }
      if (!within_budget || nodes_ >= effort_.node_budget) {
        record(node.record, child.choice, Fate::kBudget, child.bound);
        open_bound_ = std::min(open_bound_, child.bound);
        within_budget = false;
        continue;
      }
      ++nodes_;
      child.record = record(node.record, child.choice, Fate::kExpanded, child.bound);
      path_.push_back(child.choice);
      within_budget = expand(child, depth + 1);
      path_.pop_back();
    }
    children_[depth] = std::move(children);
    return within_budget;
  }

  const LsChainProblem& problem_;
  LsChainEffort effort_;
  Ranking ranking_;
  Statistics statistics_;
  std::int64_t nodes_ = 0;
  double open_bound_ = kInfinity;  // least bound of the nodes the budget left unexplored
  double tolerance_ = 0.0;         // mm^2
  double constant_ = 0.0;          // cost of the channels without candidates
  std::vector<Choice> choices_;
  bool counted_ = false;                 // completions are kept by the number of their discs
  std::size_t counts_ = 1;               // how many completions are kept for every choice
  std::vector<Completion> completions_;  // (choices, counts)
  std::vector<std::size_t> level_begin_;
  std::vector<double> missing_;        // by level
  std::vector<double> missing_after_;  // cost of missing this and all later levels
  std::vector<std::size_t> path_;
  std::vector<std::vector<Node>> children_;  // by depth
};

// The margin of one disc: search again without the choice made for it.
Margin find_margin(const LsChainProblem& problem, const std::vector<Labelling>& best,
                   std::size_t channel, LsChainEffort& effort) {
  const std::vector<std::int64_t>& chosen = best[0].choice;
  const Forbidden forbidden{channel, chosen[channel]};
  LsChainSearch search(problem, effort, &forbidden);
  for (const Labelling& other : best) {
    if (other.choice[channel] != chosen[channel]) search.seed(other.choice);
  }
  std::vector<std::int64_t> exchanged = chosen;
  for (std::int64_t i = problem.candidates.offsets[channel];
       i < problem.candidates.offsets[channel + 1]; ++i) {
    exchanged[channel] = i;
    if (i != chosen[channel]) search.seed(exchanged);
  }
  exchanged[channel] = kMissing;
  if (chosen[channel] != kMissing) search.seed(exchanged);

  const SearchResult result = search.run();
  effort.node_budget -= result.nodes;
  return {std::max(0.0, result.lower_bound - best[0].cost), result.optimal};
}

}  // namespace

SearchResult search_ls_chain(const LsChainProblem& problem, const LsChainEffort& effort) {
  SearchResult result = LsChainSearch(problem, effort, nullptr).run();
  if (!effort.with_margins || result.best.empty()) return result;
  LsChainEffort left = effort;  // shared by the margins of all discs
  left.n_best = 1;
  left.tree_size = 0;
  for (std::size_t channel = 0; channel < problem.candidates.channels; ++channel) {
    // Nothing is known about the alternatives to a labelling that may not be the best.
    result.margins.push_back(result.optimal ? find_margin(problem, result.best, channel, left)
                                            : Margin{0.0, false});
  }
  return result;
}

}  // namespace ivdtool
