// What the kernels still check when they are called past the Python functions, which say it better.
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
