// Passes that pyramid correlation asks of one instruction set: over one channel's positions, frame by frame, and over
// their windows of 2 x 2, partial ones at the far edges. A level's windows are the windows of the windows below it.
#pragma once

#include <cstdint>

namespace cmx {

// The positions of one channel, (count, h, w) without gaps.
struct Frames {
  int64_t count, h, w;
  int64_t positions() const { return count * h * w; }
  // Their windows of 2 x 2.
  Frames halved() const { return {count, (h + 1) / 2, (w + 1) / 2}; }
  // One row for each two: windows summed, or spread, along the rows only.
  Frames row_pairs() const { return {count, (h + 1) / 2, w}; }
};

template <class T>
struct PlaneKernels {
  // Of channels a stride apart, n positions each: products += sum of filter[c] * x[c]; squares += sum of x[c]^2 unless
  // null.
  void (*correlate)(const T* x, int64_t channels, int64_t stride, int64_t n, const T* filter, double* products,
                    T* squares);
  // Sums over the windows of x; row_pairs is working memory of that many positions.
  void (*window_sums)(const T* x, Frames frames, T* row_pairs, T* sums);
  // sums += x^2
  void (*add_squares)(const T* x, int64_t n, T* sums);
  // x * factor + what the windows give to their positions; `windows` (frames.row_pairs()) may be null.
  void (*scale)(const T* x, const T* factor, const T* windows, Frames frames, T* scaled);
  // Each window's value for both positions of a row pair.
  void (*spread)(const T* windows, Frames frames, T* row_pairs);
  // filter * along + x * own + what the windows give; own and windows may be null. Returns the sum of x * along.
  T (*gradient)(const T* x, T filter, const T* along, const T* own, const T* windows, Frames frames, T* gradient);
};

namespace baseline {
template <class T>
const PlaneKernels<T>& plane_kernels();
}
namespace avx2 {
template <class T>
const PlaneKernels<T>& plane_kernels();
}
namespace avx512 {
template <class T>
const PlaneKernels<T>& plane_kernels();
}
template <class T>
const PlaneKernels<T>& best_plane_kernels();

}  // namespace cmx
