#include "nearest.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "rows.h"

namespace cmx {
namespace {

// Centroids whose scores a tile holds at once: they are read twice, so they should stay in the second-level cache.
constexpr int64_t kCentroidsPerPass = 1024;

}  // namespace

template <class T>
NearestCentroids<T>::NearestCentroids(const Tensor& centroids, bool unit)
    : kernels_(best_search_kernels<T>()), values_(centroids.numel()) {
  const int64_t k = centroids.size(0), d = centroids.size(1);
  const T* given = static_cast<const T*>(centroids.data_ptr());
  std::copy(given, given + k * d, values_.data());
  for (int64_t j = 0; unit && j < k; ++j) {
    T* row = values_.data() + j * d;
    kernels_.scale(row, 1 / std::sqrt(dot(row, row, d)), d);
  }
  centred_ = std::make_unique<CentredCentroids<T>>(values_.data(), k, d);
  screen_ = make_screen(*centred_);
}

template <class T>
void NearestCentroids<T>::find(const TileRows<T>& rows, int64_t n, Scratch& scratch, int64_t* label,
                               T* distance) const {
  constexpr T infinity = std::numeric_limits<T>::infinity();
  const int64_t k = centred_->k, d = centred_->d, pass = std::min(kCentroidsPerPass, (k + 31) / 32 * 32);
  const int64_t padded = (n + 31) / 32 * 32;
  if (scratch.scores.size() < padded * pass) scratch.scores.resize(padded * pass);
  if (scratch.row_state.size() < 2 * n) scratch.row_state.resize(2 * n);
  T *slack = scratch.row_state.data(), *best = slack + n;
  screen_->set_rows(rows, n, scratch.rows, slack);
  std::fill_n(best, n, -infinity);
  std::fill_n(distance, n, infinity);
  std::fill_n(label, n, -1);
  for (int64_t j = 0; j < k; j += pass) {
    const int64_t m = std::min(pass, k - j);
    screen_->scores(scratch.rows, n, j, m, scratch.scores.data(), pass);
    kernels_.nearest({n, m, d, scratch.scores.data(), pass, centred_->half_square.data() + j, slack, rows.data,
                      rows.stride, centroid(j), j, best, distance, label});
  }
  for (int64_t i = 0; i < n; ++i)
    if (label[i] < 0) {
      label[i] = 0;
      distance[i] = kernels_.squared_distance(rows.row(i), centroid(0), d);
    }
}

template class NearestCentroids<float>;
template class NearestCentroids<double>;

}  // namespace cmx
