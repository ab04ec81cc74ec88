// Passes that spectrograms ask of one instruction set. Vectors hold one moment, frequency or band of `lanes` frames: a
// Fourier transform then needs no shuffle.
//
// n real numbers are transformed as n / 2 complex ones, even moments the real parts and odd ones the imaginary, by
// Stockham's passes of radix 4 (and one of radix 2 where n / 2 is no power of 4), which leave the frequencies in order;
// the two halves of the real transform are then parted, and only the power is kept.
#pragma once

#include <cstdint>

namespace cmx {

// Factors of the transform of n real numbers, n a power of two and at least 16.
struct FourierPlan {
  int64_t n;
  // Of each pass of radix 4 over the n / 2 complex numbers w, w^2, w^3, real and imaginary part of each.
  const float* passes;
  // exp(-2 pi i k / n) for k up to n / 4, which part the two halves of the real transform.
  const float* halves;
};

// The schema's integer: kernels/common/codes.py has the same names.
enum class Logarithm : int64_t { kNone, kDecibels, kNatural };

struct Level {
  Logarithm logarithm;
  // Energy of at most this much has the level `lowest`: decibels' floor; of natural logarithms 0.
  float floor, lowest;
};

struct SpectrumKernels {
  int64_t lanes;
  // out[t] = window[t] * (x[t] - preemphasis * x[t - 1]), with remove_mean less the mean of those differences.
  void (*frame)(const float* x, const float* window, int64_t count, float preemphasis, bool remove_mean, float* out);
  // Power (n / 2 + 1, lanes) of frames (lanes, n), within two blocks of n * lanes numbers: it says in which.
  float* (*power)(const FourierPlan&, float* frames, float* other);
  // level[lane] of sum over [begin, end) of weights[j] * power[j]; then less mean, divided by std.
  void (*band)(const float* power, const float* weights, int64_t begin, int64_t end, Level, float mean, float std,
               float* level);
};

namespace baseline {
const SpectrumKernels& spectrum_kernels();
}
namespace avx2 {
const SpectrumKernels& spectrum_kernels();
}
namespace avx512 {
const SpectrumKernels& spectrum_kernels();
}
const SpectrumKernels& best_spectrum_kernels();

}  // namespace cmx
