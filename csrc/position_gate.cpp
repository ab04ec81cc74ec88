// Schemas of the gate per position; cmx_fast/ops/position_gate.py says what it computes. x is (B, C, P), pooled
// (B, 2, P) with maximum and mean, gate (B, P). Without a residual the backward pass takes no out.
#include <torch/csrc/stable/library.h>

STABLE_TORCH_LIBRARY_FRAGMENT(cmx_fast, m) {
  m.def("pool_channels_fwd(Tensor x) -> (Tensor pooled, Tensor peak)");
  m.def("pool_channels_bwd(Tensor grad_pooled, Tensor peak, Tensor x) -> Tensor dx");
  m.def("position_gate_fwd(Tensor x, Tensor gate, Tensor? residual) -> Tensor out");
  m.def(
      "position_gate_bwd(Tensor grad_out, Tensor x, Tensor gate, Tensor? out) -> "
      "(Tensor dx, Tensor dgate, Tensor dresidual)");
}
