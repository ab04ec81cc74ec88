// A tensor's elements by their own type: the one place where a dtype becomes a C++ type.
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Exception.h>
#include <torch/headeronly/util/Half.h>

#include <optional>

namespace cmx {

// Calls f with a pointer to elements of their own type.
template <class F>
void with_elements(torch::headeronly::ScalarType type, void* data, const F& f) {
  using torch::headeronly::ScalarType;
  switch (type) {
    case ScalarType::Float:
      return f(static_cast<float*>(data));
    case ScalarType::Double:
      return f(static_cast<double*>(data));
    case ScalarType::BFloat16:
      return f(static_cast<torch::headeronly::BFloat16*>(data));
    case ScalarType::Half:
      return f(static_cast<torch::headeronly::Half*>(data));
    default:
      STD_TORCH_CHECK(false, "expected float32, float64, bfloat16 or float16");
  }
}

template <class F>
void with_elements(const torch::stable::Tensor& tensor, const F& f) {
  with_elements(tensor.scalar_type(), tensor.data_ptr(), f);
}

inline std::optional<torch::stable::Tensor> contiguous_if_any(const std::optional<torch::stable::Tensor>& tensor) {
  return tensor ? std::optional(torch::stable::contiguous(*tensor)) : std::nullopt;
}

}  // namespace cmx
