// SpecAugment's pass on the CPU: a task owns a sample. The frame before each position and the share of the next one are
// found once for all bands; then each band is a row of `frames` elements, read and written once.
//
// Why it is right: positions are clamped into the row before they are indices, and a NaN becomes 0. A share of 0 reads
// no neighbour, which behind the last frame would be the next row's; what is hidden is written as 0 whatever it holds.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <cmath>

#include "common/checks.h"
#include "common/parallel.h"
#include "cpu/simd/element_runs.h"
#include "cpu/tensors/buffer.h"

namespace cmx {
namespace {

template <class T>
Tensor warp_and_mask(const Tensor& x, const Tensor& position, const Tensor& hidden_bands, const Tensor& hidden_frames) {
  const int64_t bands = x.size(1), frames = x.size(2);
  const Tensor out = empty_in_workspace(x);
  const Elements in(x), result(out);
  run_tasks(x.size(0), [&](int64_t b) {
    Buffer<int32_t> left(frames);
    Buffer<T> share(frames), row(frames), made(frames);
    const T* where = static_cast<const T*>(position.data_ptr()) + b * frames;
    const bool *no_band = static_cast<const bool*>(hidden_bands.data_ptr()) + b * bands,
               *no_frame = static_cast<const bool*>(hidden_frames.data_ptr()) + b * frames;
    for (int64_t t = 0; t < frames; ++t) {
      // "Not above 0" takes NaN to the first frame: no position may lead out of the row.
      const T within = where[t] > 0 ? std::min<T>(where[t], frames - 1) : T(0);
      // T may have rounded the last place up, behind the row.
      left.data()[t] = static_cast<int32_t>(std::min<int64_t>(static_cast<int64_t>(within), frames - 1));
      share.data()[t] = within - std::floor(within);
    }
    for (int64_t f = 0; f < bands; ++f) {
      const int64_t at = (b * bands + f) * frames;
      T* to = run_to_write(result, at, made.data());
      if (no_band[f]) {
        std::fill_n(to, frames, T(0));
      } else {
        const T* from = read_run(in, at, frames, row.data());
        for (int64_t t = 0; t < frames; ++t) {
          const T a = from[left.data()[t]], between = share.data()[t];
          to[t] = no_frame[t] ? T(0) : between == 0 ? a : a + between * (from[left.data()[t] + 1] - a);
        }
      }
      write_run(result, at, frames, to);
    }
  });
  return out;
}

Tensor warp_and_mask_fwd(Tensor x, Tensor position, Tensor hidden_bands, Tensor hidden_frames) {
  return (is_double(x) ? warp_and_mask<double> : warp_and_mask<float>)(contiguous(x), contiguous(position),
                                                                       contiguous(hidden_bands),
                                                                       contiguous(hidden_frames));
}

}  // namespace
}  // namespace cmx

STABLE_TORCH_LIBRARY_IMPL(cmx_fast, CPU, m) { m.impl("warp_and_mask_fwd", TORCH_BOX(&cmx::warp_and_mask_fwd)); }
