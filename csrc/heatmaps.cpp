#include "heatmaps.hpp"

#include <algorithm>
#include <cmath>
#include <vector>

namespace ivdtool {
namespace {

// The cells of one axis that a Gaussian reaches, and its value at each.
struct Profile {
  std::size_t first = 0;
  std::vector<float> values;

  void set(double centre, double sigma, std::size_t size) {
    const double reach = kDrawRadiusSigma * sigma;
    // Clamped before the cast: a far-away centre does not fit an integer.
    const double last_cell = static_cast<double>(size) - 1.0;
    const double low = std::max(0.0, std::ceil(centre - reach));
    const double high = std::min(last_cell, std::floor(centre + reach));
    values.clear();
    if (low > high) return;  // out of frame
    first = static_cast<std::size_t>(low);
    const auto last = static_cast<std::size_t>(high);
    for (std::size_t cell = first; cell <= last; ++cell) {
      const double z = (static_cast<double>(cell) - centre) / sigma;
      values.push_back(static_cast<float>(std::exp(-0.5 * z * z)));
    }
  }
};

}  // namespace

void draw_heatmaps(const double* centres, const bool* visible, std::size_t count,
                   HeatmapShape shape, const double sigma[2], float* heatmaps) {
  const std::size_t cells = shape.rows * shape.cols;
  std::fill(heatmaps, heatmaps + count * cells, 0.0F);
  Profile down;
  Profile across;
  for (std::size_t i = 0; i < count; ++i) {
    const double row = centres[2 * i];
    const double col = centres[2 * i + 1];
    if (!visible[i] || !std::isfinite(row) || !std::isfinite(col)) continue;
    down.set(row, sigma[0], shape.rows);
    across.set(col, sigma[1], shape.cols);
    float* line = heatmaps + i * cells + down.first * shape.cols + across.first;
    for (const float down_value : down.values) {
      for (std::size_t j = 0; j < across.values.size(); ++j) {
        line[j] = down_value * across.values[j];
      }
      line += shape.cols;
    }
  }
}

}  // namespace ivdtool
