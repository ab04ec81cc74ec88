// The screen in T itself, and the centroids less their mean. Its bound: a sum of d products rounds by at most d units
// of |x| |c|, and the differences, the square and the last subtraction by a few more.
#include "cpu/products/screen.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "common/parallel.h"
#include "cpu/products/search.h"
#include "cpu/simd/kernels.h"
#include "cpu/tensors/rows.h"

namespace cmx {
namespace {

constexpr int64_t kCentroidsPerTask = 256;

// Scores in T itself with the vector kernels.
template <class T>
class VectorScreen final : public Screen<T> {
 public:
  explicit VectorScreen(const CentredCentroids<T>& centroids)
      : centroids_(centroids), packed_(ceil_div(centroids.k, kernels_.panel) * kernels_.panel * centroids.d) {
    const int64_t k = centroids.k, d = centroids.d;
    run_tasks(ceil_div(k, kCentroidsPerTask), [&](int64_t task) {
      const int64_t j = task * kCentroidsPerTask;
      kernels_.pack_columns(centroids.moved.data() + j * d, std::min(kCentroidsPerTask, k - j), d,
                            packed_.data() + j * d);
    });
  }

  void set_rows(const TileRows<T>& rows, int64_t n, ScreenRows& held, T* slack) const override {
    const int64_t d = centroids_.d;
    Buffer<T>& centred = buffer(held);
    if (centred.size() < n * d) centred.resize(n * d);
    // A sum of d products, and the roundings of both differences, of the square and of the last subtraction.
    const T unit = std::numeric_limits<T>::epsilon() / 2;
    const T by_norm = (d + 8) * unit * centroids_.largest_norm, constant = 4 * unit * centroids_.largest_half_square;
    for (int64_t i = 0; i < n; ++i) {
      const T square = search_.centre(rows.row(i), centroids_.origin.data(), d, centred.data() + i * d);
      slack[i] = 2 * (by_norm * screened_norm(square) + constant);
    }
  }

  void scores(const ScreenRows& held, int64_t n, int64_t j, int64_t m, T* s, int64_t lds) const override {
    const int64_t d = centroids_.d;
    kernels_.scores(n, m, d, buffer(held).data(), packed_.data() + j * d, s, lds);
  }

 private:
  template <class Held>
  static auto& buffer(Held& held) {
    if constexpr (sizeof(T) == 4)
      return held.centred;
    else
      return held.centred_double;
  }

  const Kernels<T>& kernels_ = best_kernels<T>();
  const SearchKernels<T>& search_ = best_search_kernels<T>();
  const CentredCentroids<T>& centroids_;
  Buffer<T> packed_;
};

}  // namespace

template <class T>
CentredCentroids<T>::CentredCentroids(const T* centroids, int64_t k, int64_t d)
    : k(k), d(d), origin(d), moved(k * d), half_square(ceil_div(k, kScorePadding) * kScorePadding) {
  std::vector<double> sums(d);
  for (int64_t j = 0; j < k; ++j)
    for (int64_t p = 0; p < d; ++p) sums[p] += centroids[j * d + p];
  for (int64_t p = 0; p < d; ++p) origin.data()[p] = sums[p] / k;
  std::vector<double> squares(k);
  run_tasks(ceil_div(k, kCentroidsPerTask), [&](int64_t task) {
    for (int64_t j = task * kCentroidsPerTask; j < std::min(k, (task + 1) * kCentroidsPerTask); ++j) {
      T* row = moved.data() + j * d;
      for (int64_t p = 0; p < d; ++p) row[p] = double(centroids[j * d + p]) - double(origin.data()[p]);
      squares[j] = dot(row, row, d);
      half_square.data()[j] = squares[j] / 2;
    }
  });
  std::fill(half_square.data() + k, half_square.data() + half_square.size(), std::numeric_limits<T>::infinity());
  const double largest = *std::max_element(squares.begin(), squares.end());
  // Also of a row of NaN, which comes of an overflow in the origin.
  const bool bounded = std::all_of(squares.begin(), squares.end(), [](double s) { return s <= kLargestSquare<T>; });
  largest_norm = bounded ? T(std::sqrt(largest)) : std::numeric_limits<T>::quiet_NaN();
  largest_half_square = largest / 2;
}

template <class T>
std::unique_ptr<Screen<T>> make_screen(const CentredCentroids<T>& centroids) {
  if constexpr (sizeof(T) == 4)
    if (auto screen = make_bf16_screen(centroids)) return screen;
  return std::make_unique<VectorScreen<T>>(centroids);
}

template struct CentredCentroids<float>;
template struct CentredCentroids<double>;
template std::unique_ptr<Screen<float>> make_screen(const CentredCentroids<float>&);
template std::unique_ptr<Screen<double>> make_screen(const CentredCentroids<double>&);

}  // namespace cmx
