// Runs of a contiguous tensor's elements in the working precision: read_run, then run_to_write, compute, write_run.
// Where the tensor is of that type a run is the tensor's own memory and nothing is copied.
#pragma once

#include <torch/csrc/stable/tensor.h>

#include <type_traits>

#include "cpu/simd/elements.h"

namespace cmx {

using torch::stable::Tensor;

// A tensor's type and memory, asked once: each question goes through PyTorch's C interface.
struct Elements {
  torch::headeronly::ScalarType type;
  void* data;
  Elements(const Tensor& tensor) : type(tensor.scalar_type()), data(tensor.data_ptr()) {}
};

// The n elements from `begin` on: where they lie, or converted into the buffer.
template <class T>
const T* read_run(const Elements& tensor, int64_t begin, int64_t n, T* buffer) {
  const T* run = buffer;
  with_elements(tensor.type, tensor.data, [&](auto* elements) {
    elements += begin;
    if constexpr (std::is_same_v<std::remove_pointer_t<decltype(elements)>, T>)
      run = elements;
    else
      for (int64_t p = 0; p < n; ++p) buffer[p] = static_cast<T>(elements[p]);
  });
  return run;
}

// Where to write the elements from `begin` on before write_run: where they lie, or the buffer.
template <class T>
T* run_to_write(const Elements& tensor, int64_t begin, T* buffer) {
  T* run = buffer;
  with_elements(tensor.type, tensor.data, [&](auto* elements) {
    if constexpr (std::is_same_v<std::remove_pointer_t<decltype(elements)>, T>) run = elements + begin;
  });
  return run;
}

// Converts a run that was written to the buffer into the tensor.
template <class T>
void write_run(const Elements& tensor, int64_t begin, int64_t n, const T* run) {
  with_elements(tensor.type, tensor.data, [&](auto* elements) {
    using Element = std::remove_pointer_t<decltype(elements)>;
    if constexpr (!std::is_same_v<Element, T>)
      for (int64_t p = 0; p < n; ++p) elements[begin + p] = static_cast<Element>(run[p]);
  });
}

}  // namespace cmx
