// The kernels of softmax_tiles.h in the vectors of simd.h; included once per instruction set, as vector_kernels.h is.
#pragma once

#include "cpu/simd/simd.h"
#include "cpu/tiles/softmax_tiles.h"

namespace cmx::CMX_NAMESPACE {
namespace {

// All ones in the lanes of a tile's columns, from column j on.
template <class T>
inline Int<T> within(int64_t j, int64_t cols) {
  if (j + kLanes<T> <= cols) return ~Int<T>{};
  return iota<T>() < (typename Simd<T>::Bits(cols - j) - Int<T>{});
}

template <class T>
void exponentials(int64_t rows, int64_t cols, Exponent<T> k, const T* highest, const T* factor, T* s, int64_t lds,
                  T* sums) {
  for (int64_t i = 0; i < rows; ++i, s += lds) {
    const Vec<T> top = broadcast<T>(highest[i]);
    Vec<T> sum{};
    for (int64_t j = 0; j < cols; j += kLanes<T>) {
      const Int<T> keep = within<T>(j, cols);
      Vec<T> p = exp2_below<T>(load(s + j) - top, k.khi, k.klo) * factor[i];
      p = keep ? p : Vec<T>{};
      sum += p;
      store(s + j, p);
    }
    sums[i] += horizontal_sum<T>(sum);
  }
}

template <class T>
void weighted_sums(int64_t rows, int64_t cols, const T* p, const T* x, int64_t ld, double* sums) {
  for (int64_t i = 0; i < rows; ++i, p += ld, x += ld) {
    Vec<T> sum{};
    for (int64_t j = 0; j < cols; j += kLanes<T>) {
      const Vec<T> product = load(p + j) * load(x + j);
      sum += within<T>(j, cols) ? product : Vec<T>{};
    }
    sums[i] += double(horizontal_sum<T>(sum));
  }
}

template <class T>
void derivatives(int64_t rows, int64_t cols, const T* p, const T* mean, T scale, T* x, int64_t ld) {
  for (int64_t i = 0; i < rows; ++i, p += ld, x += ld)
    for (int64_t j = 0; j < cols; j += kLanes<T>) store(x + j, load(p + j) * (load(x + j) - mean[i]) * scale);
}

}  // namespace

template <class T>
const SoftmaxKernels<T>& softmax_kernels() {
  static constexpr SoftmaxKernels<T> table = {exponentials<T>, weighted_sums<T>, derivatives<T>};
  return table;
}

template const SoftmaxKernels<float>& softmax_kernels<float>();
template const SoftmaxKernels<double>& softmax_kernels<double>();

}  // namespace cmx::CMX_NAMESPACE
