// Schemas of one block of a softmax over several: its statistics, and the gradients through it once the whole softmax
// is known. cmx_fast/ops/softmax_block.py says what they compute.
#include <torch/csrc/stable/library.h>

STABLE_TORCH_LIBRARY_FRAGMENT(cmx_fast, m) {
  m.def(
      "softmax_block_fwd(Tensor x, Tensor? y, Tensor logit_scale, Tensor? excluded, str similarity) -> Tensor "
      "statistics");
  m.def(
      "softmax_block_bwd(Tensor x, Tensor? y, Tensor logit_scale, Tensor? excluded, str similarity, "
      "Tensor row_softmax, Tensor? column_softmax, bool need_x, bool need_y) -> (Tensor dx, Tensor dy)");
}
