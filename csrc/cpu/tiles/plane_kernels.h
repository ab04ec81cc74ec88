// The kernels of planes.h; included once per instruction set, as vector_kernels.h is. Plain loops over what lies next
// to each other: the compiler makes vectors of them.
#pragma once

#include "cpu/simd/simd.h"
#include "cpu/tiles/planes.h"

namespace cmx::CMX_NAMESPACE {
namespace {

template <class T, int kChannels, bool kSquares>
void correlate_channels(const T* __restrict x, int64_t stride, int64_t n, const T* filter, double* __restrict products,
                        T* __restrict squares) {
  for (int64_t p = 0; p < n; ++p) {
    T product[2] = {}, square[2] = {};
    for (int c = 0; c < kChannels; ++c) {
      const T value = x[c * stride + p];
      product[c % 2] += filter[c] * value;
      if (kSquares) square[c % 2] += value * value;
    }
    products[p] += double(product[0] + product[1]);
    if (kSquares) squares[p] += square[0] + square[1];
  }
}

template <class T>
void correlate(const T* x, int64_t channels, int64_t stride, int64_t n, const T* filter, double* products, T* squares) {
  constexpr int kTogether = 8;  // so many in T, and the sums are loaded and stored once for them channels
  int64_t c = 0;
  for (; c + kTogether <= channels; c += kTogether)
    squares ? correlate_channels<T, kTogether, true>(x + c * stride, stride, n, filter + c, products, squares)
            : correlate_channels<T, kTogether, false>(x + c * stride, stride, n, filter + c, products, squares);
  for (; c < channels; ++c)
    squares ? correlate_channels<T, 1, true>(x + c * stride, stride, n, filter + c, products, squares)
            : correlate_channels<T, 1, false>(x + c * stride, stride, n, filter + c, products, squares);
}

template <int64_t kValue>
struct Constant {
  constexpr operator int64_t() const { return kValue; }
};

// f(w), for the widths of small maps as a constant: a loop over a short row then has no remainder.
template <class F>
void with_width(int64_t w, const F& f) {
  if (w == 4)
    f(Constant<4>{});
  else if (w == 8)
    f(Constant<8>{});
  else if (w == 16)
    f(Constant<16>{});
  else
    f(w);
}

template <class T>
void window_sums(const T* x, Frames frames, T* row_pairs, T* sums) {
  const int64_t w = frames.w, whole = frames.h / 2, rows = frames.count * frames.row_pairs().h;
  with_width(w, [&](auto w) {
    for (int64_t f = 0; f < frames.count; ++f) {
      T* __restrict pairs = row_pairs + f * frames.row_pairs().h * w;
      const T* frame = x + f * frames.h * w;
      for (int64_t i = 0; i < whole; ++i)
        for (int64_t j = 0; j < w; ++j) pairs[i * w + j] = frame[2 * i * w + j] + frame[(2 * i + 1) * w + j];
      if (frames.h % 2)
        for (int64_t j = 0; j < w; ++j) pairs[whole * w + j] = frame[2 * whole * w + j];
    }
  });
  // Rows of even width are one long row of pairs.
  const int64_t lines = w % 2 ? rows : 1, length = w % 2 ? w : rows * w, out = (length + 1) / 2;
  for (int64_t i = 0; i < lines; ++i) {
    const T* line = row_pairs + i * length;
    for (int64_t j = 0; j < length / 2; ++j) sums[i * out + j] = line[2 * j] + line[2 * j + 1];
    if (length % 2) sums[i * out + length / 2] = line[length - 1];
  }
}

template <class T>
void add_squares(const T* x, int64_t n, T* sums) {
  for (int64_t p = 0; p < n; ++p) sums[p] += x[p] * x[p];
}

// f(first position of a row, first of its row pair, w) for every row.
template <class F>
void for_rows(Frames frames, const F& f) {
  with_width(frames.w, [&](auto w) {
    const int64_t pairs = frames.row_pairs().h;
    for (int64_t frame = 0; frame < frames.count; ++frame)
      for (int64_t i = 0; i < frames.h; ++i) f((frame * frames.h + i) * w, (frame * pairs + i / 2) * w, w);
  });
}

template <class T>
void scale(const T* x, const T* factor, const T* windows, Frames frames, T* scaled) {
  const int64_t n = frames.positions();
  if (!windows) {
    for (int64_t p = 0; p < n; ++p) scaled[p] = x[p] * factor[p];
    return;
  }
  for_rows(frames, [=](int64_t row, int64_t pair, auto w) {
    T* out = scaled + row;
    for (int64_t j = 0; j < w; ++j) out[j] = x[row + j] * factor[row + j] + windows[pair + j];
  });
}

template <class T>
void spread(const T* windows, Frames frames, T* row_pairs) {
  const int64_t w = frames.w, rows = frames.count * frames.row_pairs().h;
  const int64_t lines = w % 2 ? rows : 1, length = w % 2 ? w : rows * w, in = (length + 1) / 2;
  for (int64_t i = 0; i < lines; ++i) {
    T* line = row_pairs + i * length;
    for (int64_t j = 0; j < length / 2; ++j) line[2 * j] = line[2 * j + 1] = windows[i * in + j];
    if (length % 2) line[length - 1] = windows[i * in + length / 2];
  }
}

template <class T, class Width>
void row_gradient(const T* __restrict x, T filter, const T* __restrict along, const T* __restrict own,
                  const T* __restrict windows, Width w, T* __restrict gradient) {
  for (int64_t j = 0; j < w; ++j) gradient[j] = filter * along[j] + x[j] * own[j] + windows[j];
}

template <class T>
T gradient(const T* x, T filter, const T* along, const T* own, const T* windows, Frames frames, T* gradient) {
  constexpr int64_t lanes = kLanes<T>;
  const int64_t n = frames.positions();
  Vec<T> sums[4] = {};
  int64_t p = 0;
  for (; p + 4 * lanes <= n; p += 4 * lanes)
    for (int q = 0; q < 4; ++q) sums[q] += load(x + p + q * lanes) * load(along + p + q * lanes);
  for (; p + lanes <= n; p += lanes) sums[p / lanes % 4] += load(x + p) * load(along + p);
  T sum = horizontal_sum<T>((sums[0] + sums[1]) + (sums[2] + sums[3])), rest = 0;
  for (; p < n; ++p) rest += x[p] * along[p];
  sum += rest;
  if (!own)
    for (int64_t p = 0; p < n; ++p) gradient[p] = filter * along[p];
  else if (!windows)
    for (int64_t p = 0; p < n; ++p) gradient[p] = filter * along[p] + x[p] * own[p];
  else
    for_rows(frames, [=](int64_t row, int64_t pair, auto w) {
      row_gradient(x + row, filter, along + row, own + row, windows + pair, w, gradient + row);
    });
  return sum;
}

}  // namespace

template <class T>
const PlaneKernels<T>& plane_kernels() {
  static constexpr PlaneKernels<T> table = {correlate<T>, window_sums<T>, add_squares<T>,
                                            scale<T>,     spread<T>,      gradient<T>};
  return table;
}

template const PlaneKernels<float>& plane_kernels<float>();
template const PlaneKernels<double>& plane_kernels<double>();

}  // namespace cmx::CMX_NAMESPACE
