#include "cpu/tensors/rows.h"

#include <algorithm>
#include <cmath>
#include <type_traits>

#include "common/parallel.h"
#include "cpu/products/search.h"
#include "cpu/simd/elements.h"
#include "cpu/simd/kernels.h"

namespace cmx {
namespace {

constexpr int64_t kRowsPerTask = 256;

template <class F>
void for_rows(int64_t n, const F& f) {
  run_tasks(ceil_div(n, kRowsPerTask), [&](int64_t task) {
    for (int64_t i = task * kRowsPerTask; i < std::min(n, (task + 1) * kRowsPerTask); ++i) f(i);
  });
}

}  // namespace

double dot(const float* a, const float* b, int64_t d) { return best_kernels<float>().dot(a, b, d); }
double dot(const double* a, const double* b, int64_t d) { return best_kernels<double>().dot(a, b, d); }

template <class T>
T make_unit(T* row, int64_t d, double smallest) {
  constexpr double low = 1e-30, high = 1e30;  // float32 holds the inverse, and double the square
  const SearchKernels<T>& kernels = best_search_kernels<T>();
  const double norm = std::sqrt(dot(row, row, d));
  // Written so that a NaN norm stays NaN.
  const double divisor = norm < smallest ? smallest : norm;
  double largest = 0;
  if (!(divisor >= low && divisor <= high))
    for (int64_t p = 0; p < d; ++p) largest = std::max(largest, std::abs(double(row[p])));
  if (!(largest > 0 && std::isfinite(largest) && !std::isnan(norm))) {
    kernels.scale(row, T(1 / divisor), d);
    return T(1 / divisor);
  }
  const int exponent = std::ilogb(largest);
  double square = 0;
  for (int64_t p = 0; p < d; ++p) {
    row[p] = std::ldexp(row[p], -exponent);
    square += double(row[p]) * row[p];
  }
  kernels.scale(row, T(1 / std::sqrt(square)), d);
  return T(std::ldexp(1 / std::sqrt(square), -exponent));
}

template <class T>
void undo_normalization(const T* row, T inverse_norm, int64_t d, T* gradient) {
  const bool constant = inverse_norm >= T(1 / kSmallestNorm);
  const T along = constant ? 0 : dot(row, gradient, d);
  for (int64_t p = 0; p < d; ++p) gradient[p] = (gradient[p] - row[p] * along) * inverse_norm;
}

template <class T>
Rows<T> make_rows(const Tensor& tensor, int64_t batch, bool normalize, bool squares) {
  Rows<T> rows;
  rows.n = tensor.size(tensor.dim() - 2);
  rows.d = tensor.size(tensor.dim() - 1);
  rows.bfloat16 = tensor.scalar_type() == ScalarType::BFloat16;
  if (squares) rows.square.resize(rows.n);
  if (normalize) rows.inverse_norm.resize(rows.n);
  const int64_t offset = batch * rows.n * rows.d;
  with_elements(tensor, [&](const auto* elements) {
    using Element = std::remove_const_t<std::remove_pointer_t<decltype(elements)>>;
    elements += offset;
    const bool in_place = std::is_same_v<Element, T> && !normalize;
    if (!in_place) rows.storage.resize(rows.n * rows.d);
    rows.data = in_place ? reinterpret_cast<const T*>(elements) : rows.storage.data();
    if (in_place) rows.kept = tensor;
    if (in_place && !squares) return;
    for_rows(rows.n, [&](int64_t i) {
      if (!in_place) {
        T* row = rows.storage.data() + i * rows.d;
        for (int64_t p = 0; p < rows.d; ++p) row[p] = static_cast<T>(elements[i * rows.d + p]);
        if (normalize) {
          const double norm = std::sqrt(dot(row, row, rows.d));
          // Written so that a NaN norm stays NaN.
          rows.inverse_norm[i] = 1 / (norm < kSmallestNorm ? kSmallestNorm : norm);
          for (int64_t p = 0; p < rows.d; ++p) row[p] *= rows.inverse_norm[i];
        }
      }
      if (squares) rows.square[i] = dot(rows.row(i), rows.row(i), rows.d);
    });
  });
  T largest = 0;
  for (const T square : rows.square) largest = std::max(largest, square);
  rows.max_norm = std::sqrt(largest);
  return rows;
}

template <class T>
RowGradient<T>::RowGradient(const Tensor& tensor, int64_t batch, int64_t n, int64_t d)
    : tensor_(tensor), offset_(batch * n * d), n_(n), d_(d) {
  const bool in_place = tensor.scalar_type() == (sizeof(T) == 4 ? ScalarType::Float : ScalarType::Double);
  if (!in_place) storage_.resize(n * d);
  data_ = in_place ? static_cast<T*>(tensor.data_ptr()) + offset_ : storage_.data();
  for_rows(n, [&](int64_t i) { std::fill_n(data_ + i * d, d, T(0)); });
}

template <class T>
void RowGradient<T>::finish(const Rows<T>& rows) {
  with_elements(tensor_, [&](auto* elements) {
    using Element = std::remove_pointer_t<decltype(elements)>;
    for_rows(n_, [&](int64_t i) {
      T* gradient = data_ + i * d_;
      if (!rows.inverse_norm.empty()) undo_normalization(rows.row(i), rows.inverse_norm[i], d_, gradient);
      if constexpr (!std::is_same_v<Element, T>)
        for (int64_t p = 0; p < d_; ++p) elements[offset_ + i * d_ + p] = static_cast<Element>(gradient[p]);
    });
  });
}

template Rows<float> make_rows<float>(const Tensor&, int64_t, bool, bool);
template Rows<double> make_rows<double>(const Tensor&, int64_t, bool, bool);
template float make_unit(float*, int64_t, double);
template double make_unit(double*, int64_t, double);
template void undo_normalization(const float*, float, int64_t, float*);
template void undo_normalization(const double*, double, int64_t, double*);
template class RowGradient<float>;
template class RowGradient<double>;

}  // namespace cmx
