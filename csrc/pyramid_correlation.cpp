// Schemas of pyramid correlation filtering and of the consistency loss on its map; cmx_fast/ops/pyramid_correlation.py
// says what they compute. features is (B, C, T, H, W) with any strides; cosines and inverse_norms list the windows of
// all levels, (B, cells), and are (B, 0) unless norm is "cosine".
#include <torch/csrc/stable/library.h>

STABLE_TORCH_LIBRARY_FRAGMENT(cmx_fast, m) {
  m.def(
      "pyramid_correlation_fwd(Tensor features, Tensor filters, int levels, str norm) -> "
      "(Tensor map, Tensor cosines, Tensor inverse_norms)");
  m.def(
      "pyramid_correlation_bwd(Tensor grad_map, Tensor features, Tensor filters, Tensor map, Tensor cosines, "
      "Tensor inverse_norms, int levels, str norm) -> (Tensor dfeatures, Tensor dfilters)");
  m.def(
      "attention_consistency_fwd(Tensor features, Tensor filters, Tensor prediction, int levels, str norm) -> "
      "(Tensor losses, Tensor difference, Tensor cosines, Tensor inverse_norms)");
}
