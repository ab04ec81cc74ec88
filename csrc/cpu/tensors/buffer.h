// Working memory whose content starts undefined, from a store of recently freed blocks: fresh pages cost as much to
// fault in as the products on them cost to compute. The store holds blocks of 2 MiB to 128 MiB, 128 MiB in all; the
// oldest are freed first.
#pragma once

#include <torch/csrc/stable/tensor.h>

#include <cstdint>

namespace cmx {

// Memory for at least this many bytes, aligned to 64, from the store where a block there serves.
void* take_workspace(int64_t bytes, int64_t* capacity);
void return_workspace(void* data, int64_t capacity);

// Asks for 2 MiB pages on the whole ones within a range: first use then costs a fault per 2 MiB instead of per 4 KiB.
void advise_huge_pages(void* data, int64_t bytes);

// As torch::stable::empty_like, in such memory: it goes back to the store with the tensor.
torch::stable::Tensor empty_in_workspace(const torch::stable::Tensor& like);

template <class T>
class Buffer {
 public:
  Buffer() = default;
  explicit Buffer(int64_t size) { resize(size); }
  ~Buffer() { return_workspace(data_, capacity_); }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;

  T* data() { return data_; }
  const T* data() const { return data_; }
  int64_t size() const { return size_; }
  // The old content is lost.
  void resize(int64_t size) {
    if (size == size_) return;
    return_workspace(data_, capacity_);
    data_ = nullptr, capacity_ = 0, size_ = 0;
    data_ = static_cast<T*>(take_workspace(size * int64_t(sizeof(T)), &capacity_));
    size_ = size;
  }

 private:
  T* data_ = nullptr;
  int64_t size_ = 0, capacity_ = 0;
};

}  // namespace cmx
