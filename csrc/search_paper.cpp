#include "search_paper.hpp"

#include <algorithm>
#include <cmath>
#include <utility>

namespace ivdtool {
namespace {

// Improvements below this share of |v1 - v5| are rounding. Following them would visit all of the
// equally good labellings that duplicate candidates make.
constexpr double kTolerance = 1e-13;

// With v1 and v5 fixed every disc contributes on its own, so the best choice is made disc by disc.
class PaperSearch {
 public:
  PaperSearch(const PaperProblem& problem, std::size_t n_best)
      : problem_(problem), lists_(problem.candidates), ranking_(n_best) {
    const Vector origin = mean_point(problem.first_anchor);
    const double unit = std::sqrt(squared_norm(mean_point(problem.second_anchor) - origin));
    for (std::size_t channel = 0; channel < lists_.channels; ++channel) {
      targets_.push_back((1.0 / unit) * (mean_point(channel) - origin));
    }
    costs_.resize(end(lists_.channels - 1));
    cheapest_.resize(lists_.channels);
    rest_.resize(lists_.channels + 1);
    choice_.assign(lists_.channels, kMissing);
  }

  SearchResult run(bool with_margins) {
    for_each_anchor_pair([this] { return ranking_.limit(); },
                         [this](double total) {
                           if (improves(total)) enumerate(0, 0.0);
                         });
    SearchResult result;
    result.best = ranking_.best();
    result.nodes = nodes_;
    if (result.best.empty()) return result;
    if (with_margins) result.margins = margins(result.best[0]);
    for (Labelling& labelling : result.best) {
      labelling.cost = finish(labelling.cost);
      labelling.terms.shape = labelling.cost;
    }
    result.lower_bound = result.best[0].cost;
    return result;
  }

 private:
  std::size_t begin(std::size_t channel) const {
    return static_cast<std::size_t>(lists_.offsets[channel]);
  }
  std::size_t end(std::size_t channel) const { return begin(channel + 1); }
  Vector mean_point(std::size_t channel) const {
    return {problem_.mean_mm[2 * channel], problem_.mean_mm[2 * channel + 1]};
  }
  bool improves(double total) const { return total < ranking_.limit() - kTolerance; }
  double finish(double total) const { return problem_.squared ? std::sqrt(total) : total; }

  // Call visit(total) for every choice of v1 and v5, total being the least cost it allows, unless
  // that reaches the limit.
  template <typename Limit, typename Visit>
  void for_each_anchor_pair(const Limit& limit, const Visit& visit) {
    for (v1_ = begin(problem_.first_anchor); v1_ < end(problem_.first_anchor); ++v1_) {
      for (v5_ = begin(problem_.second_anchor); v5_ < end(problem_.second_anchor); ++v5_) {
        const Vector origin = lists_.position(v1_);
        const double unit = std::sqrt(squared_norm(lists_.position(v5_) - origin));
        if (!(unit > 0.0)) continue;  // coincident anchors give no scale
        ++nodes_;
        const double total = set_costs(origin, unit, limit());
        if (total < kInfinity) visit(total);
      }
    }
  }

  // The cost of every candidate given the anchors. Other candidates of the anchors cost infinity.
  // Return the sum of the least ones, or infinity as soon as it reaches the limit.
  double set_costs(Vector origin, double unit, double limit) {
    const double scale = 1.0 / unit;
    double total = 0.0;
    for (std::size_t channel = 0; channel < lists_.channels; ++channel) {
      std::size_t first = begin(channel);
      std::size_t last = end(channel);
      if (channel == problem_.first_anchor || channel == problem_.second_anchor) {
        std::fill(costs_.begin() + static_cast<std::ptrdiff_t>(first),
                  costs_.begin() + static_cast<std::ptrdiff_t>(last), kInfinity);
        first = channel == problem_.first_anchor ? v1_ : v5_;
        last = first + 1;
      }
      std::size_t least = first;
      for (std::size_t i = first; i < last; ++i) {
        const double distance =
            squared_norm(targets_[channel] - scale * (lists_.position(i) - origin));
        costs_[i] = problem_.squared ? distance : std::sqrt(distance);
        least = costs_[i] < costs_[least] ? i : least;
      }
      cheapest_[channel] = least;
      if (first < last) total += costs_[least];
      if (total >= limit) return kInfinity;
    }
    for (std::size_t channel = lists_.channels; channel-- > 0;) {
      rest_[channel] = rest_[channel + 1];
      if (begin(channel) < end(channel)) rest_[channel] += costs_[cheapest_[channel]];
    }
    return rest_[0];
  }

  // All labellings of these anchors that enter the ranking. rest_ is the exact cost of the
  // remaining channels, so every branch taken ends in such a labelling.
  void enumerate(std::size_t channel, double cost) {
    if (channel == lists_.channels) {
      Labelling labelling;
      labelling.choice = choice_;
      labelling.cost = cost;
      ranking_.add(std::move(labelling));
      return;
    }
    if (begin(channel) == end(channel)) {
      enumerate(channel + 1, cost);
      return;
    }
    const std::size_t first = cheapest_[channel];  // as it lowers the limit most
    choose(channel, cost, first);
    for (std::size_t i = begin(channel); i < end(channel); ++i) {
      if (i != first) choose(channel, cost, i);
    }
    choice_[channel] = kMissing;
  }

  void choose(std::size_t channel, double cost, std::size_t candidate) {
    cost += costs_[candidate];
    if (!improves(cost + rest_[channel + 1])) return;
    ++nodes_;
    choice_[channel] = static_cast<std::int64_t>(candidate);
    enumerate(channel + 1, cost);
  }

  // Min-marginals: the cost of a pair of anchors, with the one disc exchanged.
  std::vector<Margin> margins(const Labelling& best) {
    std::vector<double> least(lists_.channels, kInfinity);
    const auto furthest = [&] {
      double value = 0.0;
      for (std::size_t channel = 0; channel < lists_.channels; ++channel) {
        const bool has_choice = end(channel) - begin(channel) > 1;
        if (has_choice) value = std::max(value, least[channel]);
      }
      return value;
    };
    for_each_anchor_pair(furthest, [&](double total) {
      for (std::size_t channel = 0; channel < lists_.channels; ++channel) {
        for (std::size_t i = begin(channel); i < end(channel); ++i) {
          if (static_cast<std::int64_t>(i) == best.choice[channel]) continue;
          if (costs_[i] == kInfinity) continue;
          least[channel] = std::min(least[channel], total - costs_[cheapest_[channel]] + costs_[i]);
        }
      }
    });
    std::vector<Margin> margins(lists_.channels);
    for (std::size_t channel = 0; channel < lists_.channels; ++channel) {
      margins[channel].value = std::max(0.0, finish(least[channel]) - finish(best.cost));
    }
    return margins;
  }

  const PaperProblem& problem_;
  const CandidateLists& lists_;
  Ranking ranking_;
  std::int64_t nodes_ = 0;
  std::size_t v1_ = 0;
  std::size_t v5_ = 0;
  std::vector<Vector> targets_;        // the normalised mean skeleton
  std::vector<double> costs_;          // by candidate
  std::vector<std::size_t> cheapest_;  // by channel
  std::vector<double> rest_;           // least cost of this and all later channels
  std::vector<std::int64_t> choice_;
};

}  // namespace

SearchResult search_paper(const PaperProblem& problem, std::size_t n_best, bool with_margins) {
  return PaperSearch(problem, n_best).run(with_margins);
}

}  // namespace ivdtool
