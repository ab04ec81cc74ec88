#include "cpu/tensors/buffer.h"

#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <cstdlib>
#include <mutex>
#include <new>
#include <vector>
#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace cmx {
namespace {

constexpr int64_t kHugePage = 2 << 20;
constexpr int64_t kStoreLimit = 128 << 20;

struct Block {
  void* data;
  int64_t capacity;
};

// Blocks of at least a huge page that the last calls returned, oldest first.
struct Store {
  std::mutex mutex;
  std::vector<Block> blocks;
  int64_t held = 0;
};

// Never destroyed: threads of the pool may return workspace while the process ends.
Store& store() {
  static Store* const instance = new Store;
  return *instance;
}

}  // namespace

void advise_huge_pages(void* data, int64_t bytes) {
#if defined(__linux__)
  const auto begin = (reinterpret_cast<uintptr_t>(data) + kHugePage - 1) / kHugePage * kHugePage;
  const auto end = (reinterpret_cast<uintptr_t>(data) + bytes) / kHugePage * kHugePage;
  if (begin < end) madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
#endif
}

void* take_workspace(int64_t bytes, int64_t* capacity) {
  const int64_t alignment = bytes >= kHugePage ? kHugePage : 64;
  *capacity = (bytes + alignment - 1) / alignment * alignment;
  if (bytes >= kHugePage) {
    Store& kept = store();
    const std::lock_guard<std::mutex> lock(kept.mutex);
    // The smallest block that serves, unless most of it would lie idle.
    auto best = kept.blocks.end();
    for (auto block = kept.blocks.begin(); block != kept.blocks.end(); ++block)
      if (block->capacity >= bytes && block->capacity <= 2 * bytes &&
          (best == kept.blocks.end() || block->capacity < best->capacity))
        best = block;
    if (best != kept.blocks.end()) {
      const Block block = *best;
      kept.blocks.erase(best);
      kept.held -= block.capacity;
      *capacity = block.capacity;
      return block.data;
    }
  }
  void* data = std::aligned_alloc(alignment, *capacity);
  if (!data && bytes) throw std::bad_alloc();
  if (bytes >= kHugePage) advise_huge_pages(data, *capacity);
  return data;
}

void return_workspace(void* data, int64_t capacity) {
  if (capacity < kHugePage || capacity > kStoreLimit) return std::free(data);
  Store& kept = store();
  const std::lock_guard<std::mutex> lock(kept.mutex);
  kept.blocks.push_back({data, capacity});
  kept.held += capacity;
  while (kept.held > kStoreLimit) {
    std::free(kept.blocks.front().data);
    kept.held -= kept.blocks.front().capacity;
    kept.blocks.erase(kept.blocks.begin());
  }
}

torch::stable::Tensor empty_in_workspace(const torch::stable::Tensor& like) {
  // Says how the elements lie; its own memory is never touched.
  const torch::stable::Tensor plain = torch::stable::empty_like(like);
  const int64_t bytes = plain.numel() * int64_t(plain.element_size());
  if (bytes < kHugePage) return plain;
  int64_t capacity;
  void* data = take_workspace(bytes, &capacity);
  return torch::stable::from_blob(data, plain.sizes(), plain.strides(), plain.device(), plain.scalar_type(),
                                  [capacity](void* memory) { return_workspace(memory, capacity); });
}

}  // namespace cmx
