#include "search_exhaustive.hpp"

#include <cmath>
#include <cstddef>
#include <utility>
#include <vector>

namespace ivdtool {
namespace {

// The mean skeleton as equation 3 of paper 1 has it: v1 at the origin, v5 at distance 1.
std::vector<Vector> normalised_mean(const PaperProblem& problem) {
  const auto point = [&](std::size_t channel) {
    return Vector{problem.mean_mm[2 * channel], problem.mean_mm[2 * channel + 1]};
  };
  const Vector v1 = point(problem.first_anchor);
  const double length = std::sqrt(squared_norm(point(problem.second_anchor) - v1));
  std::vector<Vector> points(problem.candidates.channels);
  for (std::size_t channel = 0; channel < points.size(); ++channel) {
    points[channel] = (1.0 / length) * (point(channel) - v1);
  }
  return points;
}

// Equation 3, as it is printed. Infinite where the anchors give no scale.
double paper_cost(const PaperProblem& problem, const std::vector<Vector>& targets,
                  const std::vector<std::int64_t>& choice) {
  if (choice[problem.first_anchor] == kMissing || choice[problem.second_anchor] == kMissing) {
    return kInfinity;
  }
  const auto chosen = [&](std::size_t channel) {
    return problem.candidates.position(static_cast<std::size_t>(choice[channel]));
  };
  const Vector v1 = chosen(problem.first_anchor);
  const double unit = std::sqrt(squared_norm(chosen(problem.second_anchor) - v1));
  if (!(unit > 0.0)) return kInfinity;
  const double scale = 1.0 / unit;
  double cost = 0.0;
  for (std::size_t channel = 0; channel < targets.size(); ++channel) {
    if (choice[channel] == kMissing) continue;
    const double distance = squared_norm(targets[channel] - scale * (chosen(channel) - v1));
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
  const std::vector<Vector> targets = normalised_mean(problem);
  Ranking ranking(1);
  SearchResult result;
  bool visited_all = false;
  while (!visited_all && result.nodes < most) {
    ++result.nodes;
    labelling.cost = paper_cost(problem, targets, labelling.choice);
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
