#include "candidates.hpp"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <limits>

#include "candidates_fit.hpp"
#include "candidates_scan.hpp"

namespace ivdtool {
namespace {

struct Peak {
  float value;
  std::size_t row;
  std::size_t col;
};

// A total order: value, then raster order. Not a function, which would not be inlined.
constexpr auto worse = [](const Peak& a, const Peak& b) {
  if (a.value != b.value) return a.value < b.value;
  return a.row != b.row ? a.row > b.row : a.col > b.col;
};

// No two peaks touch, so at most one lies in each 2 x 2 block a kept peak reaches: this many of the
// best peaks are sure to hold the max_candidates survivors.
std::size_t sufficient_peaks(const CandidateRules& rules, HeatmapShape shape) {
  auto count = static_cast<double>(rules.max_candidates);  // in double, for any radius
  count *= std::floor(rules.radius_mm / rules.spacing_mm[0]) + 1.0;
  count *= std::floor(rules.radius_mm / rules.spacing_mm[1]) + 1.0;
  return static_cast<std::size_t>(std::min(count, static_cast<double>(shape.rows * shape.cols)));
}

class PeakFinder {
 public:
  PeakFinder(HeatmapShape shape, const CandidateRules& rules, bool portable)
      : shape_(shape),
        rules_(rules),
        scan_(choose_peak_scan(portable)),
        capacity_(sufficient_peaks(rules, shape)),
        outside_(shape.cols, -std::numeric_limits<float>::infinity()),
        columns_(shape.cols) {}

  // The best peaks of a heatmap, as a heap with the best in front, in one pass over the values. The
  // largest value is a peak itself, so the thresholds only rise as peaks are found: nothing passed
  // by could have been kept.
  std::vector<Peak>& find(const float* heatmap) {
    peaks_.clear();
    float largest = -std::numeric_limits<float>::infinity();
    floor_ = rules_.threshold;
    bool reached = false;  // the floor, by the row before: then most likely by this one as well
    for (std::size_t row = 0; row < shape_.rows; ++row) {
      if (!reached) row = scan_.find_row(heatmap, shape_, row, floor_);
      if (row == shape_.rows) break;
      const float* values = heatmap + row * shape_.cols;
      const float* above = row > 0 ? values - shape_.cols : outside_.data();
      const float* below = row + 1 < shape_.rows ? values + shape_.cols : outside_.data();
      const RowPeaks found =
          scan_.find_peaks(above, values, below, shape_.cols, floor_, columns_.data());
      reached = found.reached;
      for (std::size_t i = 0; i < found.count; ++i) {
        const std::size_t col = columns_[i];
        peaks_.push_back({values[col], row, col});
        largest = std::max(largest, values[col]);
      }
      floor_ = std::max(floor_, rules_.threshold_relative * largest);
      if (peaks_.size() >= 2 * capacity_) drop_worst();
    }
    // Some were found before the thresholds rose.
    const auto too_low = [this](const Peak& peak) { return peak.value < floor_; };
    peaks_.erase(std::remove_if(peaks_.begin(), peaks_.end(), too_low), peaks_.end());
    std::make_heap(peaks_.begin(), peaks_.end(), worse);
    return peaks_;
  }

 private:
  // Keep the best `capacity_`; the worst of them is a threshold for all that follow. Dropping as
  // many as are kept makes this cheap per peak.
  void drop_worst() {
    const auto last = peaks_.begin() + static_cast<std::ptrdiff_t>(capacity_) - 1;
    std::nth_element(peaks_.begin(), last, peaks_.end(),
                     [](const Peak& a, const Peak& b) { return worse(b, a); });
    peaks_.erase(last + 1, peaks_.end());
    floor_ = std::max(floor_, peaks_.back().value);
  }

  HeatmapShape shape_;
  const CandidateRules& rules_;
  PeakScan scan_;
  std::size_t capacity_;
  std::vector<float> outside_;  // the row above the first and below the last
  std::vector<std::size_t> columns_;
  float floor_ = 0.0F;
  std::vector<Peak> peaks_;
};

}  // namespace

void find_candidates(const float* heatmaps, std::size_t channels, HeatmapShape shape,
                     const CandidateRules& rules, bool portable, std::vector<Candidate>& candidates,
                     std::int64_t* offsets) {
  PeakFinder finder(shape, rules, portable);
  const PeakFit fit_peak = choose_peak_fit(portable);
  std::vector<Peak> kept;
  offsets[0] = 0;
  for (std::size_t channel = 0; channel < channels; ++channel) {
    const float* heatmap = heatmaps + channel * shape.rows * shape.cols;
    std::vector<Peak>& peaks = finder.find(heatmap);
    kept.clear();
    while (!peaks.empty() && kept.size() < rules.max_candidates) {
      std::pop_heap(peaks.begin(), peaks.end(), worse);
      const Peak peak = peaks.back();
      peaks.pop_back();
      const auto suppresses = [&](const Peak& other) {
        const double dr =
            (static_cast<double>(peak.row) - static_cast<double>(other.row)) * rules.spacing_mm[0];
        const double dc =
            (static_cast<double>(peak.col) - static_cast<double>(other.col)) * rules.spacing_mm[1];
        return dr * dr + dc * dc <= rules.radius_mm * rules.radius_mm;
      };
      if (std::any_of(kept.begin(), kept.end(), suppresses)) continue;
      kept.push_back(peak);
      const PeakOffset offset = fit_peak(heatmap, shape, peak.row, peak.col);
      candidates.push_back({static_cast<double>(peak.row) + offset.row,
                            static_cast<double>(peak.col) + offset.col,
                            static_cast<double>(peak.value)});
    }
    offsets[channel + 1] = static_cast<std::int64_t>(candidates.size());
  }
}

}  // namespace ivdtool
