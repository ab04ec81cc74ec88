// Schemas of the sigmoid contrastive loss; cmx_fast/ops/sigmoid_contrastive.py says what they compute. What goes from
// forward to backward is each implementation's own: key_gradient is empty on a GPU.
#include <torch/csrc/stable/library.h>

STABLE_TORCH_LIBRARY_FRAGMENT(cmx_fast, m) {
  m.def(
      "sigmoid_contrastive_fwd(Tensor query, Tensor key, Tensor logit_scale, Tensor logit_bias, Tensor? query_ids, "
      "Tensor? key_ids, bool normalize, bool summed, bool keep_query, bool keep_key) "
      "-> (Tensor loss, Tensor slopes, Tensor query_gradient, Tensor key_gradient)");
  m.def(
      "sigmoid_contrastive_bwd(Tensor grad_loss, Tensor query, Tensor key, Tensor logit_scale, Tensor logit_bias, "
      "Tensor? query_ids, Tensor? key_ids, bool normalize, bool summed, Tensor slopes, Tensor query_gradient, "
      "Tensor key_gradient, bool need_query, bool need_key) "
      "-> (Tensor dquery, Tensor dkey, Tensor dscale, Tensor dbias)");
}
