// A tensor's elements by their own type.
#pragma once

#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Exception.h>
#include <torch/headeronly/util/Half.h>

namespace cmx {

// Calls f with a pointer to the tensor's elements of their own type.
template <class F>
void with_elements(const torch::stable::Tensor& tensor, const F& f) {
  using torch::headeronly::ScalarType;
  switch (tensor.scalar_type()) {
    case ScalarType::Float:
      return f(static_cast<float*>(tensor.data_ptr()));
    case ScalarType::Double:
      return f(static_cast<double*>(tensor.data_ptr()));
    case ScalarType::BFloat16:
      return f(static_cast<torch::headeronly::BFloat16*>(tensor.data_ptr()));
    case ScalarType::Half:
      return f(static_cast<torch::headeronly::Half*>(tensor.data_ptr()));
    default:
      STD_TORCH_CHECK(false, "expected float32, float64, bfloat16 or float16");
  }
}

}  // namespace cmx
