// Passes that the search for nearest centroids and the sparse code ask of one instruction set: see
// Note [Screened search], cpu/products/screen.h.
#pragma once

#include <cstdint>

namespace cmx {

// Some rows against some centroids, by scores that are exact to within a bound: x.c - |c|^2 / 2 is largest where the
// distance is least. Score arrays hold cols rounded up to kScorePadding; half_square is infinite there.
template <class T>
struct NearestTile {
  int64_t rows, cols, d;
  const T* scores;  // (rows, cols), products only
  int64_t lds;
  const T* half_square;  // |c|^2 / 2
  const T* slack;        // of each row: twice the bound on a score's error; NaN: no score can be trusted
  const T* values;       // (rows, d), what the distance is taken of
  int64_t ldv;
  const T* centroids;  // (cols, d)
  int64_t first;       // index of the first centroid
  // Of the rows, over all tiles so far: best score, least squared distance and where it was.
  T* best;
  T* distance;
  int64_t* label;
};

inline constexpr int64_t kScorePadding = 32;

template <class T>
struct SearchKernels {
  // Compares the squared distances of the centroids whose score may be the best; none where the slack is NaN.
  void (*nearest)(const NearestTile<T>&);
  // Sum of ((x - y) * factor)^2 in double.
  double (*wide_distance)(const T* x, const T* y, int64_t d, double factor);
  // y = x - origin; returns |y|^2.
  T (*centre)(const T* x, const T* origin, int64_t d, T* y);
  // x *= factor.
  void (*scale)(T* x, T factor, int64_t d);
  // rows (n, d) = columns (d, n)^T, columns a stride apart.
  void (*transpose)(const T* columns, int64_t stride, int64_t n, int64_t d, T* rows, int64_t ldr);
  // next = max(codes + r, 0), NaN where the sum is; change = next - codes. next may be codes.
  void (*step_codes)(const T* codes, const T* r, int64_t n, T* next, T* change);
  // x = 0 where `sign` is not positive; sums += x.
  void (*where_positive)(const T* sign, int64_t n, T* x, T* sums);
  // sums += weight * x, in double.
  void (*accumulate)(const T* x, double weight, int64_t d, double* sums);
};

namespace baseline {
template <class T>
const SearchKernels<T>& search_kernels();
}
namespace avx2 {
template <class T>
const SearchKernels<T>& search_kernels();
}
namespace avx512 {
template <class T>
const SearchKernels<T>& search_kernels();
}
template <class T>
const SearchKernels<T>& best_search_kernels();

}  // namespace cmx
