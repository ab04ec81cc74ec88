// The kernels of column_maxima.h in the vectors of simd.h. Included once per instruction set after vector_kernels.h,
// whose micro-kernel makes the products.
//
// A panel of columns stays in the first-level cache while all rows go over it. The micro-kernel leaves a block of a few
// rows by two vectors there, whose rows are compared with the panel's maxima one after the other: 12 operations beside
// the 2 * features multiply-adds of a row. A NaN is larger than every number, and the first of equal products stays.
#pragma once

#include "cpu/products/column_maxima.h"
#include "cpu/simd/simd.h"
#include "cpu/simd/vector_kernels.h"

namespace cmx::CMX_NAMESPACE {
namespace {

// All ones where x takes the place of `best`.
template <class T>
inline Int<T> exceeds(Vec<T> x, Vec<T> best) {
  return ~(x <= best) & (best == best);
}

template <class T>
inline Int<T> load_places(const Place<T>* p) {
  Int<T> v;
  std::memcpy(&v, p, sizeof(v));
  return v;
}

template <class T>
inline void store_places(Place<T>* p, Int<T> v) {
  std::memcpy(p, &v, sizeof(v));
}

// block (rows, panel) = x . columns of one head, in chains of this length.
template <class T>
inline void head_block(int64_t rows, int64_t features, int64_t chain, const T* x, int64_t stride, const T* columns,
                       T* block) {
  if (features == 0) std::memset(block, 0, kMicroRows * kPanel<T> * sizeof(T));
  for (int64_t p = 0; p < features; p += chain) {
    const int64_t length = chain < features - p ? chain : features - p;
    micro_rows<T, kMicroRows, false>(rows, length, x + p, stride, columns + p * kPanel<T>, block, kPanel<T>, p > 0);
  }
}

template <class T>
void column_maxima(const MaximaTile<T>& tile) {
  constexpr int64_t panel = kPanel<T>, lanes = kLanes<T>;
  using Number = Place<T>;
  alignas(64) T block[kMicroRows * panel], other[kMicroRows * panel];
  alignas(64) Number head_of[kMicroRows * panel];
  const int64_t heads = tile.heads, features = tile.features;
  // As short as those of scores.
  const int64_t chains = (features + kScoreChain - 1) / kScoreChain;
  const int64_t chain = chains ? (features + chains - 1) / chains : 0;
  const T* columns = tile.packed;
  for (int64_t j = 0; j < tile.columns; j += panel, columns += heads * features * panel) {
    Vec<T> best[2] = {load(tile.best + j), load(tile.best + j + lanes)};
    Int<T> place[2] = {load_places<T>(tile.place + j), load_places<T>(tile.place + j + lanes)};
    for (int64_t i = 0; i < tile.rows; i += kMicroRows) {
      const int64_t rows = tile.rows - i < kMicroRows ? tile.rows - i : kMicroRows;
      const T* x = tile.x + i * tile.stride;
      head_block(rows, features, chain, x, tile.stride, columns, block);
      // Heads first, the rows in their order after them: the first place of equal products is that of torch.max.
      if (heads > 1) std::memset(head_of, 0, sizeof(head_of));
      for (int64_t h = 1; h < heads; ++h) {
        head_block(rows, features, chain, x + h * features, tile.stride, columns + h * features * panel, other);
        for (int64_t q = 0; q < rows * panel; q += lanes) {
          const Vec<T> s = load(other + q), top = load(block + q);
          const Int<T> larger = exceeds<T>(s, top);
          store(block + q, larger ? s : top);
          store_places<T>(head_of + q, larger ? Number(h) - Int<T>{} : load_places<T>(head_of + q));
        }
      }
      for (int64_t r = 0; r < rows; ++r) {
        const Int<T> number = Number((tile.first + i + r) * heads) - Int<T>{};
        for (int half = 0; half < 2; ++half) {
          const int64_t at = r * panel + half * lanes;
          const Vec<T> s = load(block + at);
          const Int<T> larger = exceeds<T>(s, best[half]);
          best[half] = larger ? s : best[half];
          place[half] = larger ? (heads > 1 ? number + load_places<T>(head_of + at) : number) : place[half];
        }
      }
    }
    for (int half = 0; half < 2; ++half) {
      store(tile.best + j + half * lanes, best[half]);
      store_places<T>(tile.place + j + half * lanes, place[half]);
    }
  }
}

template <class T>
void add_scaled(T factor, const T* x, int64_t d, T* y) {
  int64_t p = 0;
  for (; p + kLanes<T> <= d; p += kLanes<T>) store(y + p, load(y + p) + factor * load(x + p));
  for (; p < d; ++p) y[p] += factor * x[p];
}

}  // namespace

template <class T>
const MaximaKernels<T>& maxima_kernels() {
  static constexpr MaximaKernels<T> table = {column_maxima<T>, add_scaled<T>};
  return table;
}

template const MaximaKernels<float>& maxima_kernels<float>();
template const MaximaKernels<double>& maxima_kernels<double>();

}  // namespace cmx::CMX_NAMESPACE
