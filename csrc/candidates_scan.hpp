#ifndef IVDTOOL_CANDIDATES_SCAN_HPP_
#define IVDTOOL_CANDIDATES_SCAN_HPP_

#include <cstddef>

#include "heatmaps.hpp"

namespace ivdtool {

struct RowPeaks {
  std::size_t count = 0;
  bool reached = false;  // whether any value of the row is >= floor
};

// The part of the peak search that touches every value, for one kind of processor. All kinds give
// the same answers.
struct PeakScan {
  // The first row from `row` on that holds a value >= floor, or shape.rows.
  std::size_t (*find_row)(const float* heatmap, HeatmapShape shape, std::size_t row, float floor);

  // Write the columns of a row's peaks of value >= floor. Both neighbouring rows must exist:
  // outside the heatmap, as rows of -infinity. columns: (cols).
  RowPeaks (*find_peaks)(const float* above, const float* row, const float* below, std::size_t cols,
                         float floor, std::size_t* columns);
};

// The fastest scan this processor can do, or the one that any can.
PeakScan choose_peak_scan(bool portable);

}  // namespace ivdtool

#endif  // IVDTOOL_CANDIDATES_SCAN_HPP_
