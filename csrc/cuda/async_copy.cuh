// Copies from global to shared memory that a thread starts and waits for later. Included as "cuda/async_copy.cuh": the
// tests' emulator has a file of that name before this one in the include path.
#pragma once

#include <cstdint>

namespace cmx {

// BYTES (4 or 16) at aligned addresses, of which the first `bytes` are read and the others become 0.
template <int BYTES>
__device__ void copy_async(void* shared, const void* global, int bytes) {
  const uint32_t to = uint32_t(__cvta_generic_to_shared(shared));
  if constexpr (BYTES == 16)  // past the nearest cache: nothing is read twice
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(global), "r"(bytes) : "memory");
  else
    asm volatile("cp.async.ca.shared.global [%0], [%1], %2, %3;" ::"r"(to), "l"(global), "n"(BYTES), "r"(bytes)
                 : "memory");
}

// Closes the group of copies that this thread has started since the last call.
__device__ inline void end_group() { asm volatile("cp.async.commit_group;" ::: "memory"); }

// Waits until all of this thread's groups but the last LEFT are there; other threads' need a barrier behind it.
template <int LEFT>
__device__ void wait_for_groups() {
  asm volatile("cp.async.wait_group %0;" ::"n"(LEFT) : "memory");
}

}  // namespace cmx
