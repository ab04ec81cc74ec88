// Scores of rows against all centroids with a proven bound on their error, in the fastest arithmetic there is.
//
// Note [Screened search]: the nearest centroid of a row has the largest score x.c - |c|^2 / 2. The scores are made in
// arithmetic that is fast and inexact (bfloat16 on matrix units, else T), together with a bound b on the error of each
// of the row's scores. A centroid whose inexact score lies more than 2 b below the best cannot be the nearest; those
// within are compared by their squared distances in T (SearchKernels::nearest). The label is that of an exact search,
// up to the rounding of T, at the speed of the fast product. Where scores may overflow, b is NaN and no score comes
// within it: the row is searched from its differences in double (NearestCentroids::find_wide).
#pragma once

#include <cmath>
#include <cstdint>
#include <limits>
#include <memory>

#include "cpu/tensors/buffer.h"
#include "cpu/tiles/feature_tiles.h"

namespace cmx {

// Up to this square of rows and of centroids, neither their products nor their distances overflow.
template <class T>
inline constexpr T kLargestSquare = std::numeric_limits<T>::max() / 16;

// The length whose square this is; NaN where scores may overflow, which makes a NaN of the slack.
template <class T>
T screened_norm(T square) {
  return square <= kLargestSquare<T> ? std::sqrt(square) : std::numeric_limits<T>::quiet_NaN();
}

// Centroids (k, d) less their mean: subtracting a common point from rows and centroids changes no distance, and leaves
// products the size of the distances.
template <class T>
struct CentredCentroids {
  int64_t k, d;
  Buffer<T> origin;                             // (d)
  Buffer<T> moved;                              // (k, d)
  Buffer<T> half_square;                        // |moved|^2 / 2, infinite in the padding
  T largest_norm = 0, largest_half_square = 0;  // the former NaN where scores may overflow

  CentredCentroids(const T* centroids, int64_t k, int64_t d);
};

// One thread's rows, in the form that its screen multiplies.
struct ScreenRows {
  Buffer<float> centred;
  Buffer<double> centred_double;
  Buffer<uint16_t> parts;
};

template <class T>
class Screen {
 public:
  virtual ~Screen() = default;
  // Takes n rows; slack[i] is twice the bound on the error of row i's scores, that of half_square included;
  // NaN where they may overflow.
  virtual void set_rows(const TileRows<T>& rows, int64_t n, ScreenRows& held, T* slack) const = 0;
  // s (n, m) = rows . centroids [j, j + m), j a multiple of kScorePadding; s has room for n and m rounded up to it.
  virtual void scores(const ScreenRows& held, int64_t n, int64_t j, int64_t m, T* s, int64_t lds) const = 0;
};

template <class T>
std::unique_ptr<Screen<T>> make_screen(const CentredCentroids<T>& centroids);

// On bfloat16 instructions where the processor has them, else null (bf16_screen.cpp).
std::unique_ptr<Screen<float>> make_bf16_screen(const CentredCentroids<float>& centroids);

}  // namespace cmx
