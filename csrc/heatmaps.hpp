#ifndef IVDTOOL_HEATMAPS_HPP_
#define IVDTOOL_HEATMAPS_HPP_

#include <cstddef>

namespace ivdtool {

// A Gaussian is drawn out to this many sigma along each axis: exp(-4^2 / 2) = 3.4e-4 is cut off.
constexpr double kDrawRadiusSigma = 4.0;

struct HeatmapShape {
  std::size_t rows;
  std::size_t cols;
};

// Draw one Gaussian of peak value 1 per heatmap: exp(-dr^2 / 2 sr^2 - dc^2 / 2 sc^2).
//
// centres: (count, 2) row, col in heatmap cells; visible: (count); sigma: row, col in cells, > 0;
// heatmaps: (count, rows, cols), overwritten. An invisible or non-finite centre gives zeros.
void draw_heatmaps(const double* centres, const bool* visible, std::size_t count,
                   HeatmapShape shape, const double sigma[2], float* heatmaps);

}  // namespace ivdtool

#endif  // IVDTOOL_HEATMAPS_HPP_
