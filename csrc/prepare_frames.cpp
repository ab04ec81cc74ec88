// Schema of the preparation of frames; cmx_fast/ops/prepare_frames.py says what it computes. frames is uint8
// (B, T, 3, h, w), windows float32 (B, 4), sizes int32 (B, 2), factors float32 (B, 3), size (H, W), mean and std one
// number per channel. The result is (B, 3, T, H, W), with channels_last (B, T, H, W, 3).
#include <torch/csrc/stable/library.h>

STABLE_TORCH_LIBRARY_FRAGMENT(cmx_fast, m) {
  m.def(
      "prepare_frames(Tensor frames, Tensor windows, Tensor? sizes, Tensor? mirrored, Tensor? factors, int[] size, "
      "float[] mean, float[] std, ScalarType dtype, bool channels_last) -> Tensor");
}
