// Coverage-guided fuzzing of the kernels, without Python: bytes become arguments that the bindings
// would let through, and every answer is checked against a plain one that shares no code with it.
//
// `make fuzz` builds this with libFuzzer, or with tests/fuzz_main.cpp where there is none. What the
// bindings refuse is left to tests/fuzz_core.py.

#include <algorithm>
#include <cmath>
#include <complex>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <initializer_list>
#include <iterator>
#include <limits>
#include <memory>
#include <stdexcept>
#include <vector>

#include "candidates.hpp"
#include "heatmaps.hpp"
#include "search.hpp"
#include "search_anchored.hpp"
#include "search_exhaustive.hpp"
#include "search_ls_chain.hpp"
#include "search_paper.hpp"

namespace {

using ivdtool::kInfinity;
using ivdtool::kMissing;

void check(bool holds, const char* what) {
  if (!holds) throw std::logic_error(what);
}

// The input, taken apart; zeros once it is spent.
class Bytes {
 public:
  Bytes(const std::uint8_t* data, std::size_t size) : data_(data), size_(size) {}

  std::uint8_t byte() {
    if (size_ == 0) return 0;
    --size_;
    return *data_++;
  }
  bool flag() { return byte() % 2 != 0; }
  std::size_t upto(std::size_t most) { return byte() % (most + 1); }
  // A coarse grid, so that ties, duplicates and coincident points are common.
  double grid(double step) { return step * static_cast<std::int8_t>(byte()); }
  double share() { return byte() / 255.0; }
  double choose(std::initializer_list<double> values) {
    return values.begin()[byte() % values.size()];
  }
  // Any finite number, mostly extreme ones.
  double finite() {
    std::uint64_t bits = 0;
    for (int i = 0; i < 8; ++i) bits = bits << 8U | byte();
    double value = 0.0;
    std::memcpy(&value, &bits, sizeof value);
    return std::isfinite(value) ? value : 0.0;
  }

 private:
  const std::uint8_t* data_;
  std::size_t size_;
};

// --- heatmaps

void fuzz_heatmaps(Bytes& in) {
  const std::size_t count = in.upto(3);
  const ivdtool::HeatmapShape shape{1 + in.upto(23), 1 + in.upto(47)};
  const std::size_t cells = shape.rows * shape.cols;
  const bool wild = in.byte() % 8 == 7;
  ivdtool::HeatmapBuffer buffer(count, shape);
  for (std::size_t call = 1 + in.upto(3); call > 0; --call) {
    std::vector<double> centres(2 * count);
    const auto visible = std::make_unique<bool[]>(count);
    for (double& centre : centres) centre = wild ? in.finite() : in.grid(0.25);
    if (count > 0 && in.byte() % 16 == 15) centres[in.upto(2 * count - 1)] = std::nan("");
    for (std::size_t i = 0; i < count; ++i) visible[i] = in.byte() % 4 != 3;
    ivdtool::Gaussians gaussians{centres.data(), visible.get(), {0.0, 0.0}};
    for (double& sigma : gaussians.sigma) {
      sigma = wild ? std::abs(in.finite()) : (1.0 + in.byte()) / 16.0;
      if (!(sigma > 0.0)) sigma = 1.0;
    }
    std::vector<float> drawn(count * cells, 7.0F);
    ivdtool::clear_heatmaps(drawn.data(), drawn.size());
    ivdtool::draw_heatmaps(gaussians, count, shape, drawn.data());
    buffer.draw(gaussians);
    check(std::equal(drawn.begin(), drawn.end(), buffer.values()), "a buffer is as drawn afresh");
    for (std::size_t i = 0; i < drawn.size(); ++i) {
      const float value = drawn[i];
      check(value >= 0.0F && value <= 1.0F, "a Gaussian lies in 0..1");
      const std::size_t channel = i / cells;
      const double row = static_cast<double>(i % cells / shape.cols);
      const double col = static_cast<double>(i % shape.cols);
      const double dr = (row - centres[2 * channel]) / gaussians.sigma[0];
      const double dc = (col - centres[2 * channel + 1]) / gaussians.sigma[1];
      const double away = std::max(std::abs(dr), std::abs(dc));
      const bool shown = visible[channel] && std::isfinite(dr) && std::isfinite(dc);
      if (wild || std::abs(away - ivdtool::kDrawRadiusSigma) < 1e-9) continue;  // as rounding says
      const bool inside = shown && away < ivdtool::kDrawRadiusSigma;
      const double exact = inside ? std::exp(-0.5 * (dr * dr + dc * dc)) : 0.0;
      check(std::abs(value - exact) <= 1e-6 * exact, "a Gaussian is drawn out to its radius");
    }
  }
}

// --- candidates

struct Cell {
  float value;
  std::size_t row;
  std::size_t col;
};

// Larger than all neighbours; equal values fall in raster order, NaN is lower than any number.
bool is_peak(const float* heatmap, ivdtool::HeatmapShape shape, std::size_t row, std::size_t col) {
  const float value = heatmap[row * shape.cols + col];
  if (std::isnan(value)) return false;
  for (std::size_t r = row - std::min<std::size_t>(row, 1); r <= row + 1 && r < shape.rows; ++r) {
    for (std::size_t c = col - std::min<std::size_t>(col, 1); c <= col + 1 && c < shape.cols; ++c) {
      const float other = heatmap[r * shape.cols + c];
      const bool earlier = r < row || (r == row && c < col);
      if (other > value || (earlier && other == value)) return false;
    }
  }
  return true;
}

std::vector<Cell> plain_candidates(const float* heatmap, ivdtool::HeatmapShape shape,
                                   const ivdtool::CandidateRules& rules) {
  std::vector<Cell> peaks;
  float largest = -std::numeric_limits<float>::infinity();
  for (std::size_t row = 0; row < shape.rows; ++row) {
    for (std::size_t col = 0; col < shape.cols; ++col) {
      const float value = heatmap[row * shape.cols + col];
      if (value > largest) largest = value;
      if (is_peak(heatmap, shape, row, col)) peaks.push_back({value, row, col});
    }
  }
  std::stable_sort(peaks.begin(), peaks.end(),
                   [](const Cell& a, const Cell& b) { return a.value > b.value; });
  std::vector<Cell> kept;
  for (const Cell& peak : peaks) {
    const bool low = !(peak.value >= rules.threshold) ||
                     peak.value < rules.threshold_relative * largest;  // NaN for 0 times infinity
    const bool near = std::any_of(kept.begin(), kept.end(), [&](const Cell& other) {
      const double dr =
          rules.spacing_mm[0] * (static_cast<double>(peak.row) - static_cast<double>(other.row));
      const double dc =
          rules.spacing_mm[1] * (static_cast<double>(peak.col) - static_cast<double>(other.col));
      return dr * dr + dc * dc <= rules.radius_mm * rules.radius_mm;
    });
    if (!low && !near && kept.size() < rules.max_candidates) kept.push_back(peak);
  }
  return kept;
}

void fuzz_candidates(Bytes& in) {
  constexpr float kSpecial[] = {std::numeric_limits<float>::quiet_NaN(),
                                std::numeric_limits<float>::infinity(),
                                -std::numeric_limits<float>::infinity(),
                                -0.0F,
                                1e-45F,
                                3e38F};
  constexpr int kFirstSpecial = 250;
  const std::size_t channels = in.upto(2);
  const ivdtool::HeatmapShape shape{1 + in.upto(15), 1 + in.upto(79)};
  ivdtool::CandidateRules rules{};
  rules.threshold = static_cast<float>(in.choose({0.1, 0.05, 0.5, 1e-45, 1e30}));
  rules.threshold_relative = static_cast<float>(in.choose({0.0, 0.3, 1.0}));
  rules.radius_mm = in.choose({0.0, 1.0, 2.5, 8.0, 1e300});
  for (double& spacing : rules.spacing_mm) spacing = in.choose({1.0, 0.4, 2.0, 5.7});
  rules.max_candidates = 1 + in.upto(8);
  const bool coarse = in.flag();
  std::vector<float> heatmaps(channels * shape.rows * shape.cols);
  for (float& value : heatmaps) {
    const std::uint8_t byte = in.byte();
    value = static_cast<float>(coarse ? byte % 4 : byte) / (coarse ? 4.0F : 256.0F);
    if (byte >= kFirstSpecial) value = kSpecial[byte - kFirstSpecial];
  }
  std::vector<ivdtool::Candidate> found;
  std::vector<ivdtool::Candidate> portable;
  std::vector<std::int64_t> offsets(channels + 1);
  std::vector<std::int64_t> portable_offsets(channels + 1);
  ivdtool::find_candidates(heatmaps.data(), channels, shape, rules, false, found, offsets.data());
  ivdtool::find_candidates(heatmaps.data(), channels, shape, rules, true, portable,
                           portable_offsets.data());
  check(offsets == portable_offsets, "every processor finds as many peaks");
  check(offsets.back() == static_cast<std::int64_t>(found.size()), "offsets end at the last peak");
  for (std::size_t i = 0; i < found.size(); ++i) {
    const bool same = found[i].row == portable[i].row && found[i].col == portable[i].col &&
                      found[i].score == portable[i].score;
    check(same, "every processor finds the same peaks");
  }
  for (std::size_t channel = 0; channel < channels; ++channel) {
    const std::vector<Cell> expected =
        plain_candidates(heatmaps.data() + channel * shape.rows * shape.cols, shape, rules);
    const auto first = static_cast<std::size_t>(offsets[channel]);
    check(static_cast<std::size_t>(offsets[channel + 1]) - first == expected.size(),
          "as many peaks as by the plain method");
    for (std::size_t i = 0; i < expected.size(); ++i) {
      const ivdtool::Candidate& candidate = found[first + i];
      check(candidate.score == static_cast<double>(expected[i].value), "the same values");
      const double dr = candidate.row - static_cast<double>(expected[i].row);
      const double dc = candidate.col - static_cast<double>(expected[i].col);
      check(std::abs(dr) <= 1.0 && std::abs(dc) <= 1.0, "at most one cell from the peak");
    }
  }
}

// --- search

using Real = long double;
using Complex = std::complex<Real>;
using Choice = std::vector<std::int64_t>;

// The arguments of all searches.
struct Problem {
  explicit Problem(Bytes& in) : wild(in.byte() % 8 == 7), channels(1 + in.upto(wild ? 13 : 8)) {
    offsets.assign(channels + 1, 0);
    for (std::size_t i = 0; i < channels; ++i) {
      offsets[i + 1] = offsets[i] + static_cast<std::int64_t>(in.upto(4));
    }
    const auto count = static_cast<std::size_t>(offsets.back());
    skeleton.resize(2 * channels);
    for (std::size_t i = 0; i < channels; ++i) {
      skeleton[2 * i] = wild ? in.finite() : 25.0 * static_cast<double>(i) + in.grid(0.125);
      skeleton[2 * i + 1] = wild ? in.finite() : in.grid(0.125);
    }
    positions.resize(2 * count);
    scores.resize(count);
    for (std::size_t i = 0; i < count; ++i) {
      positions[2 * i] =
          wild ? in.finite() : 25.0 * static_cast<double>(channel(i)) + in.grid(0.25);
      positions[2 * i + 1] = wild ? in.finite() : in.grid(0.125);
      scores[i] = wild ? in.finite() : 1.2 * in.share();
    }
    missing_costs.resize(channels);
    disc_weights.resize(channels);
    pair_weights.resize(channels * channels);
    const bool plain = in.flag();
    for (double& cost : missing_costs) cost = plain ? 300.0 : price(in, 1000.0);
    for (double& weight : disc_weights) weight = plain ? 1.0 : 0.01 + 3.0 * in.share();
    for (double& weight : pair_weights) weight = plain ? 1.0 : 3.0 * in.share();
    score_weight_mm2 = price(in, 100.0);
    chain_weight = in.choose({5.0, 0.0, 1.0});
    max_rotation = in.choose({0.35, 0.0, 1.2, 3.14159265358979323846});
    min_scale = in.choose({0.75, 0.0, 1.0});
    max_scale = in.choose({1.35, 1.0, kInfinity});
    // On the grid of the rows no step is just as long as it has to be, where rounding decides.
    min_gap = in.choose({0.25037, 0.0, 0.60037});
    min_present = 1 + in.upto(3);
    max_present = min_present + (in.flag() ? in.upto(3) : channels);
    const bool known = in.byte() % 4 == 3;
    for (std::size_t i = 0; i < channels; ++i) {
      const std::uint8_t byte = known ? in.byte() : 0;
      rules.push_back(byte % 8 < ivdtool::kRules ? byte % 8 : 0);
    }
    borrow_mm2 = in.choose({kInfinity, kInfinity, 0.0, 10.0});
    offset_change_mm2 = in.choose({0.0, 100.0});
    offset_start_mm2 = in.choose({0.0, 30.0});
    first_anchor = in.upto(channels - 1);
    second_anchor = in.upto(channels - 1);
    squared = in.flag();
    n_best = 1 + in.upto(5);
    with_margins = in.flag();
  }

  double price(Bytes& in, double most) const {
    return wild ? std::abs(in.finite()) : most * in.share();
  }
  std::size_t channel(std::size_t candidate) const {
    const auto above =
        std::upper_bound(offsets.begin(), offsets.end(), static_cast<std::int64_t>(candidate));
    return static_cast<std::size_t>(above - offsets.begin()) - 1;
  }
  Complex p(std::int64_t candidate) const {
    const auto i = static_cast<std::size_t>(candidate);
    return {positions[2 * i], positions[2 * i + 1]};
  }
  Complex u(std::size_t i) const { return {skeleton[2 * i], skeleton[2 * i + 1]}; }
  Real score_cost(std::int64_t candidate) const {
    return score_weight_mm2 * (1.0L - std::min(1.0, scores[static_cast<std::size_t>(candidate)]));
  }
  ivdtool::CandidateLists lists() const {
    return {channels, offsets.data(), positions.data(), scores.data()};
  }
  ivdtool::AnchoredProblem anchored() const {
    return {lists(), skeleton.data(), missing_costs.data(), min_gap};
  }
  ivdtool::SimilarityLimits limits() const { return {max_rotation, min_scale, max_scale}; }

  bool wild;  // extreme numbers, for which nothing is said of the costs
  std::size_t channels;
  std::vector<std::int64_t> offsets;
  std::vector<double> positions;
  std::vector<double> scores;
  std::vector<double> skeleton;
  std::vector<double> missing_costs;
  std::vector<double> disc_weights;
  std::vector<double> pair_weights;
  double score_weight_mm2;
  double chain_weight;
  double max_rotation;
  double min_scale;
  double max_scale;
  double min_gap;
  std::size_t min_present;
  std::size_t max_present;
  std::vector<std::int64_t> rules;
  double borrow_mm2;
  double offset_change_mm2;
  double offset_start_mm2;
  std::size_t first_anchor;
  std::size_t second_anchor;
  bool squared;
  std::size_t n_best;
  bool with_margins;
};

void print(const char* name, const std::vector<double>& values) {
  std::fprintf(stderr, "%s=np.array([", name);
  for (const double value : values) std::fprintf(stderr, "%.17g, ", value);
  std::fprintf(stderr, "]),\n");
}

// In Python, for a regression test.
void print(const Problem& problem) {
  print("positions_mm", problem.positions);
  print("scores", problem.scores);
  print("offsets", {problem.offsets.begin(), problem.offsets.end()});
  print("mean_mm", problem.skeleton);
  print("missing_costs", problem.missing_costs);
  print("disc_weights", problem.disc_weights);
  print("pair_weights", problem.pair_weights);
  print("rules", {problem.rules.begin(), problem.rules.end()});
  std::fprintf(
      stderr,
      "score_weight_mm2=%.17g, chain_weight=%.17g, max_rotation_rad=%.17g, min_scale=%.17g, "
      "max_scale=%.17g, min_gap=%.17g, min_present=%zu, max_present=%zu, borrow_mm2=%.17g, "
      "offset_change_mm2=%.17g, offset_start_mm2=%.17g, anchors=(%zu, %zu), "
      "squared=%d, n_best=%zu, with_margins=%d\n",
      problem.score_weight_mm2, problem.chain_weight, problem.max_rotation, problem.min_scale,
      problem.max_scale, problem.min_gap, problem.min_present, problem.max_present,
      problem.borrow_mm2, problem.offset_change_mm2, problem.offset_start_mm2, problem.first_anchor,
      problem.second_anchor, problem.squared, problem.n_best, problem.with_margins);
}

std::vector<std::size_t> present_discs(const Choice& choice) {
  std::vector<std::size_t> discs;
  for (std::size_t i = 0; i < choice.size(); ++i) {
    if (choice[i] != kMissing) discs.push_back(i);
  }
  return discs;
}

bool descends(const Problem& problem, const Choice& choice) {
  const std::vector<std::size_t> discs = present_discs(choice);
  for (std::size_t n = 1; n < discs.size(); ++n) {
    const Complex step = problem.p(choice[discs[n]]) - problem.p(choice[discs[n - 1]]);
    const Complex expected = problem.u(discs[n]) - problem.u(discs[n - 1]);
    if (!(step.real() > 0.0L) || step.real() < problem.min_gap * expected.real()) return false;
  }
  return true;
}

Real missing_cost(const Problem& problem, const Choice& choice) {
  Real cost = 0.0L;
  for (std::size_t i = 0; i < choice.size(); ++i) {
    if (choice[i] == kMissing) cost += problem.missing_costs[i];
  }
  return cost;
}

// The costs of a labelling by the definitions; infinite where it is not feasible.

// Equation 3 of paper 1; the sum of squares where its root is wanted.
Real paper_cost(const Problem& problem, const Choice& choice) {
  const std::int64_t v1 = choice[problem.first_anchor];
  const std::int64_t v5 = choice[problem.second_anchor];
  if (v1 == kMissing || v5 == kMissing) return kInfinity;
  const Complex u1 = problem.u(problem.first_anchor);
  const Real unit = std::abs(problem.p(v5) - problem.p(v1));
  const Real mean_unit = std::abs(problem.u(problem.second_anchor) - u1);
  if (!(unit > 0.0L)) return kInfinity;
  Real cost = 0.0L;
  for (const std::size_t i : present_discs(choice)) {
    const Real distance =
        std::abs((problem.u(i) - u1) / mean_unit - (problem.p(choice[i]) - problem.p(v1)) / unit);
    cost += problem.squared ? distance * distance : distance;
  }
  return cost;
}

Real paper_order_cost(const Problem& problem, const Choice& choice) {
  if (!descends(problem, choice)) return kInfinity;
  return paper_cost(problem, choice) + missing_cost(problem, choice);
}

Real first_last_cost(const Problem& problem, const Choice& choice) {
  const std::vector<std::size_t> discs = present_discs(choice);
  if (discs.size() < 2 || !descends(problem, choice)) return kInfinity;
  const Complex p1 = problem.p(choice[discs.front()]);
  const Complex u1 = problem.u(discs.front());
  const Complex k = (problem.u(discs.back()) - u1) / (problem.p(choice[discs.back()]) - p1);
  constexpr Real kSlack = 1e-12L;  // reached limits count as kept
  const Real scale = std::abs(k);
  if (scale < problem.min_scale * (1.0L - kSlack) || scale > problem.max_scale * (1.0L + kSlack) ||
      k.real() < (std::cos(Real(problem.max_rotation)) - kSlack) * scale) {
    return kInfinity;
  }
  Real cost = missing_cost(problem, choice);
  for (const std::size_t i : discs) {
    cost += problem.score_cost(choice[i]) +
            std::norm(k * (problem.p(choice[i]) - p1) - (problem.u(i) - u1));
  }
  return cost;
}

// Least a |k|^2 - 2 Re(conj(k) b) + c over |arg k| <= rotation, min <= |k| <= max scale.
Real least_in_sector(Real a, Complex b, Real c, const Problem& problem) {
  if (!(a > 0.0L)) return c;
  const Real turn = std::clamp<Real>(std::arg(b), -problem.max_rotation, problem.max_rotation);
  const Real along = (b * std::polar<Real>(1.0L, -turn)).real();
  const Real scale = std::clamp<Real>(along / a, problem.min_scale, problem.max_scale);
  return a * scale * scale - 2.0L * scale * along + c;
}

bool obeys(const Problem& problem, const Choice& choice) {
  for (std::size_t i = 0; i < choice.size(); ++i) {
    const auto rule = static_cast<ivdtool::Rule>(problem.rules[i]);
    const bool present = choice[i] != kMissing;
    const bool own = present && problem.channel(static_cast<std::size_t>(choice[i])) == i;
    if (rule == ivdtool::Rule::kAbsent && present) return false;
    if (rule == ivdtool::Rule::kPresent && !present) return false;
    if (rule == ivdtool::Rule::kOwn && !own) return false;
  }
  return true;
}

// About their weighted mean, sum w_i |x_i|^2 = sum_(i<j) w_i w_j |x_i - x_j|^2 / sum w.
Real ls_chain_cost(const Problem& problem, const Choice& choice) {
  const std::vector<std::size_t> discs = present_discs(choice);
  if (discs.size() < problem.min_present || discs.size() > problem.max_present ||
      !descends(problem, choice) || !obeys(problem, choice)) {
    return kInfinity;
  }
  Real total = 0.0L;
  Real cost = missing_cost(problem, choice);
  std::size_t last_source = 0;
  for (std::size_t n = 0; n < discs.size(); ++n) {
    const std::size_t i = discs[n];
    total += problem.disc_weights[i];
    cost += problem.score_cost(choice[i]);
    const std::size_t source = problem.channel(static_cast<std::size_t>(choice[i])) - i;
    if (source != 0) cost += problem.borrow_mm2;
    if (n == 0 && source != 0) cost += problem.offset_start_mm2;
    if (n > 0 && source != last_source) cost += problem.offset_change_mm2;
    last_source = source;
  }
  Real a = 0.0L;
  Complex b = 0.0L;
  Real c = 0.0L;
  for (std::size_t m = 0; m < discs.size(); ++m) {
    for (std::size_t n = m + 1; n < discs.size(); ++n) {
      const std::size_t i = discs[m];
      const std::size_t j = discs[n];
      Real weight = Real(problem.disc_weights[i]) * problem.disc_weights[j] / total;
      if (n == m + 1) {
        weight += Real(problem.chain_weight) * problem.pair_weights[i * problem.channels + j];
      }
      const Complex dp = problem.p(choice[j]) - problem.p(choice[i]);
      const Complex du = problem.u(j) - problem.u(i);
      a += weight * std::norm(dp);
      b += weight * std::conj(dp) * du;
      c += weight * std::norm(du);
    }
  }
  return cost + least_in_sector(a, b, c, problem);
}

struct Labelled {
  Choice choice;
  Real cost;
};

// All feasible labellings by cost, or none if there are too many to try.
class Enumeration {
 public:
  using Cost = Real (*)(const Problem&, const Choice&);

  // must_choose: a disc with candidates may not be missing, as in the paper.
  Enumeration(const Problem& problem, Cost cost, bool must_choose, bool borrowed) {
    double count = 1.0;
    std::vector<Choice> options(problem.channels);
    for (std::size_t i = 0; i < problem.channels; ++i) {
      const std::size_t first = borrowed ? i - std::min<std::size_t>(i, 1) : i;
      const std::size_t last = borrowed ? std::min(i + 2, problem.channels) : i + 1;
      for (std::int64_t c = problem.offsets[first]; c < problem.offsets[last]; ++c) {
        options[i].push_back(c);
      }
      if (!must_choose || options[i].empty()) options[i].push_back(kMissing);
      count *= static_cast<double>(options[i].size());
    }
    constexpr double kMost = 600.0;
    complete = count <= kMost;
    if (!complete) return;
    Choice choice(problem.channels);
    visit(options, 0, choice, [&] {
      const Real value = cost(problem, choice);
      if (value < kInfinity) feasible.push_back({choice, value});
    });
    std::stable_sort(feasible.begin(), feasible.end(),
                     [](const Labelled& a, const Labelled& b) { return a.cost < b.cost; });
  }

  Real least_other(std::size_t channel, std::int64_t chosen) const {
    for (const Labelled& labelled : feasible) {
      if (labelled.choice[channel] != chosen) return labelled.cost;
    }
    return kInfinity;
  }

  bool complete = false;
  std::vector<Labelled> feasible;

 private:
  template <typename Visit>
  static void visit(const std::vector<Choice>& options, std::size_t channel, Choice& choice,
                    const Visit& each) {
    if (channel == options.size()) return each();
    for (const std::int64_t option : options[channel]) {
      choice[channel] = option;
      visit(options, channel + 1, choice, each);
    }
  }
};

bool near(Real a, Real b) {
  return a == b || std::abs(a - b) <= 1e-7L + 1e-9L * std::max(std::abs(a), std::abs(b));
}

// `rooted`: the search returns the square roots of `cost`.
void check_or_throw(const Problem& problem, const ivdtool::SearchResult& result,
                    Enumeration::Cost cost, bool must_choose, bool borrowed, bool rooted) {
  const std::vector<ivdtool::Labelling>& best = result.best;
  const auto count = static_cast<std::int64_t>(problem.scores.size());
  check(best.size() <= problem.n_best, "at most as many labellings as are wanted");
  for (const ivdtool::Labelling& labelling : best) {
    check(labelling.choice.size() == problem.channels, "a choice for every channel");
    for (std::size_t i = 0; i < problem.channels; ++i) {
      const std::int64_t chosen = labelling.choice[i];
      check(chosen >= kMissing && chosen < count, "candidates that there are");
      if (chosen == kMissing) continue;
      const std::size_t source = problem.channel(static_cast<std::size_t>(chosen));
      check(source == i || (borrowed && (source + 1 == i || i + 1 == source)),
            "candidates of the channel, or next to it");
    }
  }
  for (const ivdtool::Margin& margin : result.margins) {
    check(margin.value >= 0.0 || problem.wild, "margins are not negative");
  }
  if (problem.wild) return;

  const auto total = [&](Real value) { return rooted ? value * value : value; };
  for (std::size_t n = 0; n < best.size(); ++n) {
    check(near(total(best[n].cost), cost(problem, best[n].choice)), "the cost is as defined");
    check(near(best[n].terms.total(), best[n].cost), "the cost is the sum of its terms");
    if (n == 0) continue;
    check(best[n - 1].cost <= best[n].cost + 1e-7, "the best come first");
    check(best[n - 1].choice != best[n].choice, "labellings differ");
  }
  if (!best.empty()) {
    check(result.lower_bound <= best[0].cost, "nothing costs less than the bound");
    check(!result.optimal || result.lower_bound == best[0].cost, "the optimum is at its bound");
  }

  const Enumeration all(problem, cost, must_choose, borrowed);
  if (!all.complete) return;
  if (all.feasible.empty()) {
    check(best.empty(), "nothing is found where nothing is feasible");
    return;
  }
  const Real least = all.feasible[0].cost;
  const Real bound = total(result.lower_bound);
  check(bound <= least || near(bound, least), "the bound is below the optimum");
  if (result.optimal) check(!best.empty() && near(total(best[0].cost), least), "the optimum");
  if (result.statistics.fates[static_cast<std::size_t>(ivdtool::Fate::kBudget)] == 0) {
    check(best.size() == std::min(problem.n_best, all.feasible.size()), "as many as there are");
    for (std::size_t n = 0; n < best.size(); ++n) {
      check(near(total(best[n].cost), all.feasible[n].cost), "the n best");
    }
  }
  if (best.empty()) return;
  check(result.margins.size() == (problem.with_margins ? problem.channels : 0), "all margins");
  for (std::size_t i = 0; i < result.margins.size(); ++i) {
    if (!result.optimal) {
      check(!result.margins[i].proved, "no margin is proved of what may not be the best");
      continue;
    }
    const Real without = all.least_other(i, best[0].choice[i]);
    const Real claimed = total(best[0].cost + result.margins[i].value);
    check(claimed <= without || near(claimed, without), "a margin is a lower bound");
    if (result.margins[i].proved) {
      check(near(claimed, without) || without < claimed, "a proved margin is reached");
    }
  }
}

// What holds of every answer.
template <typename... Rest>
void check_answer(const Problem& problem, const Rest&... rest) {
  try {
    check_or_throw(problem, rest...);
  } catch (const std::logic_error&) {
    print(problem);
    throw;
  }
}

// The mean skeleton must tell v1 from v5.
bool has_anchors(const Problem& problem) {
  return problem.u(problem.first_anchor) != problem.u(problem.second_anchor);
}

void fuzz_paper(Bytes& in) {
  const Problem problem(in);
  if (!has_anchors(problem)) return;
  const ivdtool::PaperProblem arguments{problem.lists(), problem.skeleton.data(),
                                        problem.first_anchor, problem.second_anchor,
                                        problem.squared};
  const auto result = ivdtool::search_paper(arguments, problem.n_best, problem.with_margins);
  check_answer(problem, result, paper_cost, true, false, problem.squared);
}

void fuzz_exhaustive(Bytes& in) {
  Problem problem(in);
  if (!has_anchors(problem)) return;
  problem.n_best = 1;
  problem.with_margins = false;
  const ivdtool::PaperProblem arguments{problem.lists(), problem.skeleton.data(),
                                        problem.first_anchor, problem.second_anchor,
                                        problem.squared};
  constexpr std::int64_t kMost = 1000;  // more than are enumerated here
  const auto result = ivdtool::search_exhaustive(arguments, kMost);
  check_answer(problem, result, paper_cost, true, false, problem.squared);
}

void fuzz_paper_order(Bytes& in) {
  Problem problem(in);
  if (!has_anchors(problem)) return;
  if (!problem.wild) {
    for (double& cost : problem.missing_costs) cost /= 1000.0;  // units of the distance v1 - v5
  }
  const ivdtool::PaperOrderProblem arguments{problem.anchored(), problem.first_anchor,
                                             problem.second_anchor, problem.squared};
  const auto result = ivdtool::search_paper_order(arguments, problem.n_best, problem.with_margins);
  check_answer(problem, result, paper_order_cost, false, false, problem.squared);
}

void fuzz_first_last(Bytes& in) {
  const Problem problem(in);
  const ivdtool::FirstLastProblem arguments{problem.anchored(), problem.score_weight_mm2,
                                            problem.limits()};
  const auto result = ivdtool::search_first_last(arguments, problem.n_best, problem.with_margins);
  check_answer(problem, result, first_last_cost, false, false, false);
}

void fuzz_ls_chain(Bytes& in) {
  const auto node_budget = static_cast<std::int64_t>(in.choose({2000.0, 1.0, 5.0, 30.0}));
  const std::size_t tree_size = in.upto(20);
  const auto without =
      static_cast<ivdtool::Shortcut>(in.upto(static_cast<std::size_t>(ivdtool::Shortcut::kSort)));
  const Problem problem(in);
  const ivdtool::LsChainProblem arguments{problem.lists(),
                                          problem.skeleton.data(),
                                          problem.disc_weights.data(),
                                          problem.pair_weights.data(),
                                          problem.missing_costs.data(),
                                          problem.score_weight_mm2,
                                          problem.chain_weight,
                                          problem.limits(),
                                          problem.min_gap,
                                          problem.min_present,
                                          problem.max_present,
                                          problem.rules.data(),
                                          problem.borrow_mm2,
                                          problem.offset_change_mm2,
                                          problem.offset_start_mm2};
  const auto result = ivdtool::search_ls_chain(
      arguments, {problem.n_best, node_budget, problem.with_margins, tree_size, without});
  check(result.nodes <= node_budget, "the budget is kept");
  const std::vector<ivdtool::TreeNode>& tree = result.statistics.tree;
  check(tree.size() <= tree_size, "the tree is as small as asked for");
  for (std::size_t i = 1; i < tree.size(); ++i) {
    check(tree[i].parent >= 0 && tree[i].parent < static_cast<std::int64_t>(i), "parents first");
  }
  const bool borrowed = std::isfinite(problem.borrow_mm2);
  check_answer(problem, result, ls_chain_cost, false, borrowed, false);
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  Bytes in(data, size);
  constexpr void (*kTargets[])(Bytes&) = {fuzz_heatmaps,    fuzz_candidates, fuzz_paper,
                                          fuzz_paper_order, fuzz_first_last, fuzz_ls_chain,
                                          fuzz_exhaustive};
  try {
    kTargets[in.upto(std::size(kTargets) - 1)](in);
  } catch (const std::logic_error& broken) {
    std::fprintf(stderr, "does not hold: %s\n", broken.what());
    std::abort();
  }
  return 0;
}
