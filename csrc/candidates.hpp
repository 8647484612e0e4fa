#ifndef IVDTOOL_CANDIDATES_HPP_
#define IVDTOOL_CANDIDATES_HPP_

#include <array>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "heatmaps.hpp"

namespace ivdtool {

struct CandidateRules {
  float threshold;           // least value of a peak, > 0
  float threshold_relative;  // least value of a peak as a share of the channel's largest, 0..1
  double radius_mm;          // of two peaks this close, the lower one is dropped
  std::array<double, 2> spacing_mm;  // size of a heatmap cell, row and col
  std::size_t max_candidates;
};

struct Candidate {
  double row;  // heatmap cells
  double col;
  double score;  // the heatmap value at the peak cell
};

// Append the candidates of every heatmap to `candidates`, best score first.
//
// A peak is larger than its eight neighbours, where equal values count as falling in raster order
// and NaN as lower than any number. Peaks are suppressed greedily by score, then in raster order.
//
// heatmaps: (channels, rows, cols); offsets: (channels + 1), where each channel's candidates begin;
// portable: leave out instructions that not every processor has; the answer is the same.
void find_candidates(const float* heatmaps, std::size_t channels, HeatmapShape shape,
                     const CandidateRules& rules, bool portable, std::vector<Candidate>& candidates,
                     std::int64_t* offsets);

}  // namespace ivdtool

#endif  // IVDTOOL_CANDIDATES_HPP_
