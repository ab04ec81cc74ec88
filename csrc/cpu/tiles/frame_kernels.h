// The kernels of frames.h; included once per instruction set, as vector_kernels.h is. The two pixels that an output
// lies between come as the halves of one integer: where shuffles reach far enough, a vector of them costs one.
#pragma once

#include "cpu/simd/simd.h"
#include "cpu/tiles/frames.h"

namespace cmx::CMX_NAMESPACE {
namespace {

// Bytes of a row that one shuffle chooses from.
#if CMX_VECTOR_BYTES == 64
constexpr int64_t kTable = 64;
#elif CMX_VECTOR_BYTES == 32
constexpr int64_t kTable = 16;
#else
constexpr int64_t kTable = 0;
#endif

void locate(const Columns& c) {
  constexpr int64_t lanes = kLanes<float>;
  for (int64_t i = 0; i < c.n; i += lanes) {
    int32_t low = c.first[i], high = low;
    for (int64_t l = i; l < i + lanes; ++l) {
      low = c.first[l] < low ? c.first[l] : low;
      high = c.first[l] > high ? c.first[l] : high;
    }
    // Whole tables are read, within the row.
    if (low > c.width - kTable) low = static_cast<int32_t>(c.width - kTable);
    const bool reach = low >= 0 && high + c.step < low + kTable;
    c.begin[i / lanes] = reach ? low : -1;
    for (int64_t l = i; l < i + lanes; ++l) {
      const uint32_t left = c.first[l] - low, right = left + c.step;
      // A set high bit makes a byte 0.
      c.picks[l] = static_cast<int32_t>(left | right << 16 | (CMX_VECTOR_BYTES == 32 ? 0x80008000u : 0u));
    }
  }
}

inline Int<float> pairs(const uint8_t* row, const Columns& c, int64_t i) {
  Int<float> both;
#if CMX_VECTOR_BYTES > 16
  const int64_t begin = c.begin[i / kLanes<float>];
  if (begin >= 0) {
    std::memcpy(&both, c.picks + i, sizeof(both));
    const uint8_t* from = row + begin;
#if CMX_VECTOR_BYTES == 64
    const __m256i* table = reinterpret_cast<const __m256i*>(from);
    const __m512i near = _mm512_cvtepu8_epi16(_mm256_loadu_si256(table));
    const __m512i far = _mm512_cvtepu8_epi16(_mm256_loadu_si256(table + 1));
    return (Int<float>)_mm512_permutex2var_epi16(near, (__m512i)both, far);
#else
    const __m128i table = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from));
    return (Int<float>)_mm256_shuffle_epi8(_mm256_broadcastsi128_si256(table), (__m256i)both);
#endif
  }
#endif
  for (int l = 0; l < kLanes<float>; ++l) {
    const uint8_t* from = row + c.first[i + l];
    both[l] = from[0] | from[c.step] << 16;
  }
  return both;
}

void interpolate(const uint8_t* row, const Columns& c, float* out) {
  for (int64_t i = 0; i < c.n; i += kLanes<float>) {
    const Int<float> both = pairs(row, c, i);
    const Vec<float> left = __builtin_convertvector(both & 0xffff, Vec<float>),
                     right = __builtin_convertvector(both >> 16, Vec<float>);
    store(out + i, fused(right - left, load(c.share + i), left));
  }
}

void normalise(const float* __restrict upper, const float* __restrict lower, float share, float centre, float scale,
               int64_t n, float* __restrict out) {
  for (int64_t i = 0; i < n; ++i) out[i] = (upper[i] + share * (lower[i] - upper[i]) - centre) * scale;
}

// Into [0, 1]; a NaN stays.
template <class V>
inline V unit(V v) {
  v = v < 0.0f ? V{} : v;
  return v > 1.0f ? V{} + 1.0f : v;
}

float brighten(const float* const upper[3], const float* const lower[3], float share, float gain, int64_t n, float* out,
               int64_t stride) {
  const auto grey = [=](int64_t i) {
    Vec<float> sum = {};
    for (int c = 0; c < 3; ++c) {
      const Vec<float> above = load(upper[c] + i);
      const Vec<float> v = unit(fused(load(lower[c] + i) - above, broadcast(share), above) * gain);
      store(out + c * stride + i, v);
      sum += v * kLuma[c];
    }
    return sum;
  };
  constexpr int64_t lanes = kLanes<float>;
  Vec<float> sums = {};
  int64_t i = 0;
  for (; i + lanes <= n; i += lanes) sums += grey(i);
  float total = horizontal_sum<float>(sums);
  if (i < n) {
    const Vec<float> last = grey(i);
    for (int l = 0; l < n - i; ++l) total += last[l];
  }
  return total;
}

void recolour(const float* rows, int64_t stride, const Colours& colours, const float centre[3], const float scale[3],
              int64_t n, float* const out[3]) {
  for (int64_t i = 0; i < n; i += kLanes<float>) {
    Vec<float> v[3], grey = {};
    for (int c = 0; c < 3; ++c) {
      v[c] = unit(colours.grey + (load(rows + c * stride + i) - colours.grey) * colours.contrast);
      grey += v[c] * kLuma[c];
    }
    for (int c = 0; c < 3; ++c) {
      const Vec<float> result = (unit(grey + (v[c] - grey) * colours.saturation) - centre[c]) * scale[c];
      if (i + kLanes<float> <= n)
        store(out[c] + i, result);
      else
        std::memcpy(out[c] + i, &result, (n - i) * sizeof(float));
    }
  }
}

void interleave(const float* const rows[3], int64_t n, float* __restrict out) {
  const float* __restrict red = rows[0], * __restrict green = rows[1], * __restrict blue = rows[2];
  for (int64_t i = 0; i < n; ++i) {
    out[3 * i] = red[i];
    out[3 * i + 1] = green[i];
    out[3 * i + 2] = blue[i];
  }
}

void round_to_bfloat16(const float* __restrict x, int64_t n, uint16_t* __restrict out) {
  for (int64_t i = 0; i < n; ++i) {
    const uint32_t bits = __builtin_bit_cast(uint32_t, x[i]);
    // To nearest, ties to even; NaN would round to infinity.
    const uint32_t rounded = bits + 0x7fff + (bits >> 16 & 1);
    out[i] = static_cast<uint16_t>((x[i] == x[i] ? rounded : 0x7fc00000u) >> 16);
  }
}

}  // namespace

const FrameKernels& frame_kernels() {
  static constexpr FrameKernels table = {locate,   interpolate, normalise,        brighten,
                                         recolour, interleave,  round_to_bfloat16};
  return table;
}

}  // namespace cmx::CMX_NAMESPACE
