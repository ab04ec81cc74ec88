// Kernels with one mistake each, which the emulator has to find.
#include <cstdio>

#include "cuda/elements.cuh"
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
void sound(float* out) { out[threadIdx.x] = sum_neighbours(threadIdx.x, kWarp); }

// What it ends with: an error, or the results in both orders.
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
  std::printf("sound: %s\n", cmx::found(cmx::sound));
}
