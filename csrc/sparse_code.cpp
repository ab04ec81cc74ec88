// Schemas of the sparse code; cmx_fast/ops/sparse_code.py says what it computes.
#include <torch/csrc/stable/library.h>

STABLE_TORCH_LIBRARY_FRAGMENT(cmx_fast, m) {
  m.def("sparse_code_fwd(Tensor x, Tensor dictionary, Tensor step_size, float lam, int steps) -> Tensor codes");
  m.def(
      "sparse_code_bwd(Tensor grad_codes, Tensor x, Tensor dictionary, Tensor step_size, float lam, int steps) -> "
      "(Tensor dx, Tensor ddictionary)");
}
