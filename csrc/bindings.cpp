#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "candidates.hpp"
#include "heatmaps.hpp"
#include "search.hpp"
#include "search_anchored.hpp"
#include "search_exhaustive.hpp"
#include "search_ls_chain.hpp"
#include "search_paper.hpp"

namespace py = pybind11;
using namespace py::literals;

namespace {

// Every array type that crosses the boundary; bound with noconvert(), so any other dtype or layout
// is a TypeError.
using FloatArray = py::array_t<float, py::array::c_style>;
using DoubleArray = py::array_t<double, py::array::c_style>;
using BoolArray = py::array_t<bool, py::array::c_style>;
using IndexArray = py::array_t<std::int64_t, py::array::c_style>;

void require(bool holds, const char* message) {
  if (!holds) throw std::invalid_argument(message);
}

using Pair = std::pair<double, double>;

// A view into bytes has the right dtype and order wherever it begins; the kernels' loads and stores
// do not.
template <typename... Arrays>
void require_aligned(const Arrays&... arrays) {
  constexpr int kAligned = py::detail::npy_api::NPY_ARRAY_ALIGNED_;
  require((py::detail::check_flags(arrays.ptr(), kAligned) && ...),
          "arrays must be aligned to their items");
}

ivdtool::Gaussians gaussians(const DoubleArray& points, const BoolArray& visible, Pair sigma) {
  require_aligned(points);
  require(points.ndim() == 3 && points.shape(2) == 2, "points must be (B, V, 2)");
  require(visible.ndim() == 2 && visible.shape(0) == points.shape(0) &&
              visible.shape(1) == points.shape(1),
          "visible must be (B, V), as points");
  require(std::isfinite(sigma.first) && std::isfinite(sigma.second) && sigma.first > 0.0 &&
              sigma.second > 0.0,
          "sigma must be finite and positive");
  return {points.data(), visible.data(), {sigma.first, sigma.second}};
}

void draw_heatmaps(const DoubleArray& points, const BoolArray& visible, Pair sigma,
                   FloatArray heatmaps, bool clear) {
  const ivdtool::Gaussians drawn = gaussians(points, visible, sigma);
  require_aligned(heatmaps);
  require(heatmaps.ndim() == 4 && heatmaps.shape(0) == points.shape(0) &&
              heatmaps.shape(1) == points.shape(1),
          "heatmaps must be (B, V, H, W), as points");
  require(heatmaps.shape(2) > 0 && heatmaps.shape(3) > 0, "heatmaps must not be empty");
  const auto count = static_cast<std::size_t>(visible.size());
  const auto size = static_cast<std::size_t>(heatmaps.size());
  const ivdtool::HeatmapShape shape{static_cast<std::size_t>(heatmaps.shape(2)),
                                    static_cast<std::size_t>(heatmaps.shape(3))};
  float* heatmap_data = heatmaps.mutable_data();
  {
    const py::gil_scoped_release release;  // nothing below touches Python objects
    if (clear) ivdtool::clear_heatmaps(heatmap_data, size);
    ivdtool::draw_heatmaps(drawn, count, shape, heatmap_data);
  }
}

// An ivdtool::HeatmapBuffer with the shape that NumPy sees.
class HeatmapBuffer {
 public:
  HeatmapBuffer(py::ssize_t batch, py::ssize_t channels, py::ssize_t rows, py::ssize_t cols)
      : shape_(checked(batch, channels, rows, cols)),
        buffer_(static_cast<std::size_t>(batch * channels),
                {static_cast<std::size_t>(rows), static_cast<std::size_t>(cols)}) {}

  void draw(const DoubleArray& points, const BoolArray& visible, Pair sigma) {
    const ivdtool::Gaussians drawn = gaussians(points, visible, sigma);
    require(points.shape(0) == shape_[0] && points.shape(1) == shape_[1],
            "points must be (B, V, 2), as the buffer");
    const py::gil_scoped_release release;  // nothing below touches Python objects
    buffer_.draw(drawn);
  }

  // Read-only, since a value written from outside would never be cleared.
  static FloatArray values(const py::object& self) {
    const auto& buffer = self.cast<const HeatmapBuffer&>();
    FloatArray view(buffer.shape_, buffer.buffer_.values(), self);
    view.attr("flags").attr("writeable") = false;
    return view;
  }

 private:
  using Shape = std::array<py::ssize_t, 4>;

  static Shape checked(py::ssize_t batch, py::ssize_t channels, py::ssize_t rows,
                       py::ssize_t cols) {
    require(batch >= 0 && channels >= 0 && rows > 0 && cols > 0, "the shape must be positive");
    constexpr double kMostCells = 1e15;  // no machine has as many; their number fits an integer
    const double cells = static_cast<double>(batch) * static_cast<double>(channels) *
                         static_cast<double>(rows) * static_cast<double>(cols);
    require(cells < kMostCells, "the shape must fit into memory");
    return {batch, channels, rows, cols};
  }

  Shape shape_;
  ivdtool::HeatmapBuffer buffer_;
};

py::tuple find_candidates(const FloatArray& heatmaps, py::ssize_t stride, double threshold,
                          double threshold_relative, double radius_mm, Pair spacing_mm,
                          py::ssize_t max_candidates, bool portable) {
  require_aligned(heatmaps);
  require(heatmaps.ndim() == 3, "heatmaps must be (V, H, W)");
  require(heatmaps.shape(1) > 0 && heatmaps.shape(2) > 0, "heatmaps must not be empty");
  require(stride > 0, "stride must be positive");
  require(std::isfinite(threshold) && threshold > 0.0, "threshold must be positive");
  require(threshold_relative >= 0.0 && threshold_relative <= 1.0,
          "threshold_relative must lie in 0..1");
  require(std::isfinite(radius_mm) && radius_mm >= 0.0, "radius_mm must not be negative");
  require(std::isfinite(spacing_mm.first) && std::isfinite(spacing_mm.second) &&
              spacing_mm.first > 0.0 && spacing_mm.second > 0.0,
          "spacing_mm must be positive");
  require(max_candidates > 0, "max_candidates must be positive");

  const auto channels = static_cast<std::size_t>(heatmaps.shape(0));
  const ivdtool::HeatmapShape shape{static_cast<std::size_t>(heatmaps.shape(1)),
                                    static_cast<std::size_t>(heatmaps.shape(2))};
  const ivdtool::CandidateRules rules{static_cast<float>(threshold),
                                      static_cast<float>(threshold_relative),
                                      radius_mm,
                                      {spacing_mm.first, spacing_mm.second},
                                      static_cast<std::size_t>(max_candidates)};
  const float* heatmap_data = heatmaps.data();
  IndexArray offsets(heatmaps.shape(0) + 1);
  std::int64_t* offset_data = offsets.mutable_data();
  std::vector<ivdtool::Candidate> candidates;
  {
    const py::gil_scoped_release release;  // nothing below touches Python objects
    ivdtool::find_candidates(heatmap_data, channels, shape, rules, portable, candidates,
                             offset_data);
  }

  const auto count = static_cast<py::ssize_t>(candidates.size());
  DoubleArray positions({count, py::ssize_t{2}});
  DoubleArray scores(count);
  double* position = positions.mutable_data();
  double* score = scores.mutable_data();
  for (const ivdtool::Candidate& candidate : candidates) {
    *position++ = ivdtool::cell_to_pixel(candidate.row, static_cast<double>(stride));
    *position++ = ivdtool::cell_to_pixel(candidate.col, static_cast<double>(stride));
    *score++ = candidate.score;
  }
  return py::make_tuple(positions, scores, offsets);
}

template <typename Holds>
void require_all(const DoubleArray& array, const Holds& holds, const char* message) {
  require(std::all_of(array.data(), array.data() + array.size(), holds), message);
}

bool is_finite(double value) { return std::isfinite(value); }
bool is_price(double value) { return std::isfinite(value) && value >= 0.0; }
bool is_weight(double value) { return std::isfinite(value) && value > 0.0; }

// All that indexing candidate lists relies on.
void check_candidates(const DoubleArray& positions, const DoubleArray& scores,
                      const IndexArray& offsets, py::ssize_t channels) {
  require_aligned(positions, scores, offsets);
  require(positions.ndim() == 2 && positions.shape(1) == 2, "positions must be (N, 2)");
  require(scores.ndim() == 1 && scores.shape(0) == positions.shape(0),
          "scores must be (N), as positions");
  require(channels >= 0 && offsets.ndim() == 1 && offsets.shape(0) == channels + 1,
          "offsets must be (V + 1), for V channels");
  const std::int64_t* offset = offsets.data();
  require(offset[0] == 0 && offset[channels] == positions.shape(0) &&
              std::is_sorted(offset, offset + channels + 1),
          "offsets must rise from 0 to N");
  require_all(positions, is_finite, "positions must be finite");
  require_all(scores, is_finite, "scores must be finite");
}

// Checked again for every search: arrays may have changed since ivdtool.candidates saw them.
ivdtool::CandidateLists candidate_lists(const DoubleArray& positions_mm, const DoubleArray& scores,
                                        const IndexArray& offsets, const DoubleArray& mean_mm) {
  require_aligned(mean_mm);
  require(mean_mm.ndim() == 2 && mean_mm.shape(0) > 0 && mean_mm.shape(1) == 2,
          "mean_mm must be (V, 2), V > 0");
  require_all(mean_mm, is_finite, "mean_mm must be finite");
  const py::ssize_t channels = mean_mm.shape(0);
  check_candidates(positions_mm, scores, offsets, channels);
  return {static_cast<std::size_t>(channels), offsets.data(), positions_mm.data(), scores.data()};
}

template <typename T>
py::ssize_t count_of(const std::vector<T>& values) {
  return static_cast<py::ssize_t>(values.size());
}

// Call set(item, row of the array) for every item of a vector; the array has a row per item.
template <typename Array, typename T, typename Set>
Array rows_of(const std::vector<T>& items, py::ssize_t cols, const Set& set) {
  Array array({count_of(items), cols});
  auto* row = array.mutable_data();
  for (const T& item : items) {
    set(item, row);
    row += cols;
  }
  return array;
}

// An ivdtool::SearchResult whose parts become arrays when they are asked for.
class SearchResult {
 public:
  SearchResult(ivdtool::SearchResult result, py::ssize_t channels)
      : result_(std::move(result)), channels_(channels) {}

  IndexArray choices() const {
    return rows_of<IndexArray>(result_.best, channels_, [](const auto& labelling, auto* row) {
      std::copy(labelling.choice.begin(), labelling.choice.end(), row);
    });
  }
  DoubleArray costs() const {
    DoubleArray costs(count_of(result_.best));
    std::transform(result_.best.begin(), result_.best.end(), costs.mutable_data(),
                   [](const auto& labelling) { return labelling.cost; });
    return costs;
  }
  DoubleArray terms() const {
    return rows_of<DoubleArray>(result_.best, 5, [](const auto& labelling, double* row) {
      const ivdtool::CostTerms& terms = labelling.terms;
      for (const double term : {terms.shape, terms.chain, terms.score, terms.missing, terms.offset})
        *row++ = term;
    });
  }
  DoubleArray multipliers() const {
    return rows_of<DoubleArray>(result_.best, 2, [](const auto& labelling, double* row) {
      row[0] = labelling.multiplier.row;
      row[1] = labelling.multiplier.col;
    });
  }
  DoubleArray margins() const {
    DoubleArray margins(count_of(result_.margins));
    std::transform(result_.margins.begin(), result_.margins.end(), margins.mutable_data(),
                   [](const ivdtool::Margin& margin) { return margin.value; });
    return margins;
  }
  BoolArray margins_proved() const {
    BoolArray proved(count_of(result_.margins));
    std::transform(result_.margins.begin(), result_.margins.end(), proved.mutable_data(),
                   [](const ivdtool::Margin& margin) { return margin.proved; });
    return proved;
  }
  std::int64_t nodes() const { return result_.nodes; }
  bool optimal() const { return result_.optimal; }
  double lower_bound() const { return result_.lower_bound; }
  IndexArray fates() const {
    const auto& fates = result_.statistics.fates;
    return IndexArray(static_cast<py::ssize_t>(fates.size()), fates.data());
  }
  std::int64_t depth() const { return result_.statistics.depth; }
  DoubleArray improvements() const {
    return rows_of<DoubleArray>(result_.statistics.improvements, 2,
                                [](const auto& improvement, double* row) {
                                  row[0] = static_cast<double>(improvement.first);
                                  row[1] = improvement.second;
                                });
  }
  IndexArray tree() const {
    return rows_of<IndexArray>(result_.statistics.tree, 4,
                               [](const ivdtool::TreeNode& node, std::int64_t* row) {
                                 row[0] = node.parent;
                                 row[1] = node.channel;
                                 row[2] = node.candidate;
                                 row[3] = static_cast<std::int64_t>(node.fate);
                               });
  }
  DoubleArray bounds() const {
    const std::vector<ivdtool::TreeNode>& tree = result_.statistics.tree;
    DoubleArray bounds(count_of(tree));
    std::transform(tree.begin(), tree.end(), bounds.mutable_data(),
                   [](const ivdtool::TreeNode& node) { return node.bound; });
    return bounds;
  }

 private:
  ivdtool::SearchResult result_;
  py::ssize_t channels_;
};

// Solve without the GIL: solve() must not touch Python objects.
template <typename Solve>
SearchResult solved(const DoubleArray& mean_mm, const Solve& solve) {
  const py::ssize_t channels = mean_mm.shape(0);
  const py::gil_scoped_release release;
  return {solve(), channels};
}

// The channels of v1 and v5, once they can give a scale.
std::pair<std::size_t, std::size_t> anchor_channels(std::pair<py::ssize_t, py::ssize_t> anchors,
                                                    const DoubleArray& mean_mm) {
  const py::ssize_t channels = mean_mm.shape(0);
  require(anchors.first >= 0 && anchors.first < channels && anchors.second >= 0 &&
              anchors.second < channels && anchors.first != anchors.second,
          "anchors must be two different channels");
  const double* u = mean_mm.data();
  require(u[2 * anchors.first] != u[2 * anchors.second] ||
              u[2 * anchors.first + 1] != u[2 * anchors.second + 1],
          "the anchors must differ in mean_mm");
  return {static_cast<std::size_t>(anchors.first), static_cast<std::size_t>(anchors.second)};
}

void require_costs(const DoubleArray& missing_costs, py::ssize_t channels) {
  require_aligned(missing_costs);
  require(missing_costs.ndim() == 1 && missing_costs.shape(0) == channels,
          "missing_costs must be (V)");
  require_all(missing_costs, is_price, "missing_costs must be finite and not negative");
}

ivdtool::SimilarityLimits similarity_limits(double max_rotation_rad, double min_scale,
                                            double max_scale) {
  constexpr double kHalfTurn = 3.14159265358979323846;
  require(max_rotation_rad >= 0.0 && max_rotation_rad <= kHalfTurn,
          "max_rotation_rad must lie in 0..pi");
  require(std::isfinite(min_scale) && min_scale >= 0.0 && max_scale > 0.0 && min_scale <= max_scale,
          "scales must satisfy 0 <= min_scale <= max_scale, max_scale > 0");
  return {max_rotation_rad, min_scale, max_scale};
}

SearchResult search_paper(const DoubleArray& positions_mm, const DoubleArray& scores,
                          const IndexArray& offsets, const DoubleArray& mean_mm,
                          std::pair<py::ssize_t, py::ssize_t> anchors, bool squared,
                          py::ssize_t n_best, bool with_margins) {
  const ivdtool::CandidateLists lists = candidate_lists(positions_mm, scores, offsets, mean_mm);
  const auto [first, second] = anchor_channels(anchors, mean_mm);
  require(n_best > 0, "n_best must be positive");
  const ivdtool::PaperProblem problem{lists, mean_mm.data(), first, second, squared};
  return solved(mean_mm, [&] {
    return ivdtool::search_paper(problem, static_cast<std::size_t>(n_best), with_margins);
  });
}

SearchResult search_exhaustive(const DoubleArray& positions_mm, const DoubleArray& scores,
                               const IndexArray& offsets, const DoubleArray& mean_mm,
                               std::pair<py::ssize_t, py::ssize_t> anchors, bool squared,
                               std::int64_t most) {
  const ivdtool::CandidateLists lists = candidate_lists(positions_mm, scores, offsets, mean_mm);
  const auto [first, second] = anchor_channels(anchors, mean_mm);
  require(most > 0, "most must be positive");
  const ivdtool::PaperProblem problem{lists, mean_mm.data(), first, second, squared};
  return solved(mean_mm, [&] { return ivdtool::search_exhaustive(problem, most); });
}

SearchResult search_paper_order(const DoubleArray& positions_mm, const DoubleArray& scores,
                                const IndexArray& offsets, const DoubleArray& mean_mm,
                                const DoubleArray& missing_costs,
                                std::pair<py::ssize_t, py::ssize_t> anchors, bool squared,
                                double min_gap, py::ssize_t n_best, bool with_margins) {
  const ivdtool::CandidateLists lists = candidate_lists(positions_mm, scores, offsets, mean_mm);
  const auto [first, second] = anchor_channels(anchors, mean_mm);
  require_costs(missing_costs, mean_mm.shape(0));
  require(is_price(min_gap), "min_gap must not be negative");
  require(n_best > 0, "n_best must be positive");
  const ivdtool::PaperOrderProblem problem{
      {lists, mean_mm.data(), missing_costs.data(), min_gap}, first, second, squared};
  return solved(mean_mm, [&] {
    return ivdtool::search_paper_order(problem, static_cast<std::size_t>(n_best), with_margins);
  });
}

SearchResult search_first_last(const DoubleArray& positions_mm, const DoubleArray& scores,
                               const IndexArray& offsets, const DoubleArray& mean_mm,
                               const DoubleArray& missing_costs, double score_weight_mm2,
                               double max_rotation_rad, double min_scale, double max_scale,
                               double min_gap, py::ssize_t n_best, bool with_margins) {
  const ivdtool::CandidateLists lists = candidate_lists(positions_mm, scores, offsets, mean_mm);
  require_costs(missing_costs, mean_mm.shape(0));
  require(is_price(score_weight_mm2), "score_weight_mm2 must not be negative");
  require(is_price(min_gap), "min_gap must not be negative");
  require(n_best > 0, "n_best must be positive");
  const ivdtool::FirstLastProblem problem{
      {lists, mean_mm.data(), missing_costs.data(), min_gap},
      score_weight_mm2,
      similarity_limits(max_rotation_rad, min_scale, max_scale)};
  return solved(mean_mm, [&] {
    return ivdtool::search_first_last(problem, static_cast<std::size_t>(n_best), with_margins);
  });
}

ivdtool::Shortcut shortcut(const std::string& name) {
  if (name.empty()) return ivdtool::Shortcut::kNone;
  if (name == "chain") return ivdtool::Shortcut::kChain;
  if (name == "shape") return ivdtool::Shortcut::kShape;
  if (name == "seed") return ivdtool::Shortcut::kSeed;
  require(name == "sort", "without must be chain, shape, seed, sort or nothing");
  return ivdtool::Shortcut::kSort;
}

SearchResult search_ls_chain(const DoubleArray& positions_mm, const DoubleArray& scores,
                             const IndexArray& offsets, const DoubleArray& mean_mm,
                             const DoubleArray& disc_weights, const DoubleArray& pair_weights,
                             const DoubleArray& missing_costs, double score_weight_mm2,
                             double chain_weight, double max_rotation_rad, double min_scale,
                             double max_scale, double min_gap, py::ssize_t min_present,
                             py::ssize_t max_present, const IndexArray& rules, double borrow_mm2,
                             double offset_change_mm2, double offset_start_mm2, py::ssize_t n_best,
                             std::int64_t node_budget, bool with_margins, py::ssize_t tree_size,
                             const std::string& without) {
  const ivdtool::CandidateLists lists = candidate_lists(positions_mm, scores, offsets, mean_mm);
  const py::ssize_t channels = mean_mm.shape(0);
  require_aligned(disc_weights, pair_weights, rules);
  require(disc_weights.ndim() == 1 && disc_weights.shape(0) == channels,
          "disc_weights must be (V)");
  require(pair_weights.ndim() == 2 && pair_weights.shape(0) == channels &&
              pair_weights.shape(1) == channels,
          "pair_weights must be (V, V)");
  require_costs(missing_costs, channels);
  require_all(disc_weights, is_weight, "disc_weights must be finite and positive");
  require_all(pair_weights, is_price, "pair_weights must be finite and not negative");
  require(is_price(score_weight_mm2), "score_weight_mm2 must not be negative");
  require(is_price(chain_weight), "chain_weight must not be negative");
  require(is_price(min_gap), "min_gap must not be negative");
  require(min_present > 0, "min_present must be positive");
  require(max_present >= min_present, "max_present must not be less than min_present");
  require(rules.ndim() == 1 && rules.shape(0) == channels, "rules must be (V)");
  require(std::all_of(rules.data(), rules.data() + channels,
                      [](std::int64_t rule) {
                        return rule >= 0 && rule < static_cast<std::int64_t>(ivdtool::kRules);
                      }),
          "rules must be 0..3");
  require(borrow_mm2 >= 0.0, "borrow_mm2 must not be negative");
  require(is_price(offset_change_mm2), "offset_change_mm2 must not be negative");
  require(is_price(offset_start_mm2), "offset_start_mm2 must not be negative");
  require(n_best > 0, "n_best must be positive");
  require(node_budget > 0, "node_budget must be positive");
  require(tree_size >= 0, "tree_size must not be negative");

  const ivdtool::LsChainProblem problem{lists,
                                        mean_mm.data(),
                                        disc_weights.data(),
                                        pair_weights.data(),
                                        missing_costs.data(),
                                        score_weight_mm2,
                                        chain_weight,
                                        similarity_limits(max_rotation_rad, min_scale, max_scale),
                                        min_gap,
                                        static_cast<std::size_t>(min_present),
                                        static_cast<std::size_t>(max_present),
                                        rules.data(),
                                        borrow_mm2,
                                        offset_change_mm2,
                                        offset_start_mm2};
  const ivdtool::LsChainEffort effort{static_cast<std::size_t>(n_best), node_budget, with_margins,
                                      static_cast<std::size_t>(tree_size), shortcut(without)};
  return solved(mean_mm, [&] { return ivdtool::search_ls_chain(problem, effort); });
}

}  // namespace

PYBIND11_MODULE(_core, m, py::mod_gil_not_used()) {
  m.doc() =
      "Compiled kernels; use ivdtool.heatmaps, ivdtool.candidates and ivdtool.search instead.";
  m.attr("__version__") = IVDTOOL_VERSION;
#ifdef NDEBUG
  m.attr("__debug_build__") = false;
#else
  m.attr("__debug_build__") = true;
#endif

  m.def("draw_heatmaps", &draw_heatmaps, py::arg("points").noconvert(),
        py::arg("visible").noconvert(), "sigma"_a, py::arg("heatmaps").noconvert(), "clear"_a,
        "Draw one Gaussian per point, (B, V, 2) cells, into (B, V, H, W) zeros or cleared values.");
  py::class_<HeatmapBuffer>(m, "HeatmapBuffer", "Heatmaps that are drawn again and again.")
      .def(py::init<py::ssize_t, py::ssize_t, py::ssize_t, py::ssize_t>(), "batch"_a, "channels"_a,
           "rows"_a, "cols"_a)
      .def("draw", &HeatmapBuffer::draw, py::arg("points").noconvert(),
           py::arg("visible").noconvert(), "sigma"_a, "Replace what the last call drew.")
      .def_property_readonly("values", &HeatmapBuffer::values, "(B, V, H, W), read-only.");
  m.def("find_candidates", &find_candidates, py::arg("heatmaps").noconvert(), "stride"_a,
        "threshold"_a, "threshold_relative"_a, "radius_mm"_a, "spacing_mm"_a, "max_candidates"_a,
        "portable"_a,
        "Find the peaks of every channel: positions in image pixels, scores, offsets by channel.");
  m.def("check_candidates", &check_candidates, py::arg("positions").noconvert(),
        py::arg("scores").noconvert(), py::arg("offsets").noconvert(), "channels"_a,
        "Raise ValueError unless candidate lists are fit to be searched.");
  py::class_<SearchResult>(m, "SearchResult", "The n best labellings, and how sure they are.")
      .def_property_readonly("choices", &SearchResult::choices, "(n, V), -1 where missing.")
      .def_property_readonly("costs", &SearchResult::costs, "(n,)")
      .def_property_readonly("terms", &SearchResult::terms,
                             "(n, 5) shape, chain, score, missing, offset.")
      .def_property_readonly("multipliers", &SearchResult::multipliers,
                             "(n, 2) real and imaginary part of k.")
      .def_property_readonly("margins", &SearchResult::margins, "(V,), or (0,) if not asked for.")
      .def_property_readonly("margins_proved", &SearchResult::margins_proved, "As margins.")
      .def_property_readonly("nodes", &SearchResult::nodes)
      .def_property_readonly("optimal", &SearchResult::optimal)
      .def_property_readonly("lower_bound", &SearchResult::lower_bound)
      .def_property_readonly("fates", &SearchResult::fates, "(6,) number of nodes by fate.")
      .def_property_readonly("depth", &SearchResult::depth)
      .def_property_readonly("improvements", &SearchResult::improvements, "(n, 2) nodes, cost.")
      .def_property_readonly("tree", &SearchResult::tree,
                             "(n, 4) parent, channel, candidate, fate.")
      .def_property_readonly("bounds", &SearchResult::bounds, "As tree.");
  m.def("search_paper", &search_paper, py::arg("positions_mm").noconvert(),
        py::arg("scores").noconvert(), py::arg("offsets").noconvert(),
        py::arg("mean_mm").noconvert(), "anchors"_a, "squared"_a, "n_best"_a, "with_margins"_a,
        "Minimise equation 3 of paper 1.");
  m.def("search_exhaustive", &search_exhaustive, py::arg("positions_mm").noconvert(),
        py::arg("scores").noconvert(), py::arg("offsets").noconvert(),
        py::arg("mean_mm").noconvert(), "anchors"_a, "squared"_a, "most"_a,
        "Minimise equation 3 by visiting the first `most` combinations.");
  m.def("search_paper_order", &search_paper_order, py::arg("positions_mm").noconvert(),
        py::arg("scores").noconvert(), py::arg("offsets").noconvert(),
        py::arg("mean_mm").noconvert(), py::arg("missing_costs").noconvert(), "anchors"_a,
        "squared"_a, "min_gap"_a, "n_best"_a, "with_margins"_a,
        "Minimise equation 3 over discs in order, some of which may be missing.");
  m.def("search_first_last", &search_first_last, py::arg("positions_mm").noconvert(),
        py::arg("scores").noconvert(), py::arg("offsets").noconvert(),
        py::arg("mean_mm").noconvert(), py::arg("missing_costs").noconvert(), "score_weight_mm2"_a,
        "max_rotation_rad"_a, "min_scale"_a, "max_scale"_a, "min_gap"_a, "n_best"_a,
        "with_margins"_a, "Lay the skeleton over the first and the last present disc.");
  m.def("search_ls_chain", &search_ls_chain, py::arg("positions_mm").noconvert(),
        py::arg("scores").noconvert(), py::arg("offsets").noconvert(),
        py::arg("mean_mm").noconvert(), py::arg("disc_weights").noconvert(),
        py::arg("pair_weights").noconvert(), py::arg("missing_costs").noconvert(),
        "score_weight_mm2"_a, "chain_weight"_a, "max_rotation_rad"_a, "min_scale"_a, "max_scale"_a,
        "min_gap"_a, "min_present"_a, "max_present"_a, py::arg("rules").noconvert(), "borrow_mm2"_a,
        "offset_change_mm2"_a, "offset_start_mm2"_a, "n_best"_a, "node_budget"_a, "with_margins"_a,
        "tree_size"_a, "without"_a = "",
        "Minimise the least-squares cost of a skeleton with missing discs.");
}
