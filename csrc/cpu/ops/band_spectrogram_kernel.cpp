// Spectrograms in bands on the CPU: a task takes as many frames as a vector has lanes from samples to bands, and
// between them nothing leaves the cache.
//
// Algorithm: lanes frames are windowed side by side, (lanes, n_fft), transposed and transformed together, one frame per
// lane, so the Fourier transform needs no shuffle (cpu/tiles/spectra.h); power (bins, lanes), then each band's weighted
// sum over its reach and its logarithm. Who owns what: a task owns up to 4 such groups of neighbouring frames of a
// wave; their levels meet in a block (K, 4 x lanes) before they are written, a row of the result at a time.
//
// Why it is right: places beyond the wave are 0, or mirrored in a copy of the frame, so no read leaves the
// wave; reaches are checked to lie within the bins. Lanes that are left over repeat the last frame and are not written.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <memory>
#include <mutex>
#include <optional>
#include <unordered_map>
#include <vector>

#include "common/checks.h"
#include "common/parallel.h"
#include "cpu/simd/elements.h"
#include "cpu/tensors/buffer.h"
#include "cpu/tiles/spectra.h"

namespace cmx {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

constexpr int64_t kGroups = 4, kFewGroups = 64;

struct Factors {
  std::vector<float> passes, halves;
  explicit Factors(int64_t n) {
    const auto add = [](std::vector<float>& to, double turn) {
      to.push_back(static_cast<float>(std::cos(2 * M_PI * turn)));
      to.push_back(static_cast<float>(-std::sin(2 * M_PI * turn)));
    };
    for (int64_t left = n / 2; left >= 4; left /= 4)
      for (int64_t p = 0; p < left / 4; ++p)
        for (int64_t power = 1; power <= 3; ++power) add(passes, double(power * p) / double(left));
    for (int64_t k = 0; k <= n / 4; ++k) add(halves, double(k) / double(n));
  }
};

// The factors of a length are computed once and stay: some kilobytes for each of the few lengths that a program uses.
FourierPlan plan_of(int64_t n) {
  static std::mutex mutex;
  static std::unordered_map<int64_t, std::unique_ptr<const Factors>> known;
  const std::lock_guard<std::mutex> lock(mutex);
  auto& factors = known[n];
  if (!factors) factors = std::make_unique<const Factors>(n);
  return {n, factors->passes.data(), factors->halves.data()};
}

// One wave and the frames cut from it.
struct Wave {
  const float* x;
  int64_t samples, length, n_fft, hop;
  bool reflected;

  // The sample at a place that may lie before the first or behind the last.
  float reflected_at(int64_t place) const {
    if (place < 0) place = -place;
    return x[place < samples ? place : 2 * (samples - 1) - place];
  }
};

void write_frame(const SpectrumKernels& kernels, const Wave& wave, int64_t f, const float* window, float preemphasis,
                 bool remove_mean, float* edge, float* out) {
  // A window shorter than a reflected frame lies in the frame's middle, as torch.stft has it.
  const int64_t lead = wave.reflected ? (wave.n_fft - wave.length) / 2 : 0;
  const int64_t begin = f * wave.hop + lead - (wave.reflected ? wave.n_fft / 2 : 0);
  const float* from = wave.x + begin;
  // With hops wider than the window the last frame can lie behind the last sample.
  int64_t count = std::clamp<int64_t>(wave.samples - begin, 0, wave.length);
  if (begin < 1 || (wave.reflected && count < wave.length)) {
    // With the sample before the first one, which is 0 where there is none.
    if (wave.reflected) {
      count = wave.length;
      for (int64_t t = -1; t < count; ++t) edge[t + 1] = wave.reflected_at(begin + t);
    } else {
      edge[0] = 0;
      std::copy_n(from, count, edge + 1);
    }
    from = edge + 1;
  }
  std::fill_n(out, lead, 0.0f);
  kernels.frame(from, window, count, preemphasis, remove_mean, out + lead);
  std::fill(out + lead + count, out + wave.n_fft, 0.0f);
}

Tensor band_spectrogram_fwd(Tensor wave, Tensor window, Tensor bands, Tensor reach, std::optional<Tensor> mean,
                            std::optional<Tensor> std, int64_t frames, int64_t n_fft, int64_t hop, bool reflected,
                            double preemphasis, bool remove_mean, int64_t logarithm, double floor) {
  wave = contiguous(wave), window = contiguous(window), bands = contiguous(bands), reach = contiguous(reach);
  const int64_t batch = wave.size(0), samples = wave.size(1), count = bands.size(0), bins = n_fft / 2 + 1;
  STD_TORCH_CHECK(n_fft >= 16 && (n_fft & (n_fft - 1)) == 0, "n_fft must be a power of two from 16 on, got ", n_fft);
  STD_TORCH_CHECK(bands.size(1) == bins && window.size(0) <= n_fft, "bands and window must fit n_fft ", n_fft);
  const Tensor out = torch::stable::new_empty(wave, {batch, count, frames}, ScalarType::Float);
  const SpectrumKernels& kernels = best_spectrum_kernels();
  const FourierPlan plan = plan_of(n_fft);
  const int64_t lanes = kernels.lanes, groups = ceil_div(frames, lanes), block = n_fft * lanes;
  const auto kind = static_cast<Logarithm>(logarithm);
  const Level level = kind == Logarithm::kDecibels
                          ? Level{kind, static_cast<float>(floor), static_cast<float>(10 * std::log10(floor))}
                          : Level{kind, 0, static_cast<float>(std::log(floor))};
  const std::optional<Tensor> offset = contiguous_if_any(mean), divisor = contiguous_if_any(std);
  const auto numbers = [](const Tensor& t) { return static_cast<const float*>(t.data_ptr()); };
  STD_TORCH_CHECK(
      reach.dim() == 2 && reach.size(0) == count && reach.size(1) == 2 && reach.scalar_type() == ScalarType::Int,
      "reach must be (K, 2) int32 for ", count, " bands");
  const int32_t* ranges = static_cast<const int32_t*>(reach.data_ptr());
  for (int64_t i = 0; i < 2 * count; ++i)
    STD_TORCH_CHECK(ranges[i] >= 0 && ranges[i] <= bins, "reach must lie in 0 to ", bins, ", got ", ranges[i]);
  // Several groups of a task meet in a block before their bands, each a row far from the next, are written.
  const int64_t together = batch * groups < kFewGroups ? 1 : kGroups, tasks = ceil_div(groups, together);
  run_tasks(batch * tasks, [&](int64_t task) {
    const int64_t b = task / tasks, begin = task % tasks * together * lanes,
                  end = std::min(begin + together * lanes, frames), width = together * lanes;
    const Wave task_wave = {numbers(wave) + b * samples, samples, window.size(0), n_fft, hop, reflected};
    Buffer<float> work(2 * block + n_fft + 1 + count * width);
    float *rows = work.data(), *other = rows + block, *edge = other + block, *levels = edge + n_fft + 1;
    for (int64_t first = begin; first < end; first += lanes) {
      for (int64_t l = 0; l < lanes; ++l)
        // Lanes that are left over repeat the last frame.
        write_frame(kernels, task_wave, std::min(first + l, end - 1), numbers(window), static_cast<float>(preemphasis),
                    remove_mean, edge, rows + l * n_fft);
      const float* power = kernels.power(plan, rows, other);
      for (int64_t k = 0; k < count; ++k)
        kernels.band(power, numbers(bands) + k * bins, ranges[2 * k], ranges[2 * k + 1], level,
                     offset ? numbers(*offset)[k] : 0.0f, divisor ? numbers(*divisor)[k] : 1.0f,
                     levels + k * width + first - begin);
    }
    float* to = static_cast<float*>(out.data_ptr()) + b * count * frames + begin;
    for (int64_t k = 0; k < count; ++k) std::copy_n(levels + k * width, end - begin, to + k * frames);
  });
  return out;
}

}  // namespace
}  // namespace cmx

STABLE_TORCH_LIBRARY_IMPL(cmx_fast, CPU, m) { m.impl("band_spectrogram_fwd", TORCH_BOX(&cmx::band_spectrogram_fwd)); }
