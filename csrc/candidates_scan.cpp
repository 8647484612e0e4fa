#include "candidates_scan.hpp"

#include <algorithm>
#include <cstdint>
#include <limits>

#include "candidates_simd.hpp"

#ifdef IVDTOOL_AVX2
#include <immintrin.h>
#endif

namespace ivdtool {
namespace {

// Is a cell above all its neighbours? Every comparison is false for a NaN neighbour.
bool is_peak(const float* above, const float* row, const float* below, std::size_t cols,
             std::size_t col) {
  const float value = row[col];
  if (above[col] >= value || below[col] > value) return false;
  if (col > 0 && (row[col - 1] >= value || above[col - 1] >= value || below[col - 1] > value)) {
    return false;
  }
  return col + 1 == cols ||
         !(row[col + 1] > value || above[col + 1] >= value || below[col + 1] > value);
}

// Is any value >= floor? Written so that the compiler makes vectors of it.
bool reaches(const float* values, std::size_t size, float floor) {
  unsigned any = 0;
  for (std::size_t i = 0; i < size; ++i) any |= values[i] >= floor ? 1U : 0U;
  return any != 0;
}

std::size_t find_row_portable(const float* heatmap, HeatmapShape shape, std::size_t row,
                              float floor) {
  while (row < shape.rows && !reaches(heatmap + row * shape.cols, shape.cols, floor)) ++row;
  return row;
}

RowPeaks find_peaks_portable(const float* above, const float* row, const float* below,
                             std::size_t cols, float floor, std::size_t* columns) {
  constexpr std::size_t kChunk = 32;  // most chunks are too low
  RowPeaks peaks;
  for (std::size_t first = 0; first < cols; first += kChunk) {
    const std::size_t last = std::min(first + kChunk, cols);
    if (!reaches(row + first, last - first, floor)) continue;
    peaks.reached = true;
    for (std::size_t col = first; col < last; ++col) {
      if (row[col] >= floor && is_peak(above, row, below, cols, col)) columns[peaks.count++] = col;
    }
  }
  return peaks;
}

#ifdef IVDTOOL_AVX2

constexpr float kLowest = -std::numeric_limits<float>::infinity();
constexpr std::size_t kLanes = 8;
constexpr std::size_t kGroup = 4 * kLanes;

// Narrower rows have no whole group with a neighbour on both sides.
constexpr std::size_t kLeastCols = kGroup + 2;

constexpr std::size_t kCacheLine = 16;  // cells

// Fetch the cache line that lies two pages of memory behind this one: processors fetch ahead on
// their own, but not into the next page.
IVDTOOL_AVX2 inline void fetch_ahead(const float* values) {
  constexpr std::uintptr_t kBytesAhead = 8192;
  // As an integer: past the end there is nothing a pointer may point to, and a fetch does nothing.
  const std::uintptr_t address = reinterpret_cast<std::uintptr_t>(values) + kBytesAhead;
  // NOLINTNEXTLINE(performance-no-int-to-ptr)
  _mm_prefetch(reinterpret_cast<const char*>(address), _MM_HINT_T0);
}

IVDTOOL_AVX2 std::size_t find_row_avx2(const float* heatmap, HeatmapShape shape, std::size_t row,
                                       float floor) {
  if (shape.cols < kLeastCols) return find_row_portable(heatmap, shape, row, floor);
  const __m256 limit = _mm256_set1_ps(floor);
  for (; row < shape.rows; ++row) {
    const float* values = heatmap + row * shape.cols;
    // Of a NaN and a number, max_ps returns the second argument: NaN never enters a maximum. The
    // last vector overlaps what came before it.
    __m256 a =
        _mm256_max_ps(_mm256_loadu_ps(values + shape.cols - kLanes), _mm256_set1_ps(kLowest));
    __m256 b = a;
    __m256 c = a;
    __m256 d = a;
    std::size_t col = 0;
    for (; col + kGroup <= shape.cols; col += kGroup) {
      fetch_ahead(values + col);
      fetch_ahead(values + col + kCacheLine);
      a = _mm256_max_ps(_mm256_loadu_ps(values + col), a);
      b = _mm256_max_ps(_mm256_loadu_ps(values + col + kLanes), b);
      c = _mm256_max_ps(_mm256_loadu_ps(values + col + 2 * kLanes), c);
      d = _mm256_max_ps(_mm256_loadu_ps(values + col + 3 * kLanes), d);
    }
    for (; col + kLanes <= shape.cols; col += kLanes) {
      a = _mm256_max_ps(_mm256_loadu_ps(values + col), a);
    }
    const __m256 largest = _mm256_max_ps(_mm256_max_ps(a, b), _mm256_max_ps(c, d));
    if (_mm256_movemask_ps(_mm256_cmp_ps(largest, limit, _CMP_GE_OQ)) != 0) break;
  }
  return row;
}

// Lanes of `hits` whose value is above that of an earlier, or a later, neighbour.
IVDTOOL_AVX2 inline __m256 above_earlier(__m256 hits, __m256 value, const float* neighbour) {
  return _mm256_andnot_ps(_mm256_cmp_ps(_mm256_loadu_ps(neighbour), value, _CMP_GE_OQ), hits);
}
IVDTOOL_AVX2 inline __m256 above_later(__m256 hits, __m256 value, const float* neighbour) {
  return _mm256_andnot_ps(_mm256_cmp_ps(_mm256_loadu_ps(neighbour), value, _CMP_GT_OQ), hits);
}

// Cells from `row` on whose value is >= limit and above those over and under it.
IVDTOOL_AVX2 inline __m256 ridge(const float* above, const float* row, const float* below,
                                 __m256 limit) {
  const __m256 value = _mm256_loadu_ps(row);
  const __m256 hits = _mm256_cmp_ps(value, limit, _CMP_GE_OQ);
  return above_later(above_earlier(hits, value, above), value, below);
}

// One bit per cell from `row` on: is it a peak of value >= limit?
IVDTOOL_AVX2 inline std::uint32_t peak_bits(const float* above, const float* row,
                                            const float* below, __m256 limit) {
  const __m256 value = _mm256_loadu_ps(row);
  __m256 hits = ridge(above, row, below, limit);
  hits = above_earlier(hits, value, above - 1);
  hits = above_earlier(hits, value, above + 1);
  hits = above_earlier(hits, value, row - 1);
  hits = above_later(hits, value, row + 1);
  hits = above_later(hits, value, below - 1);
  hits = above_later(hits, value, below + 1);
  return static_cast<std::uint32_t>(_mm256_movemask_ps(hits));
}

// Is any lane of four masks set?
IVDTOOL_AVX2 inline bool any(__m256 a, __m256 b, __m256 c, __m256 d) {
  return _mm256_movemask_ps(_mm256_or_ps(_mm256_or_ps(a, b), _mm256_or_ps(c, d))) != 0;
}

IVDTOOL_AVX2 RowPeaks find_peaks_avx2(const float* above, const float* row, const float* below,
                                      std::size_t cols, float floor, std::size_t* columns) {
  if (cols < kLeastCols) return find_peaks_portable(above, row, below, cols, floor, columns);
  const __m256 limit = _mm256_set1_ps(floor);
  RowPeaks peaks;
  const std::size_t last_col = cols - 1;
  peaks.reached = row[0] >= floor || row[last_col] >= floor;
  if (row[0] >= floor && is_peak(above, row, below, cols, 0)) columns[peaks.count++] = 0;
  for (std::size_t done = 1; done < last_col; done += kGroup) {
    // The last group overlaps the one before it.
    const std::size_t col = std::min(done, last_col - kGroup);
    const float* up = above + col;
    const float* here = row + col;
    const float* down = below + col;
    fetch_ahead(here);
    fetch_ahead(here + kCacheLine);
    // Most groups are too low, and most of the others lie on the flank of a peak.
    if (!any(_mm256_cmp_ps(_mm256_loadu_ps(here), limit, _CMP_GE_OQ),
             _mm256_cmp_ps(_mm256_loadu_ps(here + kLanes), limit, _CMP_GE_OQ),
             _mm256_cmp_ps(_mm256_loadu_ps(here + 2 * kLanes), limit, _CMP_GE_OQ),
             _mm256_cmp_ps(_mm256_loadu_ps(here + 3 * kLanes), limit, _CMP_GE_OQ))) {
      continue;
    }
    peaks.reached = true;
    if (!any(ridge(up, here, down, limit), ridge(up + kLanes, here + kLanes, down + kLanes, limit),
             ridge(up + 2 * kLanes, here + 2 * kLanes, down + 2 * kLanes, limit),
             ridge(up + 3 * kLanes, here + 3 * kLanes, down + 3 * kLanes, limit))) {
      continue;
    }
    std::uint32_t bits = 0;
    for (std::size_t i = 0; i < kGroup; i += kLanes) {
      bits |= peak_bits(up + i, here + i, down + i, limit) << i;
    }
    bits &= ~std::uint32_t{0} << (done - col);
    for (; bits != 0; bits &= bits - 1) {
      columns[peaks.count++] = col + static_cast<std::size_t>(__builtin_ctz(bits));
    }
  }
  if (row[last_col] >= floor && is_peak(above, row, below, cols, last_col)) {
    columns[peaks.count++] = last_col;
  }
  return peaks;
}

#endif  // IVDTOOL_AVX2

}  // namespace

PeakScan choose_peak_scan([[maybe_unused]] bool portable) {
#ifdef IVDTOOL_AVX2
  if (!portable && has_avx2()) return {find_row_avx2, find_peaks_avx2};
#endif
  return {find_row_portable, find_peaks_portable};
}

}  // namespace ivdtool
