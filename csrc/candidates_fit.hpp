#ifndef IVDTOOL_CANDIDATES_FIT_HPP_
#define IVDTOOL_CANDIDATES_FIT_HPP_

#include <cstddef>

#include "heatmaps.hpp"

namespace ivdtool {

struct PeakOffset {
  double row = 0.0;  // cells
  double col = 0.0;
};

using PeakFit = PeakOffset (*)(const float* heatmap, HeatmapShape shape, std::size_t row,
                               std::size_t col);

// A function that tells where the maximum lies relative to a peak cell of value > 0: that of the
// quadratic fitted by least squares to log(value) around it, exact for a Gaussian, and at most one
// cell away. Zero where the fit has no maximum.
//
// The fastest one this processor can do, or the one that any can; the answers are the same.
PeakFit choose_peak_fit(bool portable);

}  // namespace ivdtool

#endif  // IVDTOOL_CANDIDATES_FIT_HPP_
