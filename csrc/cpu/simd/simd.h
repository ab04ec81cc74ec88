// Vectors of one width per translation unit, so that one source serves SSE2, AVX2, AVX-512 and NEON.
// The including file sets the target before any include and defines CMX_VECTOR_BYTES.
//
// exp2 in two pieces: the exponent u * k is split as a whole number n and a fraction f in [-1/2, 1/2], 2^f by its
// Taylor series to T's rounding, 2^n by the exponent's bits. k = scale * log2(e) comes as khi + klo, and f is formed by
// multiply-adds that are fused where the machine can, from the unrounded product: large exponents then lose nothing
// beside u's own rounding.
#pragma once

#include <cstdint>
#include <cstring>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace cmx {
namespace {

template <class T>
struct Simd;

template <>
struct Simd<float> {
  using Vec = float __attribute__((vector_size(CMX_VECTOR_BYTES)));
  using Int = int32_t __attribute__((vector_size(CMX_VECTOR_BYTES)));
  using Bits = int32_t;
  static constexpr int kMantissa = 23, kBias = 127, kDegree = 7;
  static constexpr float kMagic = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer
};

template <>
struct Simd<double> {
  using Vec = double __attribute__((vector_size(CMX_VECTOR_BYTES)));
  using Int = int64_t __attribute__((vector_size(CMX_VECTOR_BYTES)));
  using Bits = int64_t;
  static constexpr int kMantissa = 52, kBias = 1023, kDegree = 13;
  static constexpr double kMagic = 6755399441055744.0;  // 1.5 * 2^52
};

template <class T>
using Vec = typename Simd<T>::Vec;
template <class T>
using Int = typename Simd<T>::Int;
template <class T>
inline constexpr int kLanes = CMX_VECTOR_BYTES / sizeof(T);

template <class T>
inline Vec<T> load(const T* p) {
  Vec<T> v;
  std::memcpy(&v, p, sizeof(v));
  return v;
}

template <class T>
inline void store(T* p, Vec<T> v) {
  std::memcpy(p, &v, sizeof(v));
}

template <class T>
inline Vec<T> broadcast(T x) {
  return x - Vec<T>{};
}

template <class T>
inline Int<T> iota() {
  Int<T> v;
  for (int i = 0; i < kLanes<T>; ++i) v[i] = i;
  return v;
}

// a * b + c rounded once where the machine can: exp2_parts needs the exact product.
inline Vec<float> fused(Vec<float> a, Vec<float> b, Vec<float> c) {
#if CMX_VECTOR_BYTES == 64
  return (Vec<float>)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#elif CMX_VECTOR_BYTES == 32
  return (Vec<float>)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
#else
  return a * b + c;
#endif
}

inline Vec<double> fused(Vec<double> a, Vec<double> b, Vec<double> c) { return a * b + c; }

// e * 2^q for integral q; 0 where the power underflows: arithmetic on subnormal numbers is a hundred times slower.
template <class T>
inline Vec<T> scale_by_power(Vec<T> e, Vec<T> q) {
#if CMX_VECTOR_BYTES == 64
  if constexpr (sizeof(T) == 4) {
    // "not less" keeps NaN.
    const __mmask16 normal = _mm512_cmp_ps_mask((__m512)q, _mm512_set1_ps(-125), _CMP_NLT_UQ);
    return (Vec<T>)_mm512_maskz_scalef_ps(normal, (__m512)e, (__m512)q);
  }
#endif
  constexpr T lowest = -Simd<T>::kBias;
  q = q < broadcast<T>(lowest) ? broadcast<T>(lowest) : q;
  Int<T> bits = (__builtin_convertvector(q, Int<T>) + Simd<T>::kBias) << Simd<T>::kMantissa;
  return e * (Vec<T>)bits;
}

// Taylor coefficients of 2^f; on |f| <= 1/2 the first one left out is below the rounding of T.
template <class T>
struct Exp2Series {
  T c[Simd<T>::kDegree + 1];
  constexpr Exp2Series() : c() {
    double term = 1;
    for (int k = 0; k <= Simd<T>::kDegree; ++k, term *= 0.69314718055994530942 / k) c[k] = term;
  }
};
template <class T>
inline constexpr Exp2Series<T> kExp2Series{};

// 2^(u * (khi + klo)) = e * 2^n with e in [0.7, 1.42]. The fraction comes from one fused product, so it carries no
// rounding of the logit itself: the result is as exact as u.
template <class T>
inline void exp2_parts(Vec<T> u, T khi, T klo, Vec<T>& e, Vec<T>& n) {
  const Vec<T> magic = broadcast<T>(Simd<T>::kMagic);
  n = (u * khi + magic) - magic;
  Vec<T> f = fused(u, broadcast<T>(khi), -n);
  f = fused(u, broadcast<T>(klo), f);
  e = broadcast<T>(kExp2Series<T>.c[Simd<T>::kDegree]);
#pragma GCC unroll 16
  for (int k = Simd<T>::kDegree - 1; k >= 0; --k) e = fused(e, f, broadcast<T>(kExp2Series<T>.c[k]));
}

// exp2(x * (khi + klo)) of x that is at most 0, 0 where it underflows.
template <class T>
inline Vec<T> exp2_below(Vec<T> x, T khi, T klo) {
  // "not less" keeps NaN.
  const Vec<T> lowest = broadcast<T>(T(-2 * Simd<T>::kBias) / khi);
  x = x < lowest ? lowest : x;
  Vec<T> e, n;
  exp2_parts<T>(x, khi, klo, e, n);
  return scale_by_power<T>(e, n);
}

template <class T>
inline T horizontal_sum(Vec<T> v) {
#if CMX_VECTOR_BYTES == 64
  // In halves: one lane after the other costs sixteen times the latency of an addition.
  if constexpr (sizeof(T) == 4) return _mm512_reduce_add_ps((__m512)v);
#endif
  T total = 0;
  for (int i = 0; i < kLanes<T>; ++i) total += v[i];
  return total;
}

}  // namespace
}  // namespace cmx
