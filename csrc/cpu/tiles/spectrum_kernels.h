// The kernels of spectra.h; included once per instruction set, as vector_kernels.h is.
#pragma once

#include "cpu/simd/simd.h"
#include "cpu/tiles/spectra.h"

namespace cmx::CMX_NAMESPACE {
namespace {

using V = Vec<float>;
constexpr int64_t kWidth = kLanes<float>;

void frame(const float* __restrict x, const float* __restrict window, int64_t count, float preemphasis,
           bool remove_mean, float* __restrict out) {
  // Not times 0: the sample before the first may be anything.
  if (preemphasis == 0) {
    for (int64_t t = 0; t < count; ++t) out[t] = x[t];
  } else {
    for (int64_t t = 0; t < count; ++t) out[t] = x[t] - preemphasis * x[t - 1];
  }
  float mean = 0;
  if (remove_mean) {
    V sums[4] = {};
    int64_t t = 0;
    for (; t + 4 * kWidth <= count; t += 4 * kWidth)
      for (int q = 0; q < 4; ++q) sums[q] += load(out + t + q * kWidth);
    mean = horizontal_sum<float>((sums[0] + sums[1]) + (sums[2] + sums[3]));
    for (; t < count; ++t) mean += out[t];
    mean /= count;
  }
  for (int64_t t = 0; t < count; ++t) out[t] = (out[t] - mean) * window[t];
}

// A square block: rows at `from`, `stride` numbers apart, to columns at `to`, which lie one behind the other.
inline void transpose(const float* from, int64_t stride, float* to) {
  V rows[kWidth];
#pragma GCC unroll 16
  for (int i = 0; i < kWidth; ++i) rows[i] = load(from + i * stride);
#pragma GCC unroll 4
  for (int half = 1; half < kWidth; half *= 2) {
    Int<float> upper, lower;
    for (int j = 0; j < kWidth; ++j) {
      upper[j] = j & half ? kWidth + j - half : j;
      lower[j] = j & half ? kWidth + j : j + half;
    }
#pragma GCC unroll 16
    for (int i = 0; i < kWidth; ++i) {
      if (i & half) continue;
      const V a = rows[i], b = rows[i + half];
      rows[i] = __builtin_shuffle(a, b, upper);
      rows[i + half] = __builtin_shuffle(a, b, lower);
    }
  }
#pragma GCC unroll 16
  for (int i = 0; i < kWidth; ++i) store(to + i * kWidth, rows[i]);
}

struct Complex {
  V re, im;
};

inline Complex at(const float* z, int64_t i) { return {load(z + 2 * i * kWidth), load(z + (2 * i + 1) * kWidth)}; }

inline void put(float* z, int64_t i, Complex v) {
  store(z + 2 * i * kWidth, v.re);
  store(z + (2 * i + 1) * kWidth, v.im);
}

inline Complex operator+(Complex a, Complex b) { return {a.re + b.re, a.im + b.im}; }
inline Complex operator-(Complex a, Complex b) { return {a.re - b.re, a.im - b.im}; }
inline Complex times(Complex a, const float* w) {
  return {fused(a.re, broadcast(w[0]), -(a.im * w[1])), fused(a.re, broadcast(w[1]), a.im * w[0])};
}

// One pass of Stockham's transform: n numbers, each `step` apart in interleaved sequences.
inline void pass_of_four(int64_t n, int64_t step, const float* w, const float* from, float* to) {
  const int64_t quarter = n / 4;
  for (int64_t p = 0; p < quarter; ++p, w += 6) {
    for (int64_t q = 0; q < step; ++q) {
      const Complex a = at(from, q + step * p), b = at(from, q + step * (p + quarter)),
                    c = at(from, q + step * (p + 2 * quarter)), d = at(from, q + step * (p + 3 * quarter));
      const Complex even = a + c, odd = b + d, across = a - c, turned = {b.im - d.im, d.re - b.re};  // -i (b - d)
      float* out = to + 2 * kWidth * (q + step * 4 * p);
      put(out, 0, even + odd);
      put(out, step, times(across + turned, w));
      put(out, 2 * step, times(even - odd, w + 2));
      put(out, 3 * step, times(across - turned, w + 4));
    }
  }
}

float* power(const FourierPlan& plan, float* frames, float* other) {
  const int64_t n = plan.n, half = n / 2;
  for (int64_t t = 0; t < n; t += kWidth) transpose(frames + t, n, other + t * kWidth);
  // Even moments are real parts, odd ones imaginary: a complex transform of half the length.
  float *z = other, *next = frames;
  const float* w = plan.passes;
  int64_t left = half, step = 1;
  for (; left >= 4; left /= 4, step *= 4) {
    pass_of_four(left, step, w, z, next);
    w += left / 4 * 6;
    float* done = next;
    next = z, z = done;
  }
  if (left == 2) {
    for (int64_t q = 0; q < half / 2; ++q) {
      const Complex a = at(z, q), b = at(z, q + half / 2);
      put(next, q, a + b), put(next, q + half / 2, a - b);
    }
    float* done = next;
    next = z, z = done;
  }
  const Complex first = at(z, 0);
  const V sum = first.re + first.im, difference = first.re - first.im;
  store(next, sum * sum);
  store(next + half * kWidth, difference * difference);
  for (int64_t k = 1; k <= half / 2; ++k) {
    const Complex a = at(z, k), b = at(z, half - k);
    const Complex even = {(a.re + b.re) * 0.5f, (a.im - b.im) * 0.5f};
    const Complex odd = times({(a.im + b.im) * 0.5f, (b.re - a.re) * 0.5f}, plan.halves + 2 * k);
    const Complex low = even + odd, high = even - odd;
    store(next + k * kWidth, fused(low.re, low.re, low.im * low.im));
    store(next + (half - k) * kWidth, fused(high.re, high.re, high.im * high.im));
  }
  return next;
}

// Natural logarithm of normal positive numbers; infinity and NaN stay.
inline V logarithm(V x) {
  const Int<float> bits = (Int<float>)x;
  // The mantissa between sqrt(1/2) and sqrt(2), where 2 artanh((m - 1) / (m + 1)) converges fast.
  const Int<float> shifted = bits - 0x3f3504f3;
  const Int<float> exponent = shifted >> 23;
  const V m = (V)((shifted & 0x007fffff) + 0x3f3504f3);
  const V s = (m - 1) / (m + 1), square = s * s;
  V series = broadcast(2.0f / 9);
  series = fused(series, square, broadcast(2.0f / 7));
  series = fused(series, square, broadcast(2.0f / 5));
  series = fused(series, square, broadcast(2.0f / 3));
  series = fused(series * square, s, s + s);
  const V result = fused(__builtin_convertvector(exponent, V), broadcast(0.693147180559945f), series);
  return x - x == 0 ? result : x;
}

void band(const float* power, const float* weights, int64_t begin, int64_t end, Level form, float mean, float std,
          float* level) {
  V sums[4] = {};
  int64_t j = begin;
  for (; j + 4 <= end; j += 4)
    for (int q = 0; q < 4; ++q) sums[q] = fused(load(power + (j + q) * kWidth), broadcast(weights[j + q]), sums[q]);
  for (; j < end; ++j) sums[0] = fused(load(power + j * kWidth), broadcast(weights[j]), sums[0]);
  V energy = (sums[0] + sums[1]) + (sums[2] + sums[3]);
  if (form.logarithm != Logarithm::kNone) {
    // Below the smallest normal number there is only rounding; comparisons are such that NaN stays.
    const V least = broadcast(1.17549435e-38f);
    const V natural = logarithm(energy < least ? least : energy);
    const bool decibels = form.logarithm == Logarithm::kDecibels;
    const V none = broadcast(form.lowest), below = decibels ? none : energy < 0 ? broadcast(__builtin_nanf("")) : none;
    energy = energy <= form.floor ? below : natural * (decibels ? 4.34294481903251828f : 1.0f);
  }
  store(level, (energy - mean) / std);
}

}  // namespace

const SpectrumKernels& spectrum_kernels() {
  static constexpr SpectrumKernels table = {kWidth, frame, power, band};
  return table;
}

}  // namespace cmx::CMX_NAMESPACE
