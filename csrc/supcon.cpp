// Schemas of the supervised contrastive loss; cmx_fast/ops/supcon.py says what they compute. What goes from forward to
// backward is each implementation's own: class_rows is empty on a GPU, where saved holds the inverse norms.
#include <torch/csrc/stable/library.h>

STABLE_TORCH_LIBRARY_FRAGMENT(cmx_fast, m) {
  m.def(
      "supcon_fwd(Tensor features, Tensor labels, Tensor logit_scale, Tensor? ref_features, Tensor? ref_labels, "
      "bool normalize, bool cache) -> (Tensor loss, Tensor stats, Tensor class_rows, Tensor saved)");
  m.def(
      "supcon_bwd(Tensor grad_loss, Tensor features, Tensor labels, Tensor logit_scale, Tensor? ref_features, "
      "Tensor? ref_labels, bool normalize, Tensor stats, Tensor class_rows, Tensor saved, bool need_features, "
      "bool need_ref) -> (Tensor dfeatures, Tensor dref, Tensor dscale)");
}
