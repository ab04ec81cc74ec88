// The emulator's own of csrc/cuda/async_copy.cuh: a copy arrives when its thread waits for it, and no earlier.
#pragma once

#include "../emulator.h"

namespace cmx {

template <int BYTES>
void copy_async(void* shared, const void* global, int bytes) {
  static_assert(BYTES == 4 || BYTES == 16);
  emulator::block().start_copy({static_cast<char*>(shared), static_cast<const char*>(global), BYTES, bytes});
}
inline void end_group() { emulator::block().end_group(); }
template <int LEFT>
void wait_for_groups() {
  emulator::block().wait_for_groups(LEFT);
}

}  // namespace cmx
