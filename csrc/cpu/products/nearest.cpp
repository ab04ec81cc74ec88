#include "cpu/products/nearest.h"

#include <algorithm>
#include <limits>

#include "cpu/tensors/rows.h"

namespace cmx {
namespace {

// Centroids whose scores a tile holds at once: they are read twice, so they should stay in the second-level cache.
constexpr int64_t kCentroidsPerPass = 1024;

// The least sum of d squares of which no more than a rounding has underflowed, nor of the products that lead to it.
template <class T>
T smallest_square(int64_t d) {
  return T(d + 8) * std::numeric_limits<T>::min() / std::numeric_limits<T>::epsilon();
}

}  // namespace

template <class T>
NearestCentroids<T>::NearestCentroids(const Tensor& centroids, bool unit)
    : kernels_(best_search_kernels<T>()), values_(centroids.numel()) {
  const int64_t k = centroids.size(0), d = centroids.size(1);
  std::copy_n(static_cast<const T*>(centroids.data_ptr()), k * d, values_.data());
  for (int64_t j = 0; unit && j < k; ++j) make_unit(values_.data() + j * d, d, 0);
  centred_ = std::make_unique<CentredCentroids<T>>(values_.data(), k, d);
  screen_ = make_screen(*centred_);
}

template <class T>
void NearestCentroids<T>::find(const TileRows<T>& rows, int64_t n, Scratch& scratch, int64_t* label,
                               double* distance) const {
  constexpr T infinity = std::numeric_limits<T>::infinity();
  const int64_t k = centred_->k, d = centred_->d, pass = std::min(kCentroidsPerPass, (k + 31) / 32 * 32);
  const int64_t padded = (n + 31) / 32 * 32;
  if (scratch.scores.size() < padded * pass) scratch.scores.resize(padded * pass);
  if (scratch.row_state.size() < 3 * n) scratch.row_state.resize(3 * n);
  T *slack = scratch.row_state.data(), *best = slack + n, *least = best + n;
  screen_->set_rows(rows, n, scratch.rows, slack);
  std::fill_n(best, n, -infinity);
  std::fill_n(least, n, infinity);
  std::fill_n(label, n, -1);
  for (int64_t j = 0; j < k; j += pass) {
    const int64_t m = std::min(pass, k - j);
    screen_->scores(scratch.rows, n, j, m, scratch.scores.data(), pass);
    kernels_.nearest({n, m, d, scratch.scores.data(), pass, centred_->half_square.data() + j, slack, rows.data,
                      rows.stride, centroid(j), j, best, least, label});
  }
  for (int64_t i = 0; i < n; ++i) {
    distance[i] = least[i];
    // From smallest_square on squares have digits; a row that equals its centroid needs none.
    if (label[i] >= 0 && least[i] >= smallest_square<T>(d)) continue;
    if (label[i] >= 0 && std::equal(rows.row(i), rows.row(i) + d, centroid(label[i]))) continue;
    find_wide(rows.row(i), label + i, distance + i);
  }
}

template <class T>
void NearestCentroids<T>::find_wide(const T* row, int64_t* label, double* distance) const {
  constexpr double infinity = std::numeric_limits<double>::infinity();
  const int64_t d = centred_->d;
  const auto search = [&](const T* x, const T* centroids, double factor) {
    *label = -1, *distance = infinity;
    for (int64_t j = 0; j < centred_->k; ++j) {
      const double candidate = kernels_.wide_distance(x, centroids + j * d, d, factor);
      if (candidate < *distance) *distance = candidate, *label = j;
    }
  };
  search(row, values_.data(), 1);
  // Squares of float32 are far from double's ends; those of double may lie beyond them.
  if constexpr (sizeof(T) == 8) {
    constexpr double up = 0x1p600, down = 0x1p-600;
    if (*label >= 0 && *distance < smallest_square<T>(d)) {
      search(row, values_.data(), up);
      *distance *= down, *distance *= down;
    } else if (*label < 0) {
      // Differences overflow, too.
      Buffer<T> scaled((centred_->k + 1) * d);
      std::copy_n(values_.data(), centred_->k * d, scaled.data());
      std::copy_n(row, d, scaled.data() + centred_->k * d);
      kernels_.scale(scaled.data(), down, scaled.size());
      search(scaled.data() + centred_->k * d, scaled.data(), 1);
      *distance *= up, *distance *= up;
    }
  }
  if (*label >= 0) return;
  *label = 0;
  *distance = kernels_.wide_distance(row, centroid(0), d, 1);
}

template class NearestCentroids<float>;
template class NearestCentroids<double>;

}  // namespace cmx
