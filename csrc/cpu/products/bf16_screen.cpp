// Scores on the bfloat16 instructions of x86-64: AMX tiles, or AVX512-BF16 dot products.
//
// Rows less the origin and centroids less the origin are rounded to bfloat16 and multiplied in blocks of 32 x 32, once.
// The bound of Note [Screened search], cpu/products/screen.h: a rounded row y~ against a rounded centroid m~ is off by
// at most |y - y~| |m| + |y~| |m - m~| and the rounding of the float32 sum; the errors' norms are measured, not
// estimated.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <memory>
#include <type_traits>

#include "common/parallel.h"
#include "cpu/products/screen.h"
#include "cpu/products/search.h"
#include "cpu/simd/instruction_set.h"

#if defined(__x86_64__)
#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,amx-tile,amx-bf16,avx2,fma")

#include "cpu/products/bf16_blocks.h"

namespace cmx {
namespace {

constexpr float kUnit = 6e-8f;        // float32's rounding, 2^-24
constexpr float kFlushed = 2.4e-38f;  // AMX takes subnormal numbers for 0

template <bool amx>
class Bf16Screen final : public Screen<float> {
 public:
  explicit Bf16Screen(const CentredCentroids<float>& centroids) : centroids_(centroids) {
    const int64_t k = centroids.k, d = centroids.d;
    shape_.depth = round_up(d, kDepth);
    packed_.resize(round_up(k, kBlock) / kTile * shape_.plane());
    Buffer<float> error(round_up(k, kBlock));
    run_tasks(round_up(k, kBlock) / kTile, [&](int64_t panel) {
      const int64_t j = panel * kTile;
      const float* rows = centroids_.moved.data() + j * d;
      pack_right_columns<1>(rows, d, k - j, d, packed_.data() + panel * shape_.plane(), shape_);
      for (int64_t r = 0; r < kTile; ++r) error.data()[j + r] = j + r < k ? rounded(rows + r * d, d).error : 0;
    });
    largest_error_ = *std::max_element(error.data(), error.data() + k);
  }

  void set_rows(const TileRows<float>& rows, int64_t n, ScreenRows& held, float* slack) const override {
    const int64_t padded = round_up(n, kBlock), depth = shape_.depth;
    if (held.parts.size() < padded * depth) held.parts.resize(padded * depth);
    const float constant = 4 * kUnit * centroids_.largest_half_square + (centroids_.d + 8) * kFlushed;
    const float largest = centroids_.largest_norm,
                sum_rounding = (centroids_.d + 8) * kUnit * (largest + largest_error_);
    for (int64_t i = 0; i < padded; ++i) {
      Part* packed = held.parts.data() + i * depth;
      if (i >= n) {
        std::fill_n(packed, depth, Part(0));
        continue;
      }
      const Rounded row = rounded(rows.row(i), centroids_.d, centroids_.origin.data(), packed, n * rows.stride);
      slack[i] = 2 * (row.error * largest + row.norm * (largest_error_ + sum_rounding) + constant);
    }
  }

  void scores(const ScreenRows& held, int64_t n, int64_t j, int64_t m, float* s, int64_t lds) const override {
    std::conditional_t<amx, TileConfiguration, int> configuration{};
    const int64_t depth = shape_.depth, plane = shape_.plane();
    for (int64_t q = 0; q < m; q += kBlock)
      for (int64_t i = 0; i < n; i += kBlock) {
        const Operands x = {
            held.parts.data() + i * depth, depth, 0, packed_.data() + (j + q) / kTile * plane, plane, 0, depth};
        if constexpr (amx)
          amx_block<1>(x, s + i * lds + q, lds, false);
        else
          dot_block<1>(x, s + i * lds + q, lds, false);
      }
    (void)configuration;
  }

 private:
  struct Rounded {
    float error, norm;  // |y - y~| and |y~|, NaN where scores may overflow
  };

  // y = x - origin rounded to bfloat16, into `packed` padded with zeros where that is given.
  // `ahead`: where the next tile's row lies, which the memory should send meanwhile.
  static Rounded rounded(const float* x, int64_t d, const float* origin = nullptr, Part* packed = nullptr,
                         int64_t ahead = 0) {
    __m512 error = _mm512_setzero_ps(), square = _mm512_setzero_ps();
    const auto add = [&](__m512 y, int64_t p) __attribute__((always_inline)) {
      const __m256bh part = _mm512_cvtneps_pbh(y);
      const __m512 value = to_float(part), rest = _mm512_sub_ps(y, value);
      error = _mm512_fmadd_ps(rest, rest, error);
      square = _mm512_fmadd_ps(value, value, square);
      if (packed) _mm256_storeu_si256((__m256i*)(packed + p), (__m256i)part);
    };
    int64_t p = 0;
    for (; p + 16 <= d; p += 16) {
      __builtin_prefetch(x + ahead + p, 0, 2);
      add(origin ? _mm512_sub_ps(_mm512_loadu_ps(x + p), _mm512_loadu_ps(origin + p)) : _mm512_loadu_ps(x + p), p);
    }
    if (p < d) {
      const __m512 y = load_up_to(x + p, d - p);
      add(origin ? _mm512_sub_ps(y, load_up_to(origin + p, d - p)) : y, p);
    }
    if (packed && d <= round_up(d, kDepth) - 16)
      _mm256_storeu_si256((__m256i*)(packed + round_up(d, kDepth) - 16), _mm256_setzero_si256());
    return {std::sqrt(_mm512_reduce_add_ps(error)), screened_norm(_mm512_reduce_add_ps(square))};
  }

  const CentredCentroids<float>& centroids_;
  RightShape shape_;
  Buffer<Part> packed_;
  float largest_error_ = 0;
};

}  // namespace

std::unique_ptr<Screen<float>> make_bf16_screen(const CentredCentroids<float>& centroids) {
  if (instruction_set() >= InstructionSet::kAmx) return std::make_unique<Bf16Screen<true>>(centroids);
  if (instruction_set() >= InstructionSet::kAvx512Bf16) return std::make_unique<Bf16Screen<false>>(centroids);
  return nullptr;
}

}  // namespace cmx
#pragma GCC pop_options

#else

namespace cmx {
std::unique_ptr<Screen<float>> make_bf16_screen(const CentredCentroids<float>&) { return nullptr; }
}  // namespace cmx

#endif
