// Schemas of pyramid correlation filtering and of the consistency loss on its map; cmx_fast/ops/pyramid_correlation.py
// says what they compute. features is (B, C, T, H, W) with any strides; cosines and inverse_norms list the windows of
// all levels, (B, cells), and are (B, 0) unless norm is "cosine". The second set of operators is csrc/cuda's, beside
// the Triton kernels of the first; its prediction is float32.
#include <torch/csrc/stable/library.h>

#include <string>

STABLE_TORCH_LIBRARY_FRAGMENT(cmx_fast, m) {
  for (const std::string own : {"", "_cuda"}) {
    m.def(("pyramid_correlation" + own +
           "_fwd(Tensor features, Tensor filters, int levels, str norm) -> "
           "(Tensor map, Tensor cosines, Tensor inverse_norms)")
              .c_str());
    m.def(("pyramid_correlation" + own +
           "_bwd(Tensor grad_map, Tensor features, Tensor filters, Tensor map, Tensor cosines, "
           "Tensor inverse_norms, int levels, str norm) -> (Tensor dfeatures, Tensor dfilters)")
              .c_str());
    m.def(("attention_consistency" + own +
           "_fwd(Tensor features, Tensor filters, Tensor prediction, int levels, str norm) -> "
           "(Tensor losses, Tensor difference, Tensor cosines, Tensor inverse_norms)")
              .c_str());
  }
}
