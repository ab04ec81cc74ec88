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

template <class T, bool losses, bool derivatives>
void visit(const SigmoidTile<T>& tile, const SigmoidSums<T>& sums, const T* factor, const T* u, int64_t ldu, T* v,
           int64_t ldv) {
  constexpr T khi = kLog2E, klo = kLog2E - double(khi);
  for (int64_t i = 0; i < tile.rows; ++i, u += ldu, v += ldv) {
    const Int<T> row_class = tile.row_class[i] - Int<T>{};
    Vec<T> loss{}, slope{}, weighted{};
    for (int64_t j = 0; j < tile.cols; j += kLanes<T>) {
      const Int<T> column = iota<T>() + ClassOf<T>(j), inside = column < ClassOf<T>(tile.cols) - Int<T>{};
      const Vec<T> x = inside ? load(u + j) : Vec<T>{};
      Int<T> col_class;
      std::memcpy(&col_class, tile.col_class + j, sizeof(col_class));
      const Int<T> positive = col_class == row_class;
      const Vec<T> z = fused(x, broadcast<T>(tile.scale), broadcast<T>(tile.bias)), t = positive ? -z : z;
      const Vec<T> e = exp2_below<T>(t > 0 ? -t : t, khi, klo), share = 1 / (e + 1);
      // 0 times an infinity is NaN: it stays visible where the exponential swallowed it.
      const Vec<T> sigmoid = (t > 0 ? share : e * share) + 0 * x, h = positive ? -sigmoid : sigmoid;
      if constexpr (losses) {
        const Vec<T> log_term = (t > 0 ? t : Vec<T>{}) + log1p_of<T>(e) + 0 * x;
        loss += inside ? log_term : Vec<T>{};
        slope += inside ? h : Vec<T>{};
        weighted += inside ? h * x : Vec<T>{};
      }
      if constexpr (derivatives) store(v + j, h * factor[i]);
    }
    if constexpr (losses) {
      sums.loss[i] = horizontal_sum<T>(loss);
      sums.slope[i] = horizontal_sum<T>(slope);
      sums.weighted[i] = horizontal_sum<T>(weighted);
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
