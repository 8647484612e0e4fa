#include "candidates.hpp"

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>

namespace ivdtool {
namespace {

// Largest value of a row, NaN ignored. Eight independent lanes let the compiler use vector maxima
// without relaxed floating-point rules.
float row_maximum(const float* row, std::size_t size) {
  constexpr std::size_t kLanes = 8;
  constexpr float kLowest = -std::numeric_limits<float>::infinity();
  std::array<float, kLanes> lanes{};
  lanes.fill(kLowest);
  std::size_t col = 0;
  for (; col + kLanes <= size; col += kLanes) {
    for (std::size_t lane = 0; lane < kLanes; ++lane) {
      lanes[lane] = row[col + lane] > lanes[lane] ? row[col + lane] : lanes[lane];
    }
  }
  float largest = *std::max_element(lanes.begin(), lanes.end());
  for (; col < size; ++col) largest = row[col] > largest ? row[col] : largest;
  return largest;
}

struct Peak {
  float value;
  std::size_t row;
  std::size_t col;
};

// A total order: value, then raster order.
bool better(const Peak& a, const Peak& b) {
  if (a.value != b.value) return a.value > b.value;
  return a.row != b.row ? a.row < b.row : a.col < b.col;
}

// Is cell (row, col) above all its neighbours? Both comparisons are false for a NaN neighbour.
bool is_peak(const float* heatmap, HeatmapShape shape, std::size_t row, std::size_t col) {
  const float value = heatmap[row * shape.cols + col];
  const std::size_t last_row = std::min(row + 1, shape.rows - 1);
  const std::size_t last_col = std::min(col + 1, shape.cols - 1);
  for (std::size_t r = row > 0 ? row - 1 : 0; r <= last_row; ++r) {
    for (std::size_t c = col > 0 ? col - 1 : 0; c <= last_col; ++c) {
      const float other = heatmap[r * shape.cols + c];
      const bool earlier = r < row || (r == row && c < col);
      if (earlier ? other >= value : other > value) return false;
    }
  }
  return true;
}

// The `capacity` best peaks of value >= floor, best first.
std::vector<Peak> find_peaks(const float* heatmap, HeatmapShape shape,
                             const std::vector<float>& row_maxima, float floor,
                             std::size_t capacity) {
  std::vector<Peak> peaks;  // a heap, the worst peak in front
  for (std::size_t row = 0; row < shape.rows; ++row) {
    if (!(row_maxima[row] >= floor)) continue;
    for (std::size_t col = 0; col < shape.cols; ++col) {
      const float value = heatmap[row * shape.cols + col];
      if (!(value >= floor) || !is_peak(heatmap, shape, row, col)) continue;
      const Peak peak{value, row, col};
      if (peaks.size() == capacity) {
        if (!better(peak, peaks.front())) continue;
        std::pop_heap(peaks.begin(), peaks.end(), better);
        peaks.back() = peak;
      } else {
        peaks.push_back(peak);
      }
      std::push_heap(peaks.begin(), peaks.end(), better);
      if (peaks.size() == capacity) floor = std::max(floor, peaks.front().value);
    }
  }
  std::sort_heap(peaks.begin(), peaks.end(), better);
  return peaks;
}

// Solve the symmetric positive definite system A x = b in place by Cholesky's method; A and b are
// overwritten, x is left in b. False if A is singular to working precision.
template <std::size_t N>
bool solve(std::array<std::array<double, N>, N>& a, std::array<double, N>& b) {
  for (std::size_t j = 0; j < N; ++j) {
    const double diagonal = a[j][j];
    for (std::size_t k = 0; k < j; ++k) a[j][j] -= a[j][k] * a[j][k];
    if (!(a[j][j] > 1e-10 * diagonal)) return false;
    a[j][j] = std::sqrt(a[j][j]);
    for (std::size_t i = j + 1; i < N; ++i) {
      for (std::size_t k = 0; k < j; ++k) a[i][j] -= a[i][k] * a[j][k];
      a[i][j] /= a[j][j];
    }
  }
  for (std::size_t i = 0; i < N; ++i) {
    for (std::size_t k = 0; k < i; ++k) b[i] -= a[i][k] * b[k];
    b[i] /= a[i][i];
  }
  for (std::size_t i = N; i-- > 0;) {
    for (std::size_t k = i + 1; k < N; ++k) b[i] -= a[k][i] * b[k];
    b[i] /= a[i][i];
  }
  return true;
}

// Least-squares fit of a quadratic to log(value) around a peak: exact for a Gaussian.
class PeakFit {
 public:
  PeakFit(const float* heatmap, HeatmapShape shape, const Peak& peak)
      : heatmap_(heatmap), shape_(shape), peak_(peak) {
    add(0, 0);
    for (int ring = 1; ring <= kReach; ++ring) {
      for (int dr = -ring; dr <= ring; ++dr) {
        for (int dc = -ring; dc <= ring; ++dc) {
          if (std::max(std::abs(dr), std::abs(dc)) == ring && belongs(dr, dc, ring)) add(dr, dc);
        }
      }
    }
  }

  // The fitted maximum, or the peak cell where the fit has none within one cell of it.
  Candidate candidate() {
    Candidate found{static_cast<double>(peak_.row), static_cast<double>(peak_.col),
                    static_cast<double>(peak_.value)};
    if (!solve(normal_, right_)) return found;
    // value = ... + b dr + c dc + d dr^2 + e dr dc + f dc^2
    const auto [a, b, c, d, e, f] = right_;
    const double determinant = 4.0 * d * f - e * e;
    if (!(d < 0.0 && determinant > 0.0)) return found;  // not concave
    const double dr = (e * c - 2.0 * f * b) / determinant;
    const double dc = (e * b - 2.0 * d * c) / determinant;
    if (!std::isfinite(dr) || !std::isfinite(dc)) return found;
    found.row += std::clamp(dr, -1.0, 1.0);
    found.col += std::clamp(dc, -1.0, 1.0);
    return found;
  }

 private:
  static constexpr int kReach = 3;  // a 7 x 7 window
  // Lower cells tell more of noise and of other peaks than of this one.
  static constexpr float kLeastShare = 0.15F;

  bool& used(int dr, int dc) {
    return used_[static_cast<std::size_t>(dr + kReach)][static_cast<std::size_t>(dc + kReach)];
  }

  // In the frame, and downhill all the way from the peak: an uphill step enters another peak.
  bool belongs(int dr, int dc, int ring) {
    if (!in_frame(dr, dc)) return false;
    const int inner_dr = dr == ring ? dr - 1 : dr == -ring ? dr + 1 : dr;
    const int inner_dc = dc == ring ? dc - 1 : dc == -ring ? dc + 1 : dc;
    return used(inner_dr, inner_dc) && value(dr, dc) <= value(inner_dr, inner_dc) &&
           value(dr, dc) > kLeastShare * peak_.value;
  }

  bool in_frame(int dr, int dc) const {
    const auto row = static_cast<std::ptrdiff_t>(peak_.row) + dr;
    const auto col = static_cast<std::ptrdiff_t>(peak_.col) + dc;
    return row >= 0 && col >= 0 && row < static_cast<std::ptrdiff_t>(shape_.rows) &&
           col < static_cast<std::ptrdiff_t>(shape_.cols);
  }

  float value(int dr, int dc) const {
    const auto row = static_cast<std::ptrdiff_t>(peak_.row) + dr;
    const auto col = static_cast<std::ptrdiff_t>(peak_.col) + dc;
    return heatmap_[row * static_cast<std::ptrdiff_t>(shape_.cols) + col];
  }

  // Noise of the value is noise / value of its logarithm, hence the weight value^2.
  void add(int dr, int dc) {
    used(dr, dc) = true;
    const double y = dr;
    const double x = dc;
    const auto v = static_cast<double>(value(dr, dc));
    const std::array<double, 6> terms = {1.0, y, x, y * y, y * x, x * x};
    for (std::size_t i = 0; i < terms.size(); ++i) {
      for (std::size_t j = 0; j < terms.size(); ++j) normal_[i][j] += v * v * terms[i] * terms[j];
      right_[i] += v * v * terms[i] * std::log(v);
    }
  }

  const float* heatmap_;
  HeatmapShape shape_;
  Peak peak_;
  std::array<std::array<bool, 2 * kReach + 1>, 2 * kReach + 1> used_{};
  std::array<std::array<double, 6>, 6> normal_{};
  std::array<double, 6> right_{};
};

}  // namespace

void find_candidates(const float* heatmap, HeatmapShape shape, const CandidateRules& rules,
                     std::vector<Candidate>& candidates) {
  std::vector<float> row_maxima(shape.rows);
  for (std::size_t row = 0; row < shape.rows; ++row) {
    row_maxima[row] = row_maximum(heatmap + row * shape.cols, shape.cols);
  }
  const float largest = *std::max_element(row_maxima.begin(), row_maxima.end());
  const float floor = std::max(rules.threshold, rules.threshold_relative * largest);
  if (!(largest >= floor)) return;

  // No two peaks touch, so at most one lies in each 2 x 2 block a kept peak reaches: this many of
  // the best peaks are sure to hold the max_candidates survivors. In double, for any radius.
  double capacity = static_cast<double>(rules.max_candidates);
  capacity *= std::floor(rules.radius_mm / rules.spacing_mm[0]) + 1.0;
  capacity *= std::floor(rules.radius_mm / rules.spacing_mm[1]) + 1.0;
  capacity = std::min(capacity, static_cast<double>(shape.rows * shape.cols));

  std::vector<Peak> kept;
  for (const Peak& peak :
       find_peaks(heatmap, shape, row_maxima, floor, static_cast<std::size_t>(capacity))) {
    const auto suppresses = [&](const Peak& other) {
      const double dr =
          (static_cast<double>(peak.row) - static_cast<double>(other.row)) * rules.spacing_mm[0];
      const double dc =
          (static_cast<double>(peak.col) - static_cast<double>(other.col)) * rules.spacing_mm[1];
      return dr * dr + dc * dc <= rules.radius_mm * rules.radius_mm;
    };
    if (std::any_of(kept.begin(), kept.end(), suppresses)) continue;
    kept.push_back(peak);
    candidates.push_back(PeakFit(heatmap, shape, peak).candidate());
    if (kept.size() == rules.max_candidates) break;
  }
}

}  // namespace ivdtool
