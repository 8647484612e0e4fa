#include "heatmaps.hpp"

#include <algorithm>
#include <cmath>
#include <cstdint>

#ifdef __SSE2__
#include <emmintrin.h>
#endif

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
    values.resize(static_cast<std::size_t>(high) - first + 1);
    // From one cell to the next the value changes by a ratio, and the ratio by a constant factor:
    // three exponentials per axis. In double, n steps are off by n^2 / 2 * 1e-16.
    const double precision = 1.0 / (sigma * sigma);
    const double distance = low - centre;
    const double z = distance / sigma;
    double value = std::exp(-0.5 * z * z);
    double ratio = std::exp(-(distance + 0.5) * precision);
    const double factor = std::exp(-precision);
    for (float& cell : values) {
      cell = static_cast<float>(value);
      value *= ratio;
      ratio *= factor;
    }
  }
};

class Brush {
 public:
  Brush(const Gaussians& gaussians, HeatmapShape shape) : gaussians_(gaussians), shape_(shape) {}

  // Draw one Gaussian into a heatmap of zeros; return the cells it covers.
  HeatmapBuffer::Window draw(std::size_t index, float* heatmap) {
    const double row = gaussians_.centres[2 * index];
    const double col = gaussians_.centres[2 * index + 1];
    if (!gaussians_.visible[index] || !std::isfinite(row) || !std::isfinite(col)) return {};
    down_.set(row, gaussians_.sigma[0], shape_.rows);
    across_.set(col, gaussians_.sigma[1], shape_.cols);
    const std::size_t width = across_.values.size();
    float* line = heatmap + down_.first * shape_.cols + across_.first;
    for (const float down_value : down_.values) {
      for (std::size_t j = 0; j < width; ++j) line[j] = down_value * across_.values[j];
      line += shape_.cols;
    }
    return {down_.first, down_.values.size(), across_.first, width};
  }

 private:
  const Gaussians& gaussians_;
  HeatmapShape shape_;
  Profile down_;
  Profile across_;
};

}  // namespace

void clear_heatmaps(float* heatmaps, std::size_t size) {
#ifdef __SSE2__
  // What does not fit the last-level cache is written past it: nothing is read in order to be
  // overwritten. Smaller arrays are wanted in the cache.
  constexpr std::size_t kCacheCells = (32U << 20U) / sizeof(float);
  if (size >= kCacheCells) {
    constexpr std::size_t kLine = 16;  // cells of a cache line
    const std::size_t misaligned = reinterpret_cast<std::uintptr_t>(heatmaps) / sizeof(float);
    const std::size_t head = (kLine - misaligned % kLine) % kLine;
    std::fill(heatmaps, heatmaps + head, 0.0F);
    std::size_t cell = head;
    for (; cell + kLine <= size; cell += kLine) {
      for (std::size_t i = 0; i < kLine; i += 4) {
        _mm_stream_ps(heatmaps + cell + i, _mm_setzero_ps());
      }
    }
    _mm_sfence();
    std::fill(heatmaps + cell, heatmaps + size, 0.0F);
    return;
  }
#endif
  std::fill(heatmaps, heatmaps + size, 0.0F);
}

void draw_heatmaps(const Gaussians& gaussians, std::size_t count, HeatmapShape shape,
                   float* heatmaps) {
  Brush brush(gaussians, shape);
  for (std::size_t i = 0; i < count; ++i) brush.draw(i, heatmaps + i * shape.rows * shape.cols);
}

void HeatmapBuffer::draw(const Gaussians& gaussians) {
  Brush brush(gaussians, shape_);
  for (std::size_t i = 0; i < drawn_.size(); ++i) {
    float* heatmap = values_.data() + i * shape_.rows * shape_.cols;
    const Window& last = drawn_[i];
    for (std::size_t row = last.row; row < last.row + last.rows; ++row) {
      std::fill_n(heatmap + row * shape_.cols + last.col, last.cols, 0.0F);
    }
    drawn_[i] = brush.draw(i, heatmap);
  }
}

}  // namespace ivdtool
