// Schemas of the dense scores; cmx_fast/ops/dense_scores.py says what they compute. The operators take the maximum over
// the query's tokens and the heads; `pool` is what becomes of the key's: "mean", "sum" or "max".
#include <torch/csrc/stable/library.h>

STABLE_TORCH_LIBRARY_FRAGMENT(cmx_fast, m) {
  m.def(
      "dense_scores_fwd(Tensor query, Tensor key, Tensor? query_mask, Tensor? key_mask, str pool, int heads, "
      "bool normalize, bool keep) -> (Tensor scores, Tensor place, Tensor token)");
  m.def(
      "dense_scores_bwd(Tensor grad_scores, Tensor query, Tensor key, Tensor? query_mask, Tensor? key_mask, "
      "Tensor place, Tensor token, str pool, int heads, bool normalize, bool need_query, bool need_key) "
      "-> (Tensor dquery, Tensor dkey)");
}
