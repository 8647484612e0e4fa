#ifndef IVDTOOL_SKELETON_HPP_
#define IVDTOOL_SKELETON_HPP_

#include <algorithm>
#include <cmath>

namespace ivdtool {

// A point or vector of the image plane in mm. As a complex number it is row + i col.
struct Vector {
  double row = 0.0;
  double col = 0.0;
};

inline Vector operator-(Vector a, Vector b) { return {a.row - b.row, a.col - b.col}; }
inline Vector operator+(Vector a, Vector b) { return {a.row + b.row, a.col + b.col}; }
inline Vector operator*(double a, Vector b) { return {a * b.row, a * b.col}; }
inline double squared_norm(Vector a) { return a.row * a.row + a.col * a.col; }
// conj(a) b: its real part is the inner product of a and b.
inline Vector conjugate_product(Vector a, Vector b) {
  return {a.row * b.row + a.col * b.col, a.row * b.col - a.col * b.row};
}
inline Vector product(Vector a, Vector b) {
  return {a.row * b.row - a.col * b.col, a.row * b.col + a.col * b.row};
}

// The similarities p -> k p + t a skeleton may be fitted with.
struct SimilarityLimits {
  SimilarityLimits(double max_rotation_rad, double smallest_scale, double largest_scale)
      : cos_rotation(std::cos(max_rotation_rad)),
        sin_rotation(std::sin(max_rotation_rad)),
        min_scale(smallest_scale),
        max_scale(largest_scale) {}

  double cos_rotation;  // |arg k| <= max_rotation_rad, 0..pi
  double sin_rotation;
  double min_scale;  // min_scale <= |k| <= max_scale, 0..infinity
  double max_scale;
};

// The best multiplier k of: minimise |k|^2 pp - 2 Re(conj(k) pu) within the limits.
struct Multiplier {
  // Of all k = r e^(i phi) with r >= 0, the best phi is the one nearest to arg pu.
  Multiplier(double pp, Vector pu, const SimilarityLimits& limits) {
    const double off_axis = std::abs(pu.col);
    if (limits.sin_rotation * pu.row - limits.cos_rotation * off_axis > 0.0) {
      along = std::sqrt(squared_norm(pu));
      if (along > 0.0) direction = (1.0 / along) * pu;
    } else {
      along = limits.cos_rotation * pu.row + limits.sin_rotation * off_axis;
      direction = {limits.cos_rotation, std::copysign(limits.sin_rotation, pu.col)};
    }
    scale = pp > 0.0 ? along / pp : 1.0;
    scale = std::min(std::max(scale, limits.min_scale), limits.max_scale);
  }

  double along = 0.0;  // Re(pu e^(-i phi))
  double scale = 1.0;
  Vector direction{1.0, 0.0};
};

// Sums over the present discs from which the best fit of points p to mean points u follows:
// minimise over k, t  sum w |k p + t - u|^2 + sum v |k dp - du|^2.
struct FitSums {
  double weight = 0.0;  // sum w
  Vector p;             // sum w p
  Vector u;             // sum w u
  double pp = 0.0;      // sum w |p|^2 + sum v |dp|^2
  Vector pu;            // sum w conj(p) u + sum v conj(dp) du
  double uu = 0.0;      // sum w |u|^2 + sum v |du|^2

  void add_point(double w, Vector point, Vector target) {
    weight += w;
    p = p + w * point;
    u = u + w * target;
    add_difference(w, point, target);
  }

  void add_difference(double v, Vector point, Vector target) {
    pp += v * squared_norm(point);
    pu = pu + v * conjugate_product(point, target);
    uu += v * squared_norm(target);
  }

  // The same sums about the weighted means, which is what the best t leaves.
  FitSums centred() const {
    FitSums sums = *this;
    if (weight > 0.0) {
      sums.pp -= squared_norm(p) / weight;
      sums.pu = sums.pu - (1.0 / weight) * conjugate_product(p, u);
      sums.uu -= squared_norm(u) / weight;
    }
    return sums;
  }

  double residual(const SimilarityLimits& limits) const {
    const FitSums sums = centred();
    const Multiplier k(sums.pp, sums.pu, limits);
    return std::max(0.0, sums.uu - 2.0 * k.scale * k.along + k.scale * k.scale * sums.pp);
  }
};

}  // namespace ivdtool

#endif  // IVDTOOL_SKELETON_HPP_
