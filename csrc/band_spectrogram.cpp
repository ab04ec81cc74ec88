// Schema of the spectrogram in bands; cmx_fast/ops/band_spectrogram.py says what it computes. wave is (B, samples),
// bands (K, n_fft / 2 + 1), reach (K, 2) int32 each band's first bin and the one behind its last. mean and std are
// (K,). The number of frames goes with the length of the waves, and is as symbolic as that where PyTorch traces.
#include <torch/csrc/stable/library.h>

STABLE_TORCH_LIBRARY_FRAGMENT(cmx_fast, m) {
  m.def(
      "band_spectrogram_fwd(Tensor wave, Tensor window, Tensor bands, Tensor reach, Tensor? mean, Tensor? std, "
      "SymInt frames, int n_fft, int hop, bool reflected, float preemphasis, bool remove_mean, int logarithm, "
      "float floor) -> Tensor");
}
