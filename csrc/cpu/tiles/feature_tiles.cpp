#include "cpu/tiles/feature_tiles.h"

#include <algorithm>
#include <cmath>
#include <type_traits>

#include "common/parallel.h"
#include "cpu/products/search.h"
#include "cpu/simd/elements.h"
#include "cpu/tensors/rows.h"

namespace cmx {
namespace {

constexpr int64_t kTileBytes = 128 << 10;  // of a tile's rows: they stay in the second-level cache beside the scores

}  // namespace

template <class T>
FeatureTiles<T>::FeatureTiles(const Tensor& x, Normalize normalize, int64_t rows_per_tile)
    : x_(x), normalize_(normalize), batches_(x.size(0)), positions_(x.size(1)), d_(x.size(2)) {
  rows_per_tile_ = rows_per_tile;
  if (!rows_per_tile)
    rows_per_tile_ = std::clamp<int64_t>(kTileBytes / (d_ * int64_t(sizeof(T))) / 32 * 32, 32, kMostRows);
  tiles_per_batch_ = ceil_div(positions_, rows_per_tile_);
}

template <class T>
int64_t FeatureTiles<T>::begin(int64_t tile) const {
  return tile / tiles_per_batch_ * positions_ + tile % tiles_per_batch_ * rows_per_tile_;
}

template <class T>
int64_t FeatureTiles<T>::rows(int64_t tile) const {
  return std::min(rows_per_tile_, positions_ - tile % tiles_per_batch_ * rows_per_tile_);
}

template <class T>
bool FeatureTiles<T>::in_place() const {
  const auto own = sizeof(T) == 8 ? torch::headeronly::ScalarType::Double : torch::headeronly::ScalarType::Float;
  return x_.scalar_type() == own && x_.stride(2) == 1 && normalize_ == Normalize::kNo;
}

template <class T>
TileRows<T> FeatureTiles<T>::load(int64_t tile, Buffer<T>& buffer, T* inverse_norm) const {
  const int64_t n = rows(tile), batch = tile / tiles_per_batch_, first = tile % tiles_per_batch_ * rows_per_tile_;
  const int64_t row_stride = x_.stride(1), feature_stride = x_.stride(2);
  const SearchKernels<T>& kernels = best_search_kernels<T>();
  TileRows<T> rows{};
  with_elements(x_, [&](const auto* elements) {
    using Element = std::remove_const_t<std::remove_pointer_t<decltype(elements)>>;
    elements += batch * x_.stride(0) + first * row_stride;
    if (in_place()) {
      rows = {reinterpret_cast<const T*>(elements), row_stride};
      return;
    }
    // A second tile for the columns of maps that are of another type.
    buffer.resize(2 * rows_per_tile_ * d_);
    T* out = buffer.data();
    rows = {out, d_};
    if (feature_stride == 1 || row_stride != 1) {
      for (int64_t i = 0; i < n; ++i)
        for (int64_t p = 0; p < d_; ++p)
          out[i * d_ + p] = static_cast<T>(elements[i * row_stride + p * feature_stride]);
    } else if constexpr (std::is_same_v<Element, T>) {
      kernels.transpose(elements, feature_stride, n, d_, out, d_);
    } else {
      T* columns = out + rows_per_tile_ * d_;
      for (int64_t p = 0; p < d_; ++p)
        for (int64_t i = 0; i < n; ++i)
          columns[p * rows_per_tile_ + i] = static_cast<T>(elements[p * feature_stride + i]);
      kernels.transpose(columns, rows_per_tile_, n, d_, out, d_);
    }
    if (normalize_ == Normalize::kNo) return;
    for (int64_t i = 0; i < n; ++i) {
      const T inverse = make_unit(out + i * d_, d_, normalize_ == Normalize::kBounded ? kSmallestNorm : 0);
      if (inverse_norm) inverse_norm[i] = inverse;
    }
  });
  return rows;
}

template <class T>
void FeatureTiles<T>::store(int64_t tile, const T* rows, const Tensor& like) const {
  const int64_t n = this->rows(tile), batch = tile / tiles_per_batch_, first = tile % tiles_per_batch_ * rows_per_tile_;
  const int64_t row_stride = like.stride(1), feature_stride = like.stride(2);
  with_elements(like, [&](auto* elements) {
    using Element = std::remove_pointer_t<decltype(elements)>;
    elements += batch * like.stride(0) + first * row_stride;
    if (std::is_same_v<Element, T> && row_stride == 1)
      best_search_kernels<T>().transpose(rows, d_, d_, n, reinterpret_cast<T*>(elements), feature_stride);
    else
      for (int64_t i = 0; i < n; ++i)
        for (int64_t p = 0; p < d_; ++p)
          elements[i * row_stride + p * feature_stride] = static_cast<Element>(rows[i * d_ + p]);
  });
}

template class FeatureTiles<float>;
template class FeatureTiles<double>;

}  // namespace cmx
