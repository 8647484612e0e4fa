#include "search_exhaustive.hpp"

#include <cmath>
#include <cstddef>
#include <utility>
#include <vector>

namespace ivdtool {
namespace {

// Equation 3 of paper 1, as it is printed. Infinite where the anchors give no scale.
double paper_cost(const PaperProblem& problem, const std::vector<std::int64_t>& choice) {
  const CandidateLists& lists = problem.candidates;
  const auto template_point = [&](std::size_t channel) {
    return Vector{problem.template_mm[2 * channel], problem.template_mm[2 * channel + 1]};
  };
  const auto chosen = [&](std::size_t channel) {
    return lists.position(static_cast<std::size_t>(choice[channel]));
  };
  const std::size_t v1 = problem.first_anchor;
  const std::size_t v5 = problem.second_anchor;
  if (choice[v1] == kMissing || choice[v5] == kMissing) return kInfinity;
  const double length = std::sqrt(squared_norm(template_point(v5) - template_point(v1)));
  const double unit = std::sqrt(squared_norm(chosen(v5) - chosen(v1)));
  if (!(unit > 0.0)) return kInfinity;
  double cost = 0.0;
  for (std::size_t channel = 0; channel < lists.channels; ++channel) {
    if (choice[channel] == kMissing) continue;
    const double distance =
        squared_norm((1.0 / length) * (template_point(channel) - template_point(v1)) -
                     (1.0 / unit) * (chosen(channel) - chosen(v1)));
    cost += problem.squared ? distance : std::sqrt(distance);
  }
  return problem.squared ? std::sqrt(cost) : cost;
}

}  // namespace

SearchResult search_exhaustive(const PaperProblem& problem, std::int64_t most) {
  const CandidateLists& lists = problem.candidates;
  Labelling labelling;
  for (std::size_t channel = 0; channel < lists.channels; ++channel) {
    const bool empty = lists.offsets[channel] == lists.offsets[channel + 1];
    labelling.choice.push_back(empty ? kMissing : lists.offsets[channel]);
  }
  Ranking ranking(1);
  SearchResult result;
  bool visited_all = false;
  while (!visited_all && result.nodes < most) {
    ++result.nodes;
    labelling.cost = paper_cost(problem, labelling.choice);
    if (labelling.cost < ranking.limit()) {
      labelling.terms.shape = labelling.cost;
      ranking.add(labelling);
    }
    visited_all = true;  // unless some channel has a next candidate
    for (std::size_t channel = lists.channels; visited_all && channel-- > 0;) {
      std::int64_t& candidate = labelling.choice[channel];
      if (candidate == kMissing) continue;
      visited_all = ++candidate == lists.offsets[channel + 1];
      if (visited_all) candidate = lists.offsets[channel];
    }
  }
  result.best = ranking.best();
  result.optimal = visited_all;
  result.lower_bound = visited_all ? ranking.limit() : 0.0;
  return result;
}

}  // namespace ivdtool
