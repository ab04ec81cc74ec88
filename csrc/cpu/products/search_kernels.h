// The kernels of search.h in the vectors of simd.h; included once per instruction set, as vector_kernels.h is.
#pragma once

#include "cpu/products/search.h"
#include "cpu/simd/simd.h"
#if CMX_VECTOR_BYTES == 64
#include "cpu/simd/transpose16.h"
#endif

namespace cmx::CMX_NAMESPACE {
namespace {

// Bit i: a[i] >= b[i]; 0 where one is NaN.
inline unsigned at_least(Vec<float> a, Vec<float> b) {
#if CMX_VECTOR_BYTES == 64
  return _mm512_cmp_ps_mask((__m512)a, (__m512)b, _CMP_GE_OQ);
#elif CMX_VECTOR_BYTES == 32
  return _mm256_movemask_ps(_mm256_cmp_ps((__m256)a, (__m256)b, _CMP_GE_OQ));
#elif defined(__x86_64__)
  return _mm_movemask_ps(_mm_cmpge_ps((__m128)a, (__m128)b));
#else
  unsigned bits = 0;
  for (int i = 0; i < kLanes<float>; ++i) bits |= unsigned(a[i] >= b[i]) << i;
  return bits;
#endif
}

inline unsigned at_least(Vec<double> a, Vec<double> b) {
  unsigned bits = 0;
  for (int i = 0; i < kLanes<double>; ++i) bits |= unsigned(a[i] >= b[i]) << i;
  return bits;
}

template <class T>
inline T horizontal_max(Vec<T> v) {
#if CMX_VECTOR_BYTES == 64
  if constexpr (sizeof(T) == 4) return _mm512_reduce_max_ps((__m512)v);
#endif
  T top = v[0];
  for (int i = 1; i < kLanes<T>; ++i) top = v[i] > top ? v[i] : top;
  return top;
}

template <class T>
T squared_distance(const T* x, const T* y, int64_t d) {
  constexpr int64_t lanes = kLanes<T>;
  Vec<T> sums[4] = {};
  int64_t p = 0;
  for (; p + 4 * lanes <= d; p += 4 * lanes)
    for (int q = 0; q < 4; ++q) {
      const Vec<T> difference = load(x + p + q * lanes) - load(y + p + q * lanes);
      sums[q] += difference * difference;
    }
  T rest = 0;
  for (; p < d; ++p) rest += (x[p] - y[p]) * (x[p] - y[p]);
  return rest + horizontal_sum<T>((sums[0] + sums[1]) + (sums[2] + sums[3]));
}

template <class T>
double wide_distance(const T* x, const T* y, int64_t d, double factor) {
  // As many chains as the compiler's vectors want: double additions may not be reordered otherwise.
  constexpr int chains = 4 * CMX_VECTOR_BYTES / sizeof(double);
  double sums[chains] = {}, total = 0;
  int64_t p = 0;
  for (; p + chains <= d; p += chains)
    for (int q = 0; q < chains; ++q) {
      const double difference = (double(x[p + q]) - double(y[p + q])) * factor;
      sums[q] += difference * difference;
    }
  for (; p < d; ++p) {
    const double difference = (double(x[p]) - double(y[p])) * factor;
    total += difference * difference;
  }
  for (int q = 0; q < chains; ++q) total += sums[q];
  return total;
}

template <class T>
void nearest(const NearestTile<T>& tile) {
  constexpr int64_t lanes = kLanes<T>;
  // A copy that no store can change.
  const NearestTile<T> in = tile;
  for (int64_t i = 0; i < in.rows; ++i) {
    const T* scores = in.scores + i * in.lds;
    const T* half = in.half_square;
    Vec<T> top[2] = {broadcast<T>(in.best[i]), broadcast<T>(in.best[i])};
    for (int64_t j = 0; j < in.cols; j += 2 * lanes)
      for (int q = 0; q < 2; ++q) {
        const Vec<T> x = load(scores + j + q * lanes) - load(half + j + q * lanes);
        top[q] = x > top[q] ? x : top[q];
      }
    in.best[i] = horizontal_max<T>(top[0] > top[1] ? top[0] : top[1]);
    const Vec<T> enough = broadcast<T>(in.best[i] - in.slack[i]);
    for (int64_t j = 0; j < in.cols; j += 2 * lanes) {
      uint64_t bits = at_least(load(scores + j) - load(half + j), enough);
      bits |= uint64_t(at_least(load(scores + j + lanes) - load(half + j + lanes), enough)) << lanes;
      // The padding's scores are as good as any where all are infinite.
      if (j + 2 * lanes > in.cols) bits &= (uint64_t(1) << (in.cols - j)) - 1;
      for (; bits; bits &= bits - 1) {
        const int64_t k = j + __builtin_ctzll(bits);
        const T distance = squared_distance(in.values + i * in.ldv, in.centroids + k * in.d, in.d);
        // Candidates come in the order of their index, so the lowest of equals stays.
        if (!(distance < in.distance[i])) continue;
        in.distance[i] = distance;
        in.label[i] = in.first + k;
      }
    }
  }
}

template <class T>
T centre(const T* x, const T* origin, int64_t d, T* y) {
  Vec<T> sum{};
  int64_t p = 0;
  for (; p + kLanes<T> <= d; p += kLanes<T>) {
    const Vec<T> moved = load(x + p) - load(origin + p);
    store(y + p, moved);
    sum += moved * moved;
  }
  T rest = 0;
  for (; p < d; ++p) {
    y[p] = x[p] - origin[p];
    rest += y[p] * y[p];
  }
  return rest + horizontal_sum<T>(sum);
}

template <class T>
void scale(T* x, T factor, int64_t d) {
  for (int64_t p = 0; p < d; ++p) x[p] *= factor;
}

template <class T>
void transpose(const T* columns, int64_t stride, int64_t n, int64_t d, T* rows, int64_t ldr) {
  constexpr int64_t block = 16;
  for (int64_t p = 0; p < d; p += block)
    for (int64_t i = 0; i < n; i += block) {
#if CMX_VECTOR_BYTES == 64
      if constexpr (sizeof(T) == 4)
        if (p + block <= d && i + block <= n) {
          __m512 r[block];
          for (int q = 0; q < block; ++q) r[q] = _mm512_loadu_ps(columns + (p + q) * stride + i);
          cmx::transpose(r);
          for (int q = 0; q < block; ++q) _mm512_storeu_ps(rows + (i + q) * ldr + p, r[q]);
          continue;
        }
#endif
      for (int64_t r = i; r < (i + block < n ? i + block : n); ++r)
        for (int64_t q = p; q < (p + block < d ? p + block : d); ++q) rows[r * ldr + q] = columns[q * stride + r];
    }
}

template <class T>
void step_codes(const T* codes, const T* r, int64_t n, T* next, T* change) {
  for (int64_t i = 0; i < n; ++i) {
    const T before = codes[i], sum = before + r[i], after = sum < 0 ? 0 : sum;
    next[i] = after;
    change[i] = after - before;
  }
}

template <class T>
void where_positive(const T* sign, int64_t n, T* x, T* sums) {
  for (int64_t i = 0; i < n; ++i) {
    x[i] = sign[i] > 0 ? x[i] : 0;
    sums[i] += x[i];
  }
}

template <class T>
void accumulate(const T* x, double weight, int64_t d, double* sums) {
  for (int64_t p = 0; p < d; ++p) sums[p] += weight * double(x[p]);
}

}  // namespace

template <class T>
const SearchKernels<T>& search_kernels() {
  static constexpr SearchKernels<T> table = {nearest<T>,   wide_distance<T>, centre<T>,         scale<T>,
                                             transpose<T>, step_codes<T>,    where_positive<T>, accumulate<T>};
  return table;
}

template const SearchKernels<float>& search_kernels<float>();
template const SearchKernels<double>& search_kernels<double>();

}  // namespace cmx::CMX_NAMESPACE
