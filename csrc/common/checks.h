// Checks that the kernels still make for calls past the Python functions, whose messages say more.
#pragma once

#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/util/Exception.h>

#include <cmath>

namespace cmx {

inline bool is_double(const torch::stable::Tensor& tensor) {
  return tensor.scalar_type() == torch::headeronly::ScalarType::Double;
}

inline double checked_scale(const torch::stable::Tensor& scale) {
  const double value =
      is_double(scale) ? *static_cast<const double*>(scale.data_ptr()) : *static_cast<const float*>(scale.data_ptr());
  STD_TORCH_CHECK(!(value <= 0), "logit_scale must be positive (it is 1 / temperature), got ", value);
  return value;
}

}  // namespace cmx
