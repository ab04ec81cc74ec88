// Kernels with one mistake each, which the emulator has to find.
#include <cstdio>

#include "cuda/async_copy.cuh"
#include "cuda/elements.cuh"
#include "cuda/matrix_unit.cuh"
#include "cuda/reductions.cuh"

namespace cmx {
alignas(16) float shared[emulator::kSharedFloats];

void diverging_barrier(float*) {
  if (threadIdx.x < kWarp) __syncthreads();
}
void diverging_shuffle(float* out) {
  if (threadIdx.x % 2) out[0] = __shfl_xor_sync(kAllLanes, 1.f, 1);
}
void beyond_shared_memory(float*) {
  extern __shared__ float shared[];
  shared[threadIdx.x + 1] = 1;
}
void unwritten_shared_memory(float* out) {
  extern __shared__ float shared[];
  out[threadIdx.x] = shared[threadIdx.x];
}
void missing_barrier(float* out) {
  extern __shared__ float shared[];
  shared[threadIdx.x] = threadIdx.x;
  __syncthreads();
  out[threadIdx.x] = shared[kThreads - 1 - threadIdx.x];
  shared[threadIdx.x] = 0;
}
alignas(16) const float given[4] = {1, 2, 3, 4};

void unawaited_copy(float* out) {
  extern __shared__ float shared[];
  copy_async<4>(shared + threadIdx.x, given, 4);
  end_group();
  out[threadIdx.x] = shared[threadIdx.x];
  wait_for_groups<0>();
}
void copy_into_what_is_read(float* out) {
  extern __shared__ float shared[];
  shared[threadIdx.x] = threadIdx.x;
  __syncthreads();
  copy_async<4>(shared + threadIdx.x, given, 4);
  end_group();
  out[threadIdx.x] = shared[kThreads - 1 - threadIdx.x];
  wait_for_groups<0>();
}
void copy_of_the_group_before(float* out) {
  extern __shared__ float shared[];
  copy_async<4>(shared + threadIdx.x, given, 4);
  wait_for_groups<0>();  // of which it is none yet
  out[threadIdx.x] = shared[threadIdx.x];
  end_group();
  wait_for_groups<0>();
}
void abandoned_copy(float*) {
  extern __shared__ float shared[];
  copy_async<4>(shared + threadIdx.x, given, 4);
  end_group();
}
void unaligned_copy(float*) {
  extern __shared__ float shared[];
  copy_async<16>(shared + 4 * (threadIdx.x / 8) + 1, given, 16);
}
void unaligned_row(float*) {
  extern __shared__ float shared[];
  uint32_t registers[4];
  load_matrices(registers, shared + threadIdx.x % kWarp);
}
void diverging_product(float* out) {
  float sums[4] = {};
  const uint32_t left[4] = {};
  if (threadIdx.x % 2) multiply_add(__nv_bfloat16(), sums, left, 0, 0);
  out[threadIdx.x] = sums[0];
}
void sound_copy(float* out) {
  extern __shared__ float shared[];
  copy_async<4>(shared + threadIdx.x, given, 2);  // half of it: the rest is 0
  end_group();
  wait_for_groups<0>();
  __syncthreads();
  out[threadIdx.x] = shared[kThreads - 1 - threadIdx.x];
}
void sound(float* out) { out[threadIdx.x] = sum_neighbours(threadIdx.x, kWarp); }

// Its end: an error, or the results in both orders.
const char* found(void (*kernel)(float*)) {
  std::vector<float> results[2];
  for (int backward = 0; backward < 2; ++backward) {
    emulator::order = backward ? emulator::Order::kBackward : emulator::Order::kForward;
    results[backward].assign(kThreads, 0);
    try {
      emulator::Launch()(kernel, 1, kThreads, kThreads, results[backward].data());
    } catch (const std::runtime_error&) {
      return "refused";
    }
  }
  for (const float value : results[0])
    if (value != value) return "NaN";
  return results[0] == results[1] ? "sound" : "depends on the order";
}

}  // namespace cmx

int main() {
  std::printf("diverging_barrier: %s\n", cmx::found(cmx::diverging_barrier));
  std::printf("diverging_shuffle: %s\n", cmx::found(cmx::diverging_shuffle));
  std::printf("beyond_shared_memory: %s\n", cmx::found(cmx::beyond_shared_memory));
  std::printf("unwritten_shared_memory: %s\n", cmx::found(cmx::unwritten_shared_memory));
  std::printf("missing_barrier: %s\n", cmx::found(cmx::missing_barrier));
  std::printf("unawaited_copy: %s\n", cmx::found(cmx::unawaited_copy));
  std::printf("copy_into_what_is_read: %s\n", cmx::found(cmx::copy_into_what_is_read));
  std::printf("copy_of_the_group_before: %s\n", cmx::found(cmx::copy_of_the_group_before));
  std::printf("abandoned_copy: %s\n", cmx::found(cmx::abandoned_copy));
  std::printf("unaligned_copy: %s\n", cmx::found(cmx::unaligned_copy));
  std::printf("unaligned_row: %s\n", cmx::found(cmx::unaligned_row));
  std::printf("diverging_product: %s\n", cmx::found(cmx::diverging_product));
  std::printf("sound_copy: %s\n", cmx::found(cmx::sound_copy));
  std::printf("sound: %s\n", cmx::found(cmx::sound));
}
