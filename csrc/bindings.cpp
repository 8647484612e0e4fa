#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <array>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <utility>
#include <vector>

#include "candidates.hpp"
#include "heatmaps.hpp"
#include "search.hpp"
#include "search_anchored.hpp"
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

ivdtool::Gaussians gaussians(const DoubleArray& points, const BoolArray& visible, Pair sigma) {
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

py::tuple find_candidates(const FloatArray& heatmaps, double threshold, double threshold_relative,
                          double radius_mm, Pair spacing_mm, py::ssize_t max_candidates,
                          bool portable) {
  require(heatmaps.ndim() == 3, "heatmaps must be (V, H, W)");
  require(heatmaps.shape(1) > 0 && heatmaps.shape(2) > 0, "heatmaps must not be empty");
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
    *position++ = candidate.row;
    *position++ = candidate.col;
    *score++ = candidate.score;
  }
  return py::make_tuple(positions, scores, offsets);
}

void require_finite(const DoubleArray& array, const char* message) {
  const double* values = array.data();
  for (py::ssize_t i = 0; i < array.size(); ++i) require(std::isfinite(values[i]), message);
}

// View candidate lists, after checking all that indexing them relies on.
ivdtool::CandidateLists candidate_lists(const DoubleArray& positions_mm, const DoubleArray& scores,
                                        const IndexArray& offsets, const DoubleArray& template_mm) {
  require(template_mm.ndim() == 2 && template_mm.shape(0) > 0 && template_mm.shape(1) == 2,
          "template_mm must be (V, 2), V > 0");
  require(offsets.ndim() == 1 && offsets.shape(0) == template_mm.shape(0) + 1,
          "offsets must be (V + 1)");
  require(positions_mm.ndim() == 2 && positions_mm.shape(1) == 2, "positions_mm must be (N, 2)");
  require(scores.ndim() == 1 && scores.shape(0) == positions_mm.shape(0), "scores must be (N)");
  const std::int64_t* offset = offsets.data();
  const py::ssize_t channels = template_mm.shape(0);
  require(offset[0] == 0 && offset[channels] == positions_mm.shape(0),
          "offsets must run from 0 to N");
  for (py::ssize_t i = 0; i < channels; ++i) {
    require(offset[i] <= offset[i + 1], "offsets must not decrease");
  }
  require_finite(positions_mm, "positions_mm must be finite");
  require_finite(scores, "scores must be finite");
  require_finite(template_mm, "template_mm must be finite");
  return {static_cast<std::size_t>(channels), offset, positions_mm.data(), scores.data()};
}

// The fields of ivdtool.search.Result.
py::tuple as_tuple(const ivdtool::SearchResult& result, py::ssize_t channels) {
  const auto count = static_cast<py::ssize_t>(result.best.size());
  IndexArray choices({count, channels});
  DoubleArray costs(count);
  DoubleArray terms({count, py::ssize_t{5}});
  DoubleArray multipliers({count, py::ssize_t{2}});
  auto choice = choices.mutable_unchecked<2>();
  auto cost = costs.mutable_unchecked<1>();
  auto term = terms.mutable_unchecked<2>();
  auto multiplier = multipliers.mutable_unchecked<2>();
  for (py::ssize_t i = 0; i < count; ++i) {
    const ivdtool::Labelling& labelling = result.best[static_cast<std::size_t>(i)];
    for (py::ssize_t j = 0; j < channels; ++j) {
      choice(i, j) = labelling.choice[static_cast<std::size_t>(j)];
    }
    cost(i) = labelling.cost;
    term(i, 0) = labelling.terms.shape;
    term(i, 1) = labelling.terms.chain;
    term(i, 2) = labelling.terms.score;
    term(i, 3) = labelling.terms.missing;
    term(i, 4) = labelling.terms.offset;
    multiplier(i, 0) = labelling.multiplier.row;
    multiplier(i, 1) = labelling.multiplier.col;
  }
  const auto margin_count = static_cast<py::ssize_t>(result.margins.size());
  DoubleArray margins(margin_count);
  BoolArray proved(margin_count);
  for (py::ssize_t i = 0; i < margin_count; ++i) {
    margins.mutable_at(i) = result.margins[static_cast<std::size_t>(i)].value;
    proved.mutable_at(i) = result.margins[static_cast<std::size_t>(i)].proved;
  }
  const ivdtool::Statistics& statistics = result.statistics;
  IndexArray fates(static_cast<py::ssize_t>(ivdtool::kFates));
  for (std::size_t i = 0; i < ivdtool::kFates; ++i) {
    fates.mutable_at(static_cast<py::ssize_t>(i)) = statistics.fates[i];
  }
  const auto improved = static_cast<py::ssize_t>(statistics.improvements.size());
  DoubleArray improvements({improved, py::ssize_t{2}});
  for (py::ssize_t i = 0; i < improved; ++i) {
    const auto& [nodes, best] = statistics.improvements[static_cast<std::size_t>(i)];
    improvements.mutable_at(i, 0) = static_cast<double>(nodes);
    improvements.mutable_at(i, 1) = best;
  }
  const auto size = static_cast<py::ssize_t>(statistics.tree.size());
  IndexArray tree({size, py::ssize_t{4}});
  DoubleArray bounds(size);
  for (py::ssize_t i = 0; i < size; ++i) {
    const ivdtool::TreeNode& node = statistics.tree[static_cast<std::size_t>(i)];
    tree.mutable_at(i, 0) = node.parent;
    tree.mutable_at(i, 1) = node.channel;
    tree.mutable_at(i, 2) = node.candidate;
    tree.mutable_at(i, 3) = static_cast<std::int64_t>(node.fate);
    bounds.mutable_at(i) = node.bound;
  }
  return py::make_tuple(choices, costs, terms, multipliers, margins, proved, result.nodes,
                        result.optimal, result.lower_bound, fates, statistics.depth, improvements,
                        tree, bounds);
}

// The channels of v1 and v5, once they can give a scale.
std::pair<std::size_t, std::size_t> anchor_channels(std::pair<py::ssize_t, py::ssize_t> anchors,
                                                    const DoubleArray& template_mm) {
  const py::ssize_t channels = template_mm.shape(0);
  require(anchors.first >= 0 && anchors.first < channels && anchors.second >= 0 &&
              anchors.second < channels && anchors.first != anchors.second,
          "anchors must be two different channels");
  const double* u = template_mm.data();
  require(u[2 * anchors.first] != u[2 * anchors.second] ||
              u[2 * anchors.first + 1] != u[2 * anchors.second + 1],
          "the anchors must differ in template_mm");
  return {static_cast<std::size_t>(anchors.first), static_cast<std::size_t>(anchors.second)};
}

void require_costs(const DoubleArray& missing_costs, py::ssize_t channels) {
  require(missing_costs.ndim() == 1 && missing_costs.shape(0) == channels,
          "missing_costs must be (V)");
  require_finite(missing_costs, "missing_costs must be finite");
  for (py::ssize_t i = 0; i < channels; ++i) {
    require(missing_costs.at(i) >= 0.0, "missing_costs must not be negative");
  }
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

bool is_price(double value) { return std::isfinite(value) && value >= 0.0; }

py::tuple search_paper(const DoubleArray& positions_mm, const DoubleArray& scores,
                       const IndexArray& offsets, const DoubleArray& template_mm,
                       std::pair<py::ssize_t, py::ssize_t> anchors, bool squared,
                       py::ssize_t n_best, bool with_margins) {
  const ivdtool::CandidateLists lists = candidate_lists(positions_mm, scores, offsets, template_mm);
  const auto [first, second] = anchor_channels(anchors, template_mm);
  require(n_best > 0, "n_best must be positive");
  const ivdtool::PaperProblem problem{lists, template_mm.data(), first, second, squared};
  ivdtool::SearchResult result;
  {
    const py::gil_scoped_release release;  // nothing below touches Python objects
    result = ivdtool::search_paper(problem, static_cast<std::size_t>(n_best), with_margins);
  }
  return as_tuple(result, template_mm.shape(0));
}

py::tuple search_paper_order(const DoubleArray& positions_mm, const DoubleArray& scores,
                             const IndexArray& offsets, const DoubleArray& template_mm,
                             const DoubleArray& missing_costs,
                             std::pair<py::ssize_t, py::ssize_t> anchors, bool squared,
                             double min_gap, py::ssize_t n_best, bool with_margins) {
  const ivdtool::CandidateLists lists = candidate_lists(positions_mm, scores, offsets, template_mm);
  const auto [first, second] = anchor_channels(anchors, template_mm);
  require_costs(missing_costs, template_mm.shape(0));
  require(is_price(min_gap), "min_gap must not be negative");
  require(n_best > 0, "n_best must be positive");
  const ivdtool::PaperOrderProblem problem{
      {lists, template_mm.data(), missing_costs.data(), min_gap}, first, second, squared};
  ivdtool::SearchResult result;
  {
    const py::gil_scoped_release release;  // nothing below touches Python objects
    result = ivdtool::search_paper_order(problem, static_cast<std::size_t>(n_best), with_margins);
  }
  return as_tuple(result, template_mm.shape(0));
}

py::tuple search_first_last(const DoubleArray& positions_mm, const DoubleArray& scores,
                            const IndexArray& offsets, const DoubleArray& template_mm,
                            const DoubleArray& missing_costs, double score_weight,
                            double max_rotation_rad, double min_scale, double max_scale,
                            double min_gap, py::ssize_t n_best, bool with_margins) {
  const ivdtool::CandidateLists lists = candidate_lists(positions_mm, scores, offsets, template_mm);
  require_costs(missing_costs, template_mm.shape(0));
  require(is_price(score_weight), "score_weight must not be negative");
  require(is_price(min_gap), "min_gap must not be negative");
  require(n_best > 0, "n_best must be positive");
  const ivdtool::FirstLastProblem problem{
      {lists, template_mm.data(), missing_costs.data(), min_gap},
      score_weight,
      similarity_limits(max_rotation_rad, min_scale, max_scale)};
  ivdtool::SearchResult result;
  {
    const py::gil_scoped_release release;  // nothing below touches Python objects
    result = ivdtool::search_first_last(problem, static_cast<std::size_t>(n_best), with_margins);
  }
  return as_tuple(result, template_mm.shape(0));
}

py::tuple search_ls_chain(const DoubleArray& positions_mm, const DoubleArray& scores,
                          const IndexArray& offsets, const DoubleArray& template_mm,
                          const DoubleArray& disc_weights, const DoubleArray& pair_weights,
                          const DoubleArray& missing_costs, double score_weight,
                          double chain_weight, double max_rotation_rad, double min_scale,
                          double max_scale, double min_gap, py::ssize_t min_present,
                          double borrow_cost, double offset_change_cost, double offset_start_cost,
                          py::ssize_t n_best, std::int64_t node_budget, bool with_margins,
                          py::ssize_t tree_size) {
  const ivdtool::CandidateLists lists = candidate_lists(positions_mm, scores, offsets, template_mm);
  const py::ssize_t channels = template_mm.shape(0);
  require(disc_weights.ndim() == 1 && disc_weights.shape(0) == channels,
          "disc_weights must be (V)");
  require(pair_weights.ndim() == 2 && pair_weights.shape(0) == channels &&
              pair_weights.shape(1) == channels,
          "pair_weights must be (V, V)");
  require_costs(missing_costs, channels);
  require_finite(disc_weights, "disc_weights must be finite");
  require_finite(pair_weights, "pair_weights must be finite");
  for (py::ssize_t i = 0; i < channels; ++i) {
    require(disc_weights.at(i) > 0.0, "disc_weights must be positive");
    for (py::ssize_t j = 0; j < channels; ++j) {
      require(pair_weights.at(i, j) >= 0.0, "pair_weights must not be negative");
    }
  }
  require(is_price(score_weight), "score_weight must not be negative");
  require(is_price(chain_weight), "chain_weight must not be negative");
  require(is_price(min_gap), "min_gap must not be negative");
  require(min_present > 0, "min_present must be positive");
  require(borrow_cost >= 0.0, "borrow_cost must not be negative");
  require(is_price(offset_change_cost), "offset_change_cost must not be negative");
  require(is_price(offset_start_cost), "offset_start_cost must not be negative");
  require(n_best > 0, "n_best must be positive");
  require(node_budget > 0, "node_budget must be positive");
  require(tree_size >= 0, "tree_size must not be negative");

  const ivdtool::LsChainProblem problem{lists,
                                        template_mm.data(),
                                        disc_weights.data(),
                                        pair_weights.data(),
                                        missing_costs.data(),
                                        score_weight,
                                        chain_weight,
                                        similarity_limits(max_rotation_rad, min_scale, max_scale),
                                        min_gap,
                                        static_cast<std::size_t>(min_present),
                                        borrow_cost,
                                        offset_change_cost,
                                        offset_start_cost};
  const ivdtool::LsChainEffort effort{static_cast<std::size_t>(n_best), node_budget, with_margins,
                                      static_cast<std::size_t>(tree_size)};
  ivdtool::SearchResult result;
  {
    const py::gil_scoped_release release;  // nothing below touches Python objects
    result = ivdtool::search_ls_chain(problem, effort);
  }
  return as_tuple(result, channels);
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
  m.def("find_candidates", &find_candidates, py::arg("heatmaps").noconvert(), "threshold"_a,
        "threshold_relative"_a, "radius_mm"_a, "spacing_mm"_a, "max_candidates"_a, "portable"_a,
        "Find the peaks of every channel: positions in cells, scores, offsets by channel.");
  m.def("search_paper", &search_paper, py::arg("positions_mm").noconvert(),
        py::arg("scores").noconvert(), py::arg("offsets").noconvert(),
        py::arg("template_mm").noconvert(), "anchors"_a, "squared"_a, "n_best"_a, "with_margins"_a,
        "Minimise equation 3 of paper 1.");
  m.def("search_paper_order", &search_paper_order, py::arg("positions_mm").noconvert(),
        py::arg("scores").noconvert(), py::arg("offsets").noconvert(),
        py::arg("template_mm").noconvert(), py::arg("missing_costs").noconvert(), "anchors"_a,
        "squared"_a, "min_gap"_a, "n_best"_a, "with_margins"_a,
        "Minimise equation 3 over discs in order, some of which may be missing.");
  m.def("search_first_last", &search_first_last, py::arg("positions_mm").noconvert(),
        py::arg("scores").noconvert(), py::arg("offsets").noconvert(),
        py::arg("template_mm").noconvert(), py::arg("missing_costs").noconvert(), "score_weight"_a,
        "max_rotation_rad"_a, "min_scale"_a, "max_scale"_a, "min_gap"_a, "n_best"_a,
        "with_margins"_a, "Lay the skeleton over the first and the last present disc.");
  m.def("search_ls_chain", &search_ls_chain, py::arg("positions_mm").noconvert(),
        py::arg("scores").noconvert(), py::arg("offsets").noconvert(),
        py::arg("template_mm").noconvert(), py::arg("disc_weights").noconvert(),
        py::arg("pair_weights").noconvert(), py::arg("missing_costs").noconvert(), "score_weight"_a,
        "chain_weight"_a, "max_rotation_rad"_a, "min_scale"_a, "max_scale"_a, "min_gap"_a,
        "min_present"_a, "borrow_cost"_a, "offset_change_cost"_a, "offset_start_cost"_a, "n_best"_a,
        "node_budget"_a, "with_margins"_a, "tree_size"_a,
        "Minimise the least-squares cost of a skeleton with missing discs.");
}
