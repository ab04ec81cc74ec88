// The rows of an input in the working precision, and their gradient back in the input's.
//
// Inputs of type T are read where they lie; halves are converted, and rows to be normalised divided by max(norm,
// 1e-12), into a copy. Norms and dot products are double. Gradients are summed in T and rounded to the input's dtype
// once.
#pragma once

#include <torch/csrc/stable/tensor.h>

#include <cstdint>
#include <optional>
#include <vector>

namespace cmx {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

inline constexpr double kSmallestNorm = 1e-12;  // torch.nn.functional.normalize's

// n rows of d numbers, contiguous. Points into the tensor where that already holds them as they are wanted.
template <class T>
struct Rows {
  const T* data = nullptr;
  int64_t n = 0, d = 0;
  bool bfloat16 = false;        // the input's dtype: products then need no more digits
  std::vector<T> square;        // |row|^2
  std::vector<T> inverse_norm;  // 1 / max(|row|, 1e-12) where the rows were normalised, else empty
  T max_norm = 0;
  std::vector<T> storage;
  std::optional<Tensor> kept;  // what data points into, which may be a contiguous copy that nobody else holds

  const T* row(int64_t i) const { return data + i * d; }
};

// Slice `batch` of a contiguous (batch, n, d) tensor, or a whole (n, d) one; without `squares` nothing is read that can
// stay where it is, and neither square nor max_norm is there.
template <class T>
Rows<T> make_rows(const Tensor& tensor, int64_t batch, bool normalize, bool squares = true);

// Where gradients with respect to rows are summed: the slice of a float32 or float64 tensor itself, or a buffer that
// `finish` rounds into it once.
template <class T>
class RowGradient {
 public:
  RowGradient(const Tensor& tensor, int64_t batch, int64_t n, int64_t d);
  T* data() { return data_; }
  // Undoes the normalisation of the rows and writes the tensor.
  void finish(const Rows<T>& rows);

 private:
  Tensor tensor_;
  int64_t offset_, n_, d_;
  std::vector<T> storage_;
  T* data_;
};

// Divides a row by max(|row|, smallest), and returns what that multiplies it by. No magnitude overflows or vanishes on
// the way; NaN and infinities make NaN.
template <class T>
T make_unit(T* row, int64_t d, double smallest);

// From dL/dy to dL/dx in place, y = x / |x|: dx = (dy - y <y, dy>) / |x|. Below the smallest norm the divisor is a
// constant.
template <class T>
void undo_normalization(const T* row, T inverse_norm, int64_t d, T* gradient);

double dot(const float* a, const float* b, int64_t d);
double dot(const double* a, const double* b, int64_t d);

}  // namespace cmx
