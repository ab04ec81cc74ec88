// The pass over a tile of similarities that the sigmoid contrastive loss asks of one instruction set. Rows of a tile
// and arrays of its columns have room for whole vectors.
#pragma once

#include <cstdint>
#include <type_traits>

namespace cmx {

// A class of positives, as wide as an element: comparisons and arithmetic then share their vectors.
template <class T>
using ClassOf = std::conditional_t<sizeof(T) == 4, int32_t, int64_t>;

// Logits scale * u + bias of a tile; rows and columns of one class are positives.
template <class T>
struct SigmoidTile {
  int64_t rows, cols;
  T scale, bias;
  const ClassOf<T>* row_class;
  const ClassOf<T>* col_class;
};

// Sums over each row: of the losses, of their derivatives by the logit, and of these times the similarity.
template <class T>
struct SigmoidSums {
  T *loss, *slope, *weighted;
};

template <class T>
struct SigmoidKernels {
  // The rows' sums and, unless v is null, v = factor_i * (derivative of loss (i, j) by its logit).
  void (*sums)(const SigmoidTile<T>&, const SigmoidSums<T>&, const T* factor, const T* u, int64_t ldu, T* v,
               int64_t ldv);
  // v alone.
  void (*slopes)(const SigmoidTile<T>&, const T* factor, const T* u, int64_t ldu, T* v, int64_t ldv);
};

namespace baseline {
template <class T>
const SigmoidKernels<T>& sigmoid_kernels();
}
namespace avx2 {
template <class T>
const SigmoidKernels<T>& sigmoid_kernels();
}
namespace avx512 {
template <class T>
const SigmoidKernels<T>& sigmoid_kernels();
}
template <class T>
const SigmoidKernels<T>& best_sigmoid_kernels();

}  // namespace cmx
