// Schemas of the cross-entropy against frozen centroids; cmx_fast/ops/cluster_cross_entropy.py says what it computes.
// x is (B, P, D) with any strides.
#include <torch/csrc/stable/library.h>

STABLE_TORCH_LIBRARY_FRAGMENT(cmx_fast, m) {
  m.def(
      "cluster_cross_entropy_fwd(Tensor x, Tensor centroids, Tensor? target, bool normalize) -> "
      "(Tensor losses, Tensor softmax, Tensor labels)");
  m.def(
      "cluster_cross_entropy_bwd(Tensor grad_losses, Tensor x, Tensor centroids, Tensor labels, Tensor softmax, "
      "bool normalize) -> Tensor dx");
}
