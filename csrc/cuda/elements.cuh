// Features as they lie in memory: in float32 or a half type, several neighbours to a load. Arithmetic is float32;
// halves are converted on load and rounded to nearest on store.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>

namespace cmx {

// Neighbours in memory that one instruction loads or stores; aligned to its own size.
template <class T, int N>
struct alignas(N * sizeof(T)) Chunk {
  T element[N];
};

__device__ inline float to_float(float x) { return x; }
__device__ inline float to_float(__nv_bfloat16 x) { return __bfloat162float(x); }
__device__ inline float to_float(__half x) { return __half2float(x); }

template <class T>
__device__ T rounded(float x);
template <>
__device__ inline float rounded(float x) {
  return x;
}
template <>
__device__ inline __nv_bfloat16 rounded(float x) {
  return __float2bfloat16(x);
}
template <>
__device__ inline __half rounded(float x) {
  return __float2half(x);
}

// A (B, C, T, H, W) tensor's strides, in elements.
struct Strides {
  int64_t b, c, t, h, w;

  // True if runs of n elements along the dimension of stride `along`, whose size is a multiple of n, are aligned.
  bool aligned(const void* data, int64_t along, int n, int64_t element_size) const {
    if (along != 1 || reinterpret_cast<uintptr_t>(data) % (n * element_size)) return false;
    int ones = 0;
    for (const int64_t stride : {b, c, t, h, w}) {
      if (stride == 1) ++ones;
      if (stride != 1 && stride % n) return false;
    }
    return ones == 1;  // a second dimension of stride 1 would begin runs anywhere
  }
};

}  // namespace cmx
