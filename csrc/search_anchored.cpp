#include "search_anchored.hpp"

#include <algorithm>
#include <cmath>
#include <utility>
#include <vector>

namespace ivdtool {
namespace {

// Improvements below this share of the skeleton's size are rounding. Following them would visit
// all of the equally good labellings that duplicate candidates make.
constexpr double kPrecision = 1e-13;

Vector mean_point(const AnchoredProblem& problem, std::size_t channel) {
  return {problem.mean_mm[2 * channel], problem.mean_mm[2 * channel + 1]};
}

// The best ways down the channels, each present disc descending from the last one, where every
// candidate and every missing disc has its cost. A chain, so dynamic programming over the present
// discs is exact (Viterbi's algorithm; for the n best, a list of n at each candidate).
class OrderedChain {
 public:
  OrderedChain(const AnchoredProblem& problem, std::size_t n_best)
      : lists_(problem.candidates), n_best_(n_best) {
    const std::size_t count = begin(lists_.channels);
    channel_.resize(count);
    below_.resize(count);
    for (std::size_t channel = 0; channel < lists_.channels; ++channel) {
      for (std::size_t i = begin(channel); i < begin(channel + 1); ++i) channel_[i] = channel;
    }
    for (std::size_t i = 0; i < count; ++i) {
      for (std::size_t j = begin(channel_[i] + 1); j < count; ++j) {
        const double rows = lists_.position(j).row - lists_.position(i).row;
        const double expected =
            mean_point(problem, channel_[j]).row - mean_point(problem, channel_[i]).row;
        if (rows > 0.0 && rows >= problem.min_gap * expected) below_[i].push_back(j);
      }
    }
    costs.resize(count);
    missing.resize(lists_.channels);
    paths_.resize(count);
    above_.resize(count);
    rest_.resize(count);
    skipped_.resize((lists_.channels + 1) * (lists_.channels + 1));
  }

  std::vector<double> costs;    // by candidate, infinite to forbid it
  std::vector<double> missing;  // by channel, infinite to forbid it

  std::size_t begin(std::size_t channel) const {
    return static_cast<std::size_t>(lists_.offsets[channel]);
  }
  std::size_t channel(std::size_t candidate) const { return channel_[candidate]; }

  // The least cost if discs need not descend; to be called before the others.
  double least_unordered() {
    double total = 0.0;
    for (std::size_t channel = 0; channel < lists_.channels; ++channel) {
      double least = missing[channel];
      for (std::size_t i = begin(channel); i < begin(channel + 1); ++i) {
        least = std::min(least, costs[i]);
      }
      total += least;
    }
    for (std::size_t first = 0; first < lists_.channels; ++first) {
      double sum = 0.0;  // afresh: differences of longer sums would be inexact, or NaN
      for (std::size_t last = first; last < lists_.channels; ++last) {
        sum += missing[last];
        skipped_[first * (lists_.channels + 1) + last + 1] = sum;
      }
    }
    return total;
  }

  // Call visit(cost, choice) for the n best labellings, best first, until it returns false.
  template <typename Visit>
  void solve(const Visit& visit) {
    for (std::size_t i = 0; i < costs.size(); ++i) {
      paths_[i].clear();
      enter(paths_[i], {skipped(0, channel_[i]) + costs[i], kNone, 0});
    }
    ends_.clear();
    enter(ends_, {skipped(0, lists_.channels), kNone, 0});
    for (std::size_t i = 0; i < costs.size(); ++i) {
      for (std::size_t rank = 0; rank < paths_[i].size(); ++rank) {
        const double cost = paths_[i][rank].cost;
        for (const std::size_t j : below_[i]) {
          enter(paths_[j], {cost + skipped(channel_[i] + 1, channel_[j]) + costs[j], i, rank});
        }
        enter(ends_, {cost + skipped(channel_[i] + 1, lists_.channels), i, rank});
      }
    }
    for (const Path& end : ends_) {
      std::vector<std::int64_t> choice(lists_.channels, kMissing);
      for (Path path = end; path.last != kNone; path = paths_[path.last][path.rank]) {
        choice[channel_[path.last]] = static_cast<std::int64_t>(path.last);
      }
      if (!visit(end.cost, std::move(choice))) return;
    }
  }

  // Min-marginals: lower least[channel] to the least cost of a labelling that treats the channel
  // otherwise than `chosen` does.
  void exchange(const std::vector<std::int64_t>& chosen, std::vector<double>& least) {
    const std::size_t channels = lists_.channels;
    for (std::size_t i = 0; i < costs.size(); ++i) {
      above_[i] = skipped(0, channel_[i]) + costs[i];
      rest_[i] = skipped(channel_[i] + 1, channels);
    }
    for (std::size_t i = 0; i < costs.size(); ++i) {
      if (above_[i] == kInfinity) continue;
      for (const std::size_t j : below_[i]) {
        const double step = skipped(channel_[i] + 1, channel_[j]) + costs[j];
        above_[j] = std::min(above_[j], above_[i] + step);
      }
    }
    for (std::size_t i = costs.size(); i-- > 0;) {
      for (const std::size_t j : below_[i]) {
        const double step = skipped(channel_[i] + 1, channel_[j]) + costs[j];
        rest_[i] = std::min(rest_[i], step + rest_[j]);
      }
    }
    const auto skip = [&](std::size_t first, std::size_t last, double cost) {
      for (std::size_t channel = first; channel < last; ++channel) {
        if (chosen[channel] != kMissing) least[channel] = std::min(least[channel], cost);
      }
    };
    skip(0, channels, skipped(0, channels));
    for (std::size_t i = 0; i < costs.size(); ++i) {
      const std::size_t own = channel_[i];
      if (chosen[own] != static_cast<std::int64_t>(i)) {
        least[own] = std::min(least[own], above_[i] + rest_[i]);
      }
      skip(0, own, skipped(0, own) + costs[i] + rest_[i]);
      skip(own + 1, channels, above_[i] + skipped(own + 1, channels));
      for (const std::size_t j : below_[i]) {
        skip(own + 1, channel_[j], above_[i] + skipped(own + 1, channel_[j]) + costs[j] + rest_[j]);
      }
    }
  }

 private:
  static constexpr std::size_t kNone = static_cast<std::size_t>(-1);

  struct Path {
    double cost;
    std::size_t last;  // the candidate before, or kNone
    std::size_t rank;  // which of its paths
  };

  // What it costs that channels first .. last - 1 are missing.
  double skipped(std::size_t first, std::size_t last) const {
    return skipped_[first * (lists_.channels + 1) + last];
  }

  void enter(std::vector<Path>& paths, const Path& path) const {
    if (path.cost == kInfinity) return;
    if (paths.size() == n_best_ && !(path.cost < paths.back().cost)) return;
    const auto place =
        std::upper_bound(paths.begin(), paths.end(), path,
                         [](const Path& a, const Path& b) { return a.cost < b.cost; });
    paths.insert(place, path);
    if (paths.size() > n_best_) paths.pop_back();
  }

  const CandidateLists& lists_;
  std::size_t n_best_;
  std::vector<std::size_t> channel_;             // by candidate
  std::vector<std::vector<std::size_t>> below_;  // by candidate: those that may be the next disc
  std::vector<std::vector<Path>> paths_;         // by candidate, best first
  std::vector<Path> ends_;
  std::vector<double> above_;    // by candidate: least cost of it and all above
  std::vector<double> rest_;     // by candidate: least cost of all below
  std::vector<double> skipped_;  // by first and last + 1
};

// Every pair of anchors in turn. Pairs allow different labellings, so their rankings can be merged.
// for_each_pair(visit) sets the chain's costs and calls visit() until it returns false.
template <typename ForEachPair>
SearchResult search_anchored(const AnchoredProblem& problem, OrderedChain& chain, double tolerance,
                             std::size_t n_best, bool with_margins,
                             const ForEachPair& for_each_pair) {
  Ranking ranking(n_best);
  SearchResult result;
  const auto improves = [&](double cost) { return cost < ranking.limit() - tolerance; };
  for_each_pair([&] {
    if (!improves(chain.least_unordered())) {
      ++result.statistics.fates[static_cast<std::size_t>(Fate::kChain)];
      return ranking.limit();
    }
    ++result.nodes;
    ++result.statistics.fates[static_cast<std::size_t>(Fate::kExpanded)];
    chain.solve([&](double cost, std::vector<std::int64_t> choice) {
      if (!improves(cost)) return false;
      if (ranking.best().empty() || cost < ranking.best()[0].cost) {
        result.statistics.improvements.emplace_back(result.nodes, cost);
      }
      Labelling labelling;
      labelling.choice = std::move(choice);
      labelling.cost = cost;
      ranking.add(std::move(labelling));
      return true;
    });
    return ranking.limit();
  });
  result.best = ranking.best();
  if (result.best.empty()) return result;
  result.lower_bound = result.best[0].cost;
  if (!with_margins) return result;
  std::vector<double> least(problem.candidates.channels, kInfinity);
  const auto furthest = [&] {
    double value = 0.0;
    for (std::size_t channel = 0; channel < problem.candidates.channels; ++channel) {
      const bool empty = chain.begin(channel) == chain.begin(channel + 1);  // no alternative
      if (!empty) value = std::max(value, least[channel]);
    }
    return value;
  };
  for_each_pair([&] {
    if (chain.least_unordered() < furthest()) chain.exchange(result.best[0].choice, least);
    return furthest();
  });
  for (const double cost : least) {
    result.margins.push_back({std::max(0.0, cost - result.best[0].cost), true});
  }
  return result;
}

}  // namespace

SearchResult search_paper_order(const PaperOrderProblem& problem, std::size_t n_best,
                                bool with_margins) {
  const AnchoredProblem& common = problem.common;
  const CandidateLists& lists = common.candidates;
  OrderedChain chain(common, n_best);
  const Vector first = mean_point(common, problem.first_anchor);
  const double length = std::sqrt(squared_norm(mean_point(common, problem.second_anchor) - first));
  const auto for_each_pair = [&](const auto& visit) {
    std::copy_n(common.missing_costs, lists.channels, chain.missing.begin());
    chain.missing[problem.first_anchor] = chain.missing[problem.second_anchor] = kInfinity;
    for (std::size_t v1 = chain.begin(problem.first_anchor);
         v1 < chain.begin(problem.first_anchor + 1); ++v1) {
      for (std::size_t v5 = chain.begin(problem.second_anchor);
           v5 < chain.begin(problem.second_anchor + 1); ++v5) {
        const Vector origin = lists.position(v1);
        const double unit = std::sqrt(squared_norm(lists.position(v5) - origin));
        if (!(unit > 0.0)) continue;  // coincident anchors give no scale
        for (std::size_t i = 0; i < chain.costs.size(); ++i) {
          const std::size_t channel = chain.channel(i);
          const double distance =
              squared_norm((1.0 / length) * (mean_point(common, channel) - first) -
                           (1.0 / unit) * (lists.position(i) - origin));
          chain.costs[i] = problem.squared ? distance : std::sqrt(distance);
          if (channel == problem.first_anchor && i != v1) chain.costs[i] = kInfinity;
          if (channel == problem.second_anchor && i != v5) chain.costs[i] = kInfinity;
        }
        visit();
      }
    }
  };
  SearchResult result =
      search_anchored(common, chain, kPrecision, n_best, with_margins, for_each_pair);
  const auto finish = [&](double cost) { return problem.squared ? std::sqrt(cost) : cost; };
  for (std::size_t channel = 0; channel < result.margins.size(); ++channel) {
    Margin& margin = result.margins[channel];
    margin.value = finish(result.best[0].cost + margin.value) - finish(result.best[0].cost);
  }
  for (Labelling& labelling : result.best) {
    for (std::size_t channel = 0; channel < lists.channels; ++channel) {
      if (labelling.choice[channel] == kMissing) {
        labelling.terms.missing += common.missing_costs[channel];
      }
    }
    const double total = labelling.cost;
    labelling.cost = finish(total);
    // A norm is no sum of terms: each gets its share of the sum of squares.
    const double share = total > 0.0 ? labelling.cost / total : 0.0;
    labelling.terms.missing *= share;
    labelling.terms.shape = std::max(0.0, labelling.cost - labelling.terms.missing);
  }
  for (auto& improvement : result.statistics.improvements) {
    improvement.second = finish(improvement.second);
  }
  if (!result.best.empty()) result.lower_bound = result.best[0].cost;
  return result;
}

SearchResult search_first_last(const FirstLastProblem& problem, std::size_t n_best,
                               bool with_margins) {
  const AnchoredProblem& common = problem.common;
  const CandidateLists& lists = common.candidates;
  OrderedChain chain(common, n_best);

  // Discs outside the anchors are missing, so pairs are taken by what that alone costs.
  struct Span {
    std::size_t first;
    std::size_t last;
    double outside;
  };
  std::vector<Span> spans;
  for (std::size_t first = 0; first < lists.channels; ++first) {
    for (std::size_t last = first + 1; last < lists.channels; ++last) {
      double outside = 0.0;
      for (std::size_t channel = 0; channel < lists.channels; ++channel) {
        if (channel < first || channel > last) outside += common.missing_costs[channel];
      }
      spans.push_back({first, last, outside});
    }
  }
  std::stable_sort(spans.begin(), spans.end(),
                   [](const Span& a, const Span& b) { return a.outside < b.outside; });

  const auto score_cost = [&](std::size_t i) {
    return problem.score_weight_mm2 * (1.0 - std::min(1.0, lists.scores[i]));
  };
  // The k that maps the anchors onto the mean skeleton; false if it is out of bounds.
  const auto multiplier = [&](std::size_t first, std::size_t last, Vector& k) {
    const Vector dp = lists.position(last) - lists.position(first);
    const Vector du =
        mean_point(common, chain.channel(last)) - mean_point(common, chain.channel(first));
    const double squared_length = squared_norm(dp);
    if (!(dp.row > 0.0) || !(squared_length > 0.0)) return false;
    k = (1.0 / squared_length) * conjugate_product(dp, du);
    const double scale = std::sqrt(squared_norm(k));
    // Reached limits count as kept, whatever rounding says.
    constexpr double kSlack = 1e-12;
    return scale >= problem.limits.min_scale * (1.0 - kSlack) &&
           scale <= problem.limits.max_scale * (1.0 + kSlack) &&
           k.row >= (problem.limits.cos_rotation - kSlack) * scale;
  };
  const auto for_each_pair = [&](const auto& visit) {
    double limit = kInfinity;
    for (const Span& span : spans) {
      if (span.outside >= limit) break;
      for (std::size_t first = chain.begin(span.first); first < chain.begin(span.first + 1);
           ++first) {
        for (std::size_t last = chain.begin(span.last); last < chain.begin(span.last + 1); ++last) {
          Vector k;
          if (!multiplier(first, last, k)) continue;
          const Vector t = mean_point(common, span.first) - product(k, lists.position(first));
          std::copy_n(common.missing_costs, lists.channels, chain.missing.begin());
          chain.missing[span.first] = chain.missing[span.last] = kInfinity;
          for (std::size_t i = 0; i < chain.costs.size(); ++i) {
            const std::size_t channel = chain.channel(i);
            chain.costs[i] = kInfinity;
            if (i == first || i == last) {
              chain.costs[i] = score_cost(i);
            } else if (channel > span.first && channel < span.last) {
              const Vector off = product(k, lists.position(i)) + t - mean_point(common, channel);
              chain.costs[i] = score_cost(i) + squared_norm(off);
            }
          }
          limit = visit();
        }
      }
    }
  };
  double size = 0.0;
  for (std::size_t channel = 0; channel < lists.channels; ++channel) {
    size = std::max(size, squared_norm(mean_point(common, channel) - mean_point(common, 0)));
  }
  SearchResult result =
      search_anchored(common, chain, kPrecision * size, n_best, with_margins, for_each_pair);
  for (Labelling& labelling : result.best) {
    std::vector<std::size_t> present;
    for (std::size_t channel = 0; channel < lists.channels; ++channel) {
      if (labelling.choice[channel] == kMissing) {
        labelling.terms.missing += common.missing_costs[channel];
      } else {
        present.push_back(static_cast<std::size_t>(labelling.choice[channel]));
      }
    }
    multiplier(present.front(), present.back(), labelling.multiplier);
    const Vector origin = lists.position(present.front());
    const Vector target = mean_point(common, chain.channel(present.front()));
    for (const std::size_t i : present) {
      labelling.terms.score += score_cost(i);
      if (i == present.front() || i == present.back()) continue;
      labelling.terms.shape +=
          squared_norm(product(labelling.multiplier, lists.position(i) - origin) -
                       (mean_point(common, chain.channel(i)) - target));
    }
    labelling.cost = labelling.terms.total();
  }
  if (!result.best.empty()) result.lower_bound = result.best[0].cost;
  return result;
}

}  // namespace ivdtool
