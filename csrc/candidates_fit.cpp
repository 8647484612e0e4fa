#include "candidates_fit.hpp"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <cstring>

#include "candidates_simd.hpp"

// Inline everything a function calls, so that all of it is compiled for the same processor.
#ifdef __GNUC__
#define IVDTOOL_FLATTEN __attribute__((flatten))
#else
#define IVDTOOL_FLATTEN
#endif

// Unroll a short loop: indices become constants, and conditions selections without branches. Clang
// does so unasked.
#if defined(__GNUC__) && !defined(__clang__)
#define IVDTOOL_UNROLL _Pragma("GCC unroll 64")
#else
#define IVDTOOL_UNROLL
#endif

namespace ivdtool {
namespace {

// The window of cells around a peak. Its rows are padded to a whole number of vectors; the layout
// lets the compiler work on all columns at once.
constexpr int kReach = 3;
constexpr std::size_t kSide = 2 * kReach + 1;
constexpr std::size_t kLanes = kSide + 1;
template <typename T>
using Row = std::array<T, kLanes>;
template <typename T>
using Window = std::array<T, kSide * kLanes>;

// Lower cells tell more of noise and of other peaks than of this one.
constexpr float kLeastShare = 0.15F;

constexpr std::size_t index_of(int dr, int dc) {
  return static_cast<std::size_t>(dr + kReach) * kLanes + static_cast<std::size_t>(dc + kReach);
}
constexpr std::size_t kCentre = index_of(0, 0);

// A cell and its neighbour one step nearer to the peak.
struct Step {
  std::size_t cell;
  std::size_t inner;
};

constexpr int inward(int d, int ring) {
  if (d == ring) return d - 1;
  return d == -ring ? d + 1 : d;
}

// All cells but the peak, from the inside out.
constexpr std::array<Step, kSide * kSide - 1> outward_steps() {
  std::array<Step, kSide * kSide - 1> steps{};
  std::size_t count = 0;
  for (int ring = 1; ring <= kReach; ++ring) {
    for (int dr = -ring; dr <= ring; ++dr) {
      for (int dc = -ring; dc <= ring; ++dc) {
        const int inner_dr = inward(dr, ring);
        const int inner_dc = inward(dc, ring);
        if (inner_dr == dr && inner_dc == dc) continue;  // inside the ring
        steps[count].cell = index_of(dr, dc);
        steps[count].inner = index_of(inner_dr, inner_dc);
        ++count;
      }
    }
  }
  return steps;
}
constexpr auto kSteps = outward_steps();

// Copy the window; cells outside the heatmap are 0.
void load(const float* heatmap, HeatmapShape shape, std::size_t row, std::size_t col,
          Window<float>& values) {
  constexpr auto kMargin = static_cast<std::size_t>(kReach);
  if (row >= kMargin && col >= kMargin && row + kMargin < shape.rows &&
      col + kMargin < shape.cols) {
    const float* from = heatmap + (row - kMargin) * shape.cols + col - kMargin;
    for (std::size_t r = 0; r < kSide; ++r) {  // of a length known to the compiler
      std::copy_n(from + r * shape.cols, kSide, values.data() + r * kLanes);
      values[r * kLanes + kSide] = 0.0F;
    }
    return;
  }
  values.fill(0.0F);
  const std::size_t first_row = row - std::min(row, kMargin);
  const std::size_t last_row = std::min(row + kMargin, shape.rows - 1);
  const std::size_t first_col = col - std::min(col, kMargin);
  const std::size_t last_col = std::min(col + kMargin, shape.cols - 1);
  for (std::size_t r = first_row; r <= last_row; ++r) {
    const float* from = heatmap + r * shape.cols;
    float* to = values.data() + (r + kMargin - row) * kLanes + (first_col + kMargin - col);
    std::copy(from + first_col, from + last_col + 1, to);
  }
}

// log(x) to 1e-7 for positive normal x; some finite number for 0. Without branches, so that the
// compiler makes vectors of a loop over it.
inline float fast_log(float x) {
  constexpr float kLog2 = 0.693147181F;
  constexpr std::int32_t kRootHalf = 0x3f3504f3;  // bits of sqrt(1/2)
  constexpr std::int32_t kExponentUnit = 0x800000;
  std::int32_t bits = 0;
  std::memcpy(&bits, &x, sizeof bits);
  // Rounds down: the shift keeps the sign.
  const std::int32_t exponent = (bits - kRootHalf) >> 23;  // NOLINT(bugprone-signed-bitwise)
  bits -= exponent * kExponentUnit;
  float m = 0.0F;  // x = 2^exponent m, m from sqrt(1/2) to sqrt(2)
  std::memcpy(&m, &bits, sizeof m);
  const float s = (m - 1.0F) / (m + 1.0F);  // log m = 2 artanh s
  const float z = s * s;
  const float series = ((z / 7.0F + 0.2F) * z + 1.0F / 3.0F) * z * s + s;
  return static_cast<float>(exponent) * kLog2 + 2.0F * series;
}

// Solve the symmetric positive definite system A x = b in place by elimination; x is left in b.
// Only the lower triangle of A is read. False if A is singular to working precision.
template <std::size_t N>
bool solve(std::array<std::array<double, N>, N>& a, std::array<double, N>& b) {
  std::array<double, N> least_pivot{};
  std::array<double, N> inverse{};
  IVDTOOL_UNROLL
  for (std::size_t j = 0; j < N; ++j) least_pivot[j] = 1e-10 * a[j][j];
  IVDTOOL_UNROLL
  for (std::size_t j = 0; j < N; ++j) {
    if (!(a[j][j] > least_pivot[j])) return false;
    inverse[j] = 1.0 / a[j][j];
    IVDTOOL_UNROLL
    for (std::size_t i = j + 1; i < N; ++i) {
      const double factor = a[i][j] * inverse[j];
      IVDTOOL_UNROLL
      for (std::size_t k = j + 1; k <= i; ++k) a[i][k] -= factor * a[k][j];
      b[i] -= factor * b[j];
    }
  }
  IVDTOOL_UNROLL
  for (std::size_t below = 0; below < N; ++below) {
    const std::size_t j = N - 1 - below;
    IVDTOOL_UNROLL
    for (std::size_t k = j + 1; k < N; ++k) b[j] -= a[k][j] * b[k];
    b[j] *= inverse[j];
  }
  return true;
}

// sums[power] = sum over the rows of dr^power * values, for every column.
template <std::size_t Powers>
void sum_rows(const Window<double>& values, std::array<Row<double>, Powers>& sums) {
  for (std::size_t c = 0; c < kLanes; ++c) {
    std::array<double, 5> sum = {values[kReach * kLanes + c]};
    for (std::size_t d = 1; d <= kReach; ++d) {
      const double lower = values[(kReach + d) * kLanes + c];
      const double upper = values[(kReach - d) * kLanes + c];
      const auto dr = static_cast<double>(d);
      sum[0] += lower + upper;
      sum[1] += dr * (lower - upper);
      sum[2] += dr * dr * (lower + upper);
      sum[3] += dr * dr * dr * (lower - upper);
      sum[4] += dr * dr * dr * dr * (lower + upper);
    }
    for (std::size_t power = 0; power < Powers; ++power) sums[power][c] = sum[power];
  }
}

// sum over the columns of dc^Power * values
template <int Power>
double sum_columns(const Row<double>& values) {
  double sum = Power == 0 ? values[kReach] : 0.0;
  for (std::size_t d = 1; d <= kReach; ++d) {
    const double right = values[kReach + d];
    const double left = values[kReach - d];
    double weight = 1.0;
    for (int i = 0; i < Power; ++i) weight *= static_cast<double>(d);
    sum += weight * (Power % 2 == 0 ? right + left : right - left);
  }
  return sum;
}

inline PeakOffset fit_peak(const float* heatmap, HeatmapShape shape, std::size_t row,
                           std::size_t col) {
  Window<float> values;
  load(heatmap, shape, row, col, values);
  const float peak = values[kCentre];
  if (!std::isfinite(peak)) return {};

  // A cell counts if the way to it from the peak is downhill: an uphill step enters another peak.
  // The others become 0, and so do all cells behind them.
  const float least = kLeastShare * peak;
  IVDTOOL_UNROLL
  for (const Step& step : kSteps) {
    float value = values[step.cell];
    value = value <= values[step.inner] ? value : 0.0F;
    values[step.cell] = value > least ? value : 0.0F;
  }

  // Noise of the value is noise / value of its logarithm, hence the weight value^2.
  const float scale = 1.0F / peak;
  Window<double> weights;
  Window<double> weighted_logs;
  for (std::size_t i = 0; i < values.size(); ++i) {
    const float share = scale * values[i];
    const float weight = share * share;
    weights[i] = static_cast<double>(weight);
    weighted_logs[i] = static_cast<double>(weight * fast_log(share));
  }
  std::array<Row<double>, 5> w;  // NOLINT(cppcoreguidelines-pro-type-member-init): written at once
  std::array<Row<double>, 3> l;  // NOLINT(cppcoreguidelines-pro-type-member-init)
  sum_rows(weights, w);
  sum_rows(weighted_logs, l);

  // log(value) = ... + b dr + c dc + d dr^2 + e dr dc + f dc^2
  const double w01 = sum_columns<1>(w[0]);
  const double w02 = sum_columns<2>(w[0]);
  const double w03 = sum_columns<3>(w[0]);
  const double w11 = sum_columns<1>(w[1]);
  const double w12 = sum_columns<2>(w[1]);
  const double w13 = sum_columns<3>(w[1]);
  const double w10 = sum_columns<0>(w[1]);
  const double w20 = sum_columns<0>(w[2]);
  const double w21 = sum_columns<1>(w[2]);
  const double w22 = sum_columns<2>(w[2]);
  const double w30 = sum_columns<0>(w[3]);
  const double w31 = sum_columns<1>(w[3]);
  std::array<std::array<double, 6>, 6> normal = {{{sum_columns<0>(w[0])},
                                                  {w10, w20},
                                                  {w01, w11, w02},
                                                  {w20, w30, w21, sum_columns<0>(w[4])},
                                                  {w11, w21, w12, w31, w22},
                                                  {w02, w12, w03, w22, w13, sum_columns<4>(w[0])}}};
  std::array<double, 6> right = {sum_columns<0>(l[0]), sum_columns<0>(l[1]), sum_columns<1>(l[0]),
                                 sum_columns<0>(l[2]), sum_columns<1>(l[1]), sum_columns<2>(l[0])};
  if (!solve(normal, right)) return {};
  const auto [a, b, c, d, e, f] = right;
  const double determinant = 4.0 * d * f - e * e;
  if (!(d < 0.0 && determinant > 0.0)) return {};  // not concave
  const double dr = (e * c - 2.0 * f * b) / determinant;
  const double dc = (e * b - 2.0 * d * c) / determinant;
  if (!std::isfinite(dr) || !std::isfinite(dc)) return {};
  return {std::clamp(dr, -1.0, 1.0), std::clamp(dc, -1.0, 1.0)};
}

IVDTOOL_FLATTEN PeakOffset fit_peak_portable(const float* heatmap, HeatmapShape shape,
                                             std::size_t row, std::size_t col) {
  return fit_peak(heatmap, shape, row, col);
}

#ifdef IVDTOOL_AVX2
IVDTOOL_AVX2 IVDTOOL_FLATTEN PeakOffset fit_peak_avx2(const float* heatmap, HeatmapShape shape,
                                                      std::size_t row, std::size_t col) {
  return fit_peak(heatmap, shape, row, col);
}
#endif

}  // namespace

PeakFit choose_peak_fit([[maybe_unused]] bool portable) {
#ifdef IVDTOOL_AVX2
  if (!portable && has_avx2()) return fit_peak_avx2;
#endif
  return fit_peak_portable;
}

}  // namespace ivdtool
