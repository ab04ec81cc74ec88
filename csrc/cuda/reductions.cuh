// Sums over the threads of a block, in an order that depends on the block's shape alone: shuffles within a warp, then
// the warps' results from shared memory, warp after warp.
#pragma once

namespace cmx {

constexpr int kThreads = 256;
constexpr int kWarp = 32;
constexpr int kWarps = kThreads / kWarp;
constexpr unsigned kAllLanes = 0xffffffffu;

// Over `width` neighbours, a power of two up to 32; every one of them gets the sum.
template <class T>
__device__ T sum_neighbours(T value, int width) {
  for (int offset = width / 2; offset > 0; offset /= 2) value += __shfl_xor_sync(kAllLanes, value, offset);
  return value;
}

// Over the threads of equal index modulo width, a power of two up to 32: shared[i * width + index] is the sum of their
// values[i]. Takes kWarps * COUNT * width floats of shared memory.
template <int COUNT>
__device__ void sum_across(float (&values)[COUNT], int width, float* shared) {
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
  for (int offset = kWarp / 2; offset >= width; offset /= 2) {
#pragma unroll
    for (int i = 0; i < COUNT; ++i) values[i] += __shfl_xor_sync(kAllLanes, values[i], offset);
  }
  if (lane < width) {
#pragma unroll
    for (int i = 0; i < COUNT; ++i) shared[(warp * COUNT + i) * width + lane] = values[i];
  }
  __syncthreads();
  for (int item = threadIdx.x; item < COUNT * width; item += kThreads) {
    float total = shared[item];
    for (int other = 1; other < kWarps; ++other) total += shared[other * COUNT * width + item];
    shared[item] = total;
  }
  __syncthreads();
}

// Over the whole block, of any number of warps; every thread gets the result. Takes a float of shared memory per warp.
template <class Join>
__device__ float join_block(float value, float* shared, const Join& join) {
  for (int offset = kWarp / 2; offset > 0; offset /= 2) value = join(value, __shfl_xor_sync(kAllLanes, value, offset));
  if (threadIdx.x % kWarp == 0) shared[threadIdx.x / kWarp] = value;
  __syncthreads();
  value = shared[0];
  for (int warp = 1; warp < int(blockDim.x) / kWarp; ++warp) value = join(value, shared[warp]);
  __syncthreads();
  return value;
}

__device__ inline float sum_block(float value, float* shared) {
  return join_block(value, shared, [](float one, float other) { return one + other; });
}

// Drops NaN, as a GPU's maximum does.
__device__ inline float max_block(float value, float* shared) {
  return join_block(value, shared, [](float one, float other) { return other > one ? other : one; });
}

}  // namespace cmx
