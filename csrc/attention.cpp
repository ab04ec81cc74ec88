// Schemas of attention; cmx_fast/ops/attention.py says what it computes.
#include <torch/csrc/stable/library.h>

STABLE_TORCH_LIBRARY_FRAGMENT(cmx_fast, m) {
  m.def("attention_fwd(Tensor query, Tensor key, Tensor value, float scale) -> (Tensor out, Tensor row_stats)");
  m.def(
      "attention_bwd(Tensor grad_out, Tensor query, Tensor key, Tensor value, Tensor row_stats, float scale, "
      "bool need_query, bool need_key, bool need_value) -> (Tensor dquery, Tensor dkey, Tensor dvalue)");
}
