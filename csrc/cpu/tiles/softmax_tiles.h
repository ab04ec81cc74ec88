// Passes over a tile of scores that attention asks of one instruction set. Rows of a tile hold cols rounded up to whole
// vectors.
#pragma once

#include <cstdint>

namespace cmx {

// scale * log2(e) in two pieces, khi + klo to twice T's precision.
template <class T>
struct Exponent {
  T khi, klo;
};

template <class T>
struct SoftmaxKernels {
  // s = exp2((s - highest) * k) * factor in place; sums += the rows' sums.
  void (*exponentials)(int64_t rows, int64_t cols, Exponent<T> k, const T* highest, const T* factor, T* s, int64_t lds,
                       T* sums);
  // sums += the rows' sums of p * x.
  void (*weighted_sums)(int64_t rows, int64_t cols, const T* p, const T* x, int64_t ld, double* sums);
  // x = p * (x - mean) * scale in place: the softmax's derivative.
  void (*derivatives)(int64_t rows, int64_t cols, const T* p, const T* mean, T scale, T* x, int64_t ld);
};

namespace baseline {
template <class T>
const SoftmaxKernels<T>& softmax_kernels();
}
namespace avx2 {
template <class T>
const SoftmaxKernels<T>& softmax_kernels();
}
namespace avx512 {
template <class T>
const SoftmaxKernels<T>& softmax_kernels();
}
template <class T>
const SoftmaxKernels<T>& best_softmax_kernels();

}  // namespace cmx
