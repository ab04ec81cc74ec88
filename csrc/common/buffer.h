// Working memory whose content starts undefined.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <new>
#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace cmx {

inline constexpr int64_t kHugePage = 2 << 20;

// Asks for 2 MiB pages on the whole ones within a range: first use then costs a fault per 2 MiB instead of per 4 KiB.
inline void advise_huge_pages(void* data, int64_t bytes) {
#if defined(__linux__)
  const auto begin = (reinterpret_cast<uintptr_t>(data) + kHugePage - 1) / kHugePage * kHugePage;
  const auto end = (reinterpret_cast<uintptr_t>(data) + bytes) / kHugePage * kHugePage;
  if (begin < end) madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
#endif
}

template <class T>
class Buffer {
 public:
  Buffer() = default;
  explicit Buffer(int64_t size) { resize(size); }
  ~Buffer() { std::free(data_); }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
  Buffer(Buffer&& other) noexcept : data_(other.data_), size_(other.size_) { other.data_ = nullptr, other.size_ = 0; }

  T* data() { return data_; }
  const T* data() const { return data_; }
  int64_t size() const { return size_; }
  // The old content is lost.
  void resize(int64_t size) {
    if (size == size_) return;
    std::free(data_);
    const int64_t bytes = size * int64_t(sizeof(T)), alignment = bytes >= kHugePage ? kHugePage : 64;
    data_ = static_cast<T*>(std::aligned_alloc(alignment, (bytes + alignment - 1) / alignment * alignment));
    if (!data_ && bytes) throw std::bad_alloc();
    size_ = size;
    if (bytes >= kHugePage) advise_huge_pages(data_, bytes);
  }

 private:
  T* data_ = nullptr;
  int64_t size_ = 0;
};

}  // namespace cmx
