// The largest product of every column with any of the rows, and where it was: products whose maximum is taken a block
// of registers at a time, so that no tile of them is ever written to memory.
#pragma once

#include <cstdint>
#include <type_traits>

namespace cmx {

// Numbers a row and a head of it: row * heads + head. As wide as T, so that vectors of both have the same lanes.
template <class T>
using Place = std::conditional_t<sizeof(T) == 4, int32_t, int64_t>;

// Rows x (rows, heads * features), a stride apart, against columns packed by Kernels::pack_columns.
template <class T>
struct MaximaTile {
  const T* x;
  int64_t rows, stride, first;  // first: number of the first row
  const T* packed;
  int64_t columns, heads, features;  // features: of one head
  // The maxima so far, of columns rounded up to the panel; a later product takes a place only if it is larger.
  T* best;
  Place<T>* place;
};

template <class T>
struct MaximaKernels {
  void (*column_maxima)(const MaximaTile<T>&);
  // y (d) += factor * x (d)
  void (*add_scaled)(T factor, const T* x, int64_t d, T* y);
};

namespace baseline {
template <class T>
const MaximaKernels<T>& maxima_kernels();
}
namespace avx2 {
template <class T>
const MaximaKernels<T>& maxima_kernels();
}
namespace avx512 {
template <class T>
const MaximaKernels<T>& maxima_kernels();
}
template <class T>
const MaximaKernels<T>& best_maxima_kernels();

}  // namespace cmx
