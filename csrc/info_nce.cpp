// Schemas of InfoNCE; cmx_fast/ops/info_nce.py says what they compute.
#include <torch/csrc/stable/library.h>

STABLE_TORCH_LIBRARY_FRAGMENT(cmx_fast, m) {
  m.def(
      "info_nce_fwd(Tensor query, Tensor key, Tensor logit_scale, Tensor[] bank, Tensor? target, bool in_batch, "
      "bool within, str similarity, bool symmetric, bool normalize, float label_smoothing, bool cache) "
      "-> (Tensor loss, Tensor row_stats, Tensor col_stats, Tensor saved)");
  m.def(
      "info_nce_bwd(Tensor grad_loss, Tensor query, Tensor key, Tensor logit_scale, Tensor[] bank, Tensor? target, "
      "bool in_batch, bool within, str similarity, bool symmetric, bool normalize, float label_smoothing, "
      "Tensor row_stats, Tensor col_stats, Tensor saved, bool need_query, bool need_key) "
      "-> (Tensor dquery, Tensor dkey, Tensor dscale)");
}
