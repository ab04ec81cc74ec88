// Schemas of the gate per channel; cmx_fast/ops/channel_gate.py says what it computes. x is (B, C, P), the weights are
// (H, C), (H), (C, H), (C), in float32 or double; K = 2 with the maximum, else 1. Without a residual the backward pass
// takes no out, and without the maximum there is no peak.
#include <torch/csrc/stable/library.h>

STABLE_TORCH_LIBRARY_FRAGMENT(cmx_fast, m) {
  m.def(
      "channel_gate_fwd(Tensor x, Tensor? residual, Tensor hidden_weight, Tensor hidden_bias, Tensor gate_weight, "
      "Tensor gate_bias, bool maximum) -> (Tensor out, Tensor pooled, Tensor hidden, Tensor gate, Tensor peak)");
  m.def(
      "channel_gate_bwd(Tensor grad_out, Tensor x, Tensor? out, Tensor hidden_weight, Tensor gate_weight, "
      "Tensor hidden, Tensor gate, Tensor peak) -> (Tensor dx, Tensor dresidual, Tensor dhidden, Tensor dlogits)");
}
