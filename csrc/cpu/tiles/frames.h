// Passes over rows of a view that prepare_frames asks of one instruction set.
#pragma once

#include <cstdint>

namespace cmx {

inline constexpr int64_t kRowUnit = 16;  // floats of the longest vector
inline constexpr float kLuma[3] = {0.299f, 0.587f, 0.114f};

// Where the n pixels of a view's row lie in a row of its frame: share[i] of the way from pixel first[i] to the one
// `step` further. Arrays hold n rounded up to kRowUnit entries, the last one repeated.
struct Columns {
  int64_t n, width;  // width: bytes of the frame's row
  int32_t step;      // 1; 0 in frames one pixel wide
  const int32_t* first;
  const float* share;
  // For every vector of pixels where its bytes begin, -1 where they lie too far apart, and which of them each takes.
  int32_t *begin, *picks;
};

// Of a frame; grey is the mean that its contrast is about.
struct Colours {
  float contrast, grey, saturation;
};

struct FrameKernels {
  // Fills begin and picks.
  void (*locate)(const Columns&);
  // A row of a frame at the columns; out holds whole vectors.
  void (*interpolate)(const uint8_t* row, const Columns&, float* out);
  // (upper + share * (lower - upper) - centre) * scale
  void (*normalise)(const float* upper, const float* lower, float share, float centre, float scale, int64_t n,
                    float* out);
  // The rows between in [0, 1] after brightness, in out, out + stride and out + 2 stride, and the sum of their grey.
  float (*brighten)(const float* const upper[3], const float* const lower[3], float share, float gain, int64_t n,
                    float* out, int64_t stride);
  // Contrast and saturation of such rows, then (. - centre) * scale.
  void (*recolour)(const float* rows, int64_t stride, const Colours&, const float centre[3], const float scale[3],
                   int64_t n, float* const out[3]);
  // Three rows to one of triples.
  void (*interleave)(const float* const rows[3], int64_t n, float* out);
  void (*round_to_bfloat16)(const float* x, int64_t n, uint16_t* out);
};

namespace baseline {
const FrameKernels& frame_kernels();
}
namespace avx2 {
const FrameKernels& frame_kernels();
}
namespace avx512 {
const FrameKernels& frame_kernels();
}
const FrameKernels& best_frame_kernels();

}  // namespace cmx
