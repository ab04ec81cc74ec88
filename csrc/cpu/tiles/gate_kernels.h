// The kernels of gates.h; included once per instruction set, as vector_kernels.h is. Plain loops where the compiler
// makes vectors of them; it may not reorder sums.
#pragma once

#include "cpu/simd/simd.h"
#include "cpu/tiles/gates.h"

namespace cmx::CMX_NAMESPACE {
namespace {

// f(p) for the vectors of n numbers, four sums of them taking turns, then g(p) for the numbers left over.
template <class T, class F, class G>
T sum_of(int64_t n, const F& f, const G& g) {
  constexpr int64_t lanes = kLanes<T>;
  Vec<T> sums[4] = {};
  int64_t p = 0;
  for (; p + 4 * lanes <= n; p += 4 * lanes)
    for (int q = 0; q < 4; ++q) sums[q] += f(p + q * lanes);
  for (; p + lanes <= n; p += lanes) sums[0] += f(p);
  T rest = 0;
  for (; p < n; ++p) rest += g(p);
  return horizontal_sum<T>((sums[0] + sums[1]) + (sums[2] + sums[3])) + rest;
}

template <class T>
T pool(const T* x, int64_t n, T* highest) {
  if (!highest) return sum_of<T>(n, [=](int64_t p) { return load(x + p); }, [=](int64_t p) { return x[p]; });
  Vec<T> largest = broadcast<T>(-__builtin_inf());
  T single = -__builtin_inf();
  const T sum = sum_of<T>(
      n,
      [&](int64_t p) {
        const Vec<T> v = load(x + p);
        largest = v > largest ? v : largest;
        return v;
      },
      [&](int64_t p) {
        single = x[p] > single ? x[p] : single;
        return x[p];
      });
  for (int i = 0; i < kLanes<T>; ++i) single = largest[i] > single ? largest[i] : single;
  *highest = single;
  return sum;
}

template <class T>
void apply(const T* __restrict x, T gate, const T* __restrict residual, int64_t n, T* __restrict out) {
  if (!residual) {
    for (int64_t p = 0; p < n; ++p) out[p] = x[p] * gate;
    return;
  }
  for (int64_t p = 0; p < n; ++p) {
    const T sum = x[p] * gate + residual[p];
    out[p] = sum < 0 ? 0 : sum;
  }
}

template <class T>
T slope(const T* grad, const T* out, const T* x, int64_t n) {
  if (!out)
    return sum_of<T>(
        n, [=](int64_t p) { return load(grad + p) * load(x + p); }, [=](int64_t p) { return grad[p] * x[p]; });
  return sum_of<T>(
      n, [=](int64_t p) { return load(out + p) <= 0 ? Vec<T>{} : load(grad + p) * load(x + p); },
      [=](int64_t p) { return out[p] <= 0 ? T(0) : grad[p] * x[p]; });
}

template <class T>
void gradient(const T* __restrict grad, const T* __restrict out, T gate, T offset, int64_t n, T* __restrict dx,
              T* __restrict dresidual) {
  if (!out) {
    for (int64_t p = 0; p < n; ++p) dx[p] = grad[p] * gate + offset;
    return;
  }
  for (int64_t p = 0; p < n; ++p) {
    const T passed = out[p] <= 0 ? 0 : grad[p];
    dresidual[p] = passed;
    dx[p] = passed * gate + offset;
  }
}

template <class T>
void pool_channel(const T* __restrict x, int64_t n, int32_t channel, T* __restrict sums, T* __restrict highest,
                  int32_t* __restrict at) {
  for (int64_t p = 0; p < n; ++p) {
    const bool above = x[p] > highest[p];
    sums[p] += x[p];
    highest[p] = above ? x[p] : highest[p];
    at[p] = above ? channel : at[p];
  }
}

template <class T>
void apply_map(const T* __restrict x, const T* __restrict gate, const T* __restrict residual, int64_t n,
               T* __restrict out) {
  if (!residual) {
    for (int64_t p = 0; p < n; ++p) out[p] = x[p] * gate[p];
    return;
  }
  for (int64_t p = 0; p < n; ++p) {
    const T sum = x[p] * gate[p] + residual[p];
    out[p] = sum < 0 ? 0 : sum;
  }
}

template <class T>
void gradient_map(const T* __restrict grad, const T* __restrict out, const T* __restrict x, const T* __restrict gate,
                  int64_t n, T* __restrict slopes, T* __restrict dx, T* __restrict dresidual) {
  if (!out) {
    for (int64_t p = 0; p < n; ++p) {
      slopes[p] += grad[p] * x[p];
      dx[p] = grad[p] * gate[p];
    }
    return;
  }
  for (int64_t p = 0; p < n; ++p) {
    const T passed = out[p] <= 0 ? 0 : grad[p];
    slopes[p] += passed * x[p];
    dresidual[p] = passed;
    dx[p] = passed * gate[p];
  }
}

}  // namespace

template <class T>
const GateKernels<T>& gate_kernels() {
  static constexpr GateKernels<T> table = {pool<T>,         apply<T>,     slope<T>,       gradient<T>,
                                           pool_channel<T>, apply_map<T>, gradient_map<T>};
  return table;
}

template const GateKernels<float>& gate_kernels<float>();
template const GateKernels<double>& gate_kernels<double>();

}  // namespace cmx::CMX_NAMESPACE
