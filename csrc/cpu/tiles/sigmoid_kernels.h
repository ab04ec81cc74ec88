// The kernels of sigmoid_tiles.h in the vectors of simd.h; included once per instruction set, as vector_kernels.h is.
//
// With the logit z, and t = -z for a positive and z for any other pair, the loss is log(1 + exp(t)) and its derivative
// by t the sigmoid of t. Both come from e = exp(-|t|), which is at most 1, so that nothing overflows and the smaller
// one of sigmoid and 1 - sigmoid keeps its digits: loss = max(t, 0) + log1p(e).
#pragma once

#include "cpu/simd/kernels.h"
#include "cpu/simd/simd.h"
#include "cpu/tiles/sigmoid_tiles.h"

namespace cmx::CMX_NAMESPACE {
namespace {

// log(1 + e) of e in [0, 1] to T's rounding: 2 artanh(r), r = e / (2 + e) at most 1/3, by its series.
template <class T>
inline Vec<T> log1p_of(Vec<T> e) {
  constexpr int terms = sizeof(T) == 4 ? 7 : 16;
  const Vec<T> r = e / (e + T(2)), square = r * r;
  Vec<T> sum = broadcast<T>(T(2) / (2 * terms - 1));
#pragma GCC unroll 16
  for (int k = terms - 2; k >= 0; --k) sum = fused(sum, square, broadcast<T>(T(2) / (2 * k + 1)));
  return r * sum;
}

// Sums of a row over vectors of pairs.
template <class T>
struct RowVectors {
  Vec<T> loss{}, slope{}, weighted{};
};

// The pairs of one row with the columns from j on; `partial`: the last ones, of which some are beyond the tile.
template <class T, bool losses, bool derivatives, bool partial>
inline void visit_columns(const SigmoidTile<T>& tile, Int<T> row_class, int64_t j, T factor, const T* u, T* v,
                          RowVectors<T>& sums) {
  constexpr T khi = kLog2E, klo = kLog2E - double(khi);
  const Int<T> column = iota<T>() + ClassOf<T>(j), inside = column < ClassOf<T>(tile.cols) - Int<T>{};
  const auto counted = [&](Vec<T> value) { return partial ? (inside ? value : Vec<T>{}) : value; };
  const Vec<T> x = counted(load(u + j));
  Int<T> col_class;
  std::memcpy(&col_class, tile.col_class + j, sizeof(col_class));
  const Int<T> positive = col_class == row_class;
  const Vec<T> z = fused(x, broadcast<T>(tile.scale), broadcast<T>(tile.bias)), t = positive ? -z : z;
  const Vec<T> e = exp2_below<T>(t > 0 ? -t : t, khi, klo), share = 1 / (e + 1);
  // 0 times an infinity is NaN: it stays visible where the exponential swallowed it.
  const Vec<T> sigmoid = (t > 0 ? share : e * share) + 0 * x, h = positive ? -sigmoid : sigmoid;
  if constexpr (losses) {
    sums.loss += counted((t > 0 ? t : Vec<T>{}) + log1p_of<T>(e));
    sums.slope += counted(h);
    sums.weighted += counted(h * x);
  }
  if constexpr (derivatives) store(v + j, h * factor);
}

template <class T, bool losses, bool derivatives>
void visit(const SigmoidTile<T>& tile, const SigmoidSums<T>& sums, const T* factor, const T* u, int64_t ldu, T* v,
           int64_t ldv) {
  const int64_t whole = tile.cols / kLanes<T> * kLanes<T>;
  for (int64_t i = 0; i < tile.rows; ++i, u += ldu, v += ldv) {
    const Int<T> row_class = tile.row_class[i] - Int<T>{};
    RowVectors<T> row;
    for (int64_t j = 0; j < whole; j += kLanes<T>)
      visit_columns<T, losses, derivatives, false>(tile, row_class, j, factor[i], u, v, row);
    if (whole < tile.cols) visit_columns<T, losses, derivatives, true>(tile, row_class, whole, factor[i], u, v, row);
    if constexpr (losses) {
      sums.slope[i] = horizontal_sum<T>(row.slope);
      sums.loss[i] = horizontal_sum<T>(row.loss) + 0 * sums.slope[i];
      sums.weighted[i] = horizontal_sum<T>(row.weighted);
    }
  }
}

template <class T>
void sigmoid_sums(const SigmoidTile<T>& tile, const SigmoidSums<T>& sums, const T* factor, const T* u, int64_t ldu,
                  T* v, int64_t ldv) {
  v ? visit<T, true, true>(tile, sums, factor, u, ldu, v, ldv)
    : visit<T, true, false>(tile, sums, factor, u, ldu, v, ldv);
}

template <class T>
void sigmoid_slopes(const SigmoidTile<T>& tile, const T* factor, const T* u, int64_t ldu, T* v, int64_t ldv) {
  visit<T, false, true>(tile, {}, factor, u, ldu, v, ldv);
}

}  // namespace

template <class T>
const SigmoidKernels<T>& sigmoid_kernels() {
  static constexpr SigmoidKernels<T> table = {sigmoid_sums<T>, sigmoid_slopes<T>};
  return table;
}

template const SigmoidKernels<float>& sigmoid_kernels<float>();
template const SigmoidKernels<double>& sigmoid_kernels<double>();

}  // namespace cmx::CMX_NAMESPACE
