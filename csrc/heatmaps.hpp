#ifndef IVDTOOL_HEATMAPS_HPP_
#define IVDTOOL_HEATMAPS_HPP_

#include <array>
#include <cstddef>
#include <vector>

namespace ivdtool {

// A Gaussian is drawn out to this many sigma along each axis: exp(-4^2 / 2) = 3.4e-4 is cut off.
constexpr double kDrawRadiusSigma = 4.0;

struct HeatmapShape {
  std::size_t rows;
  std::size_t cols;
};

// The image pixel where a heatmap cell lies along an axis; both have their centres at integers.
inline double cell_to_pixel(double cell, double stride) { return (cell + 0.5) * stride - 0.5; }

// One Gaussian of peak value 1 per heatmap: exp(-dr^2 / 2 sr^2 - dc^2 / 2 sc^2).
struct Gaussians {
  const double* centres;        // (count, 2) row, col in heatmap cells
  const bool* visible;          // (count); an invisible or non-finite centre gives zeros
  std::array<double, 2> sigma;  // row, col in cells, > 0
};

void clear_heatmaps(float* heatmaps, std::size_t size);

// Draw into heatmaps of zeros, (count, rows, cols).
void draw_heatmaps(const Gaussians& gaussians, std::size_t count, HeatmapShape shape,
                   float* heatmaps);

// Heatmaps that are drawn again and again: only what the last call drew is cleared.
class HeatmapBuffer {
 public:
  HeatmapBuffer(std::size_t count, HeatmapShape shape)
      : shape_(shape), values_(count * shape.rows * shape.cols), drawn_(count) {}

  const float* values() const { return values_.data(); }  // (count, rows, cols)
  void draw(const Gaussians& gaussians);

  struct Window {
    std::size_t row = 0;
    std::size_t rows = 0;
    std::size_t col = 0;
    std::size_t cols = 0;
  };

 private:
  HeatmapShape shape_;
  std::vector<float> values_;
  std::vector<Window> drawn_;
};

}  // namespace ivdtool

#endif  // IVDTOOL_HEATMAPS_HPP_
