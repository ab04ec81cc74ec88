// Checks that the kernels still make for calls past the Python functions, whose messages say more.
#pragma once

#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/util/Exception.h>

#include <cmath>

namespace cmx {

inline bool is_double(const torch::stable::Tensor& tensor) {
  return tensor.scalar_type() == torch::headeronly::ScalarType::Double;
}

// The number of a 0-d float32 or float64 tensor.
inline double number_of(const torch::stable::Tensor& tensor) {
  return is_double(tensor) ? *static_cast<const double*>(tensor.data_ptr())
                           : *static_cast<const float*>(tensor.data_ptr());
}

inline double checked_scale(const torch::stable::Tensor& scale) {
  const double value = number_of(scale);
  STD_TORCH_CHECK(!(value <= 0), "logit_scale must be positive (it is 1 / temperature), got ", value);
  return value;
}

}  // namespace cmx
