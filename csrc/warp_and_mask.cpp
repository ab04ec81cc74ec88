// Schema of SpecAugment's pass; cmx_fast/ops/warp_and_mask.py says what it computes. x is (B, F, T), position (B, T),
// the hidden bands (B, F) and frames (B, T) are bool.
#include <torch/csrc/stable/library.h>

STABLE_TORCH_LIBRARY_FRAGMENT(cmx_fast, m) {
  m.def("warp_and_mask_fwd(Tensor x, Tensor position, Tensor hidden_bands, Tensor hidden_frames) -> Tensor");
}
