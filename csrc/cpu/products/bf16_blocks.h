// Packing and multiplying bfloat16 parts of float32 operands, a 32 x 32 block at a time. Included by
// bf16_products.cpp under its target pragma, after every other header.
#pragma once

#include "cpu/simd/transpose16.h"

namespace cmx {
namespace {

using Part = uint16_t;  // the bits of a bfloat16

constexpr int64_t kTile = 16;   // rows of a hardware tile, and columns of a packed panel
constexpr int64_t kDepth = 32;  // bfloat16 numbers in a row of a tile
constexpr int64_t kTileParts = kTile * kDepth;
constexpr int64_t kBlock = 2 * kTile;  // rows and columns of the block that four accumulator tiles hold

inline __m512 to_float(__m256bh parts) {
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32((__m256i)parts), 16));
}

// The first P parts of 16 numbers: each the rest rounded to bfloat16.
template <int P>
inline void split(__m512 x, __m256bh (&parts)[P]) {
  for (int p = 0; p < P; ++p) {
    parts[p] = _mm512_cvtneps_pbh(x);
    if (p + 1 < P) x = _mm512_sub_ps(x, to_float(parts[p]));
  }
}

inline __m512 load_up_to(const float* x, int64_t count) {
  return _mm512_maskz_loadu_ps(count >= 16 ? 0xffff : count <= 0 ? 0 : (1u << count) - 1, x);
}

// Left operand: parts of x (n, k) as P planes of (rows, depth), zero padded; rows a multiple of 16, depth of 32.
template <int P>
void pack_left(const float* x, int64_t ldx, int64_t n, int64_t k, Part* packed, int64_t rows, int64_t depth,
               int64_t plane) {
  for (int64_t i = 0; i < rows; ++i)
    for (int64_t p = 0; p < depth; p += 16) {
      __m256bh parts[P];
      split<P>(i < n ? load_up_to(x + i * ldx + p, k - p) : _mm512_setzero_ps(), parts);
      for (int q = 0; q < P; ++q)
        _mm256_storeu_si256((__m256i*)(packed + q * plane + i * depth + p), (__m256i)parts[q]);
    }
}

// The same of the transpose of v (n, m): [P][rows >= m][depth >= n].
template <int P>
void pack_left_transposed(const float* v, int64_t ldv, int64_t n, int64_t m, Part* packed, int64_t rows,
                          int64_t depth) {
  for (int64_t i = 0; i < rows; i += 16)
    for (int64_t p = 0; p < depth; p += 16) {
      __m512 block[16];
      for (int r = 0; r < 16; ++r)
        block[r] = p + r < n ? load_up_to(v + (p + r) * ldv + i, m - i) : _mm512_setzero_ps();
      transpose(block);
      for (int r = 0; r < 16; ++r) {
        __m256bh parts[P];
        split<P>(block[r], parts);
        for (int q = 0; q < P; ++q)
          _mm256_storeu_si256((__m256i*)(packed + (q * rows + i + r) * depth + p), (__m256i)parts[q]);
      }
    }
}

// Right operand, whose summed dimension runs in pairs as the instructions read it:
// [panels of 16 columns][P][depth / 32][16 pairs][16 columns][2].
struct RightShape {
  int64_t depth = 0;  // summed dimension, a multiple of 32
  int64_t plane() const { return depth * kTile; }
};

// The tile (panel, part, depth block) for rows y (16 columns, k <= 32 of the summed dimension from p on).
template <int P>
void pack_right_columns(const float* y, int64_t ldy, int64_t n, int64_t k, Part* panel, RightShape shape) {
  for (int64_t p = 0; p < shape.depth; p += kDepth) {
    // Even and odd numbers of the 16 rows; after the transposition a vector holds one of a pair for 16 columns.
    __m512 lower[16], upper[16];
    for (int r = 0; r < 16; ++r) {
      lower[r] = r < n ? load_up_to(y + r * ldy + p, k - p) : _mm512_setzero_ps();
      upper[r] = r < n ? load_up_to(y + r * ldy + p + 16, k - p - 16) : _mm512_setzero_ps();
    }
    transpose(lower);
    transpose(upper);
    for (int pair = 0; pair < 16; ++pair) {
      const auto& half = pair < 8 ? lower : upper;
      __m256bh even[P], odd[P];
      split<P>(half[pair % 8 * 2], even);
      split<P>(half[pair % 8 * 2 + 1], odd);
      for (int q = 0; q < P; ++q)
        _mm512_storeu_si512(panel + q * shape.plane() + p * kTile + pair * kDepth,
                            _mm512_or_si512(_mm512_cvtepu16_epi32((__m256i)even[q]),
                                            _mm512_slli_epi32(_mm512_cvtepu16_epi32((__m256i)odd[q]), 16)));
    }
  }
}

// Rows y (n, d) as the summed dimension, at depth p of every panel; panels cover d rounded up to 32.
template <int P>
void pack_right_rows(const float* y, int64_t n, int64_t d, Part* packed, int64_t p, RightShape shape) {
  for (int64_t j = 0; j < round_up(d, kBlock); j += kTile) {
    Part* panel = packed + j / kTile * P * shape.plane();
    for (int64_t r = 0; r < round_up(n, kDepth); r += 2) {
      __m256bh even[P], odd[P];
      split<P>(r < n ? load_up_to(y + r * d + j, d - j) : _mm512_setzero_ps(), even);
      split<P>(r + 1 < n ? load_up_to(y + (r + 1) * d + j, d - j) : _mm512_setzero_ps(), odd);
      for (int q = 0; q < P; ++q)
        _mm512_storeu_si512(panel + q * shape.plane() + (p + r) * kTile,
                            _mm512_or_si512(_mm512_cvtepu16_epi32((__m256i)even[q]),
                                            _mm512_slli_epi32(_mm512_cvtepu16_epi32((__m256i)odd[q]), 16)));
    }
  }
}

// Left and right operand of one 32 x 32 block, from where the summed dimension starts.
struct Operands {
  const Part* left;
  int64_t left_depth, left_plane;
  const Part* right;
  int64_t right_panel, right_plane;
  int64_t length;  // of the summed dimension, a multiple of 32
};

// Our tile configuration for as long as this lives; whatever another library had set up comes back.
class TileConfiguration {
 public:
  TileConfiguration() {
    _tile_storeconfig(&previous_);
    Config ours = {};
    ours.palette = 1;
    for (int t = 0; t < 8; ++t) ours.rows[t] = kTile, ours.bytes[t] = kDepth * sizeof(Part);
    _tile_loadconfig(&ours);
  }
  ~TileConfiguration() {
    if (previous_.palette)
      _tile_loadconfig(&previous_);
    else
      _tile_release();
  }

 private:
  struct alignas(64) Config {
    uint8_t palette, start_row, reserved[14];
    uint16_t bytes[16];
    uint8_t rows[16];
  } previous_;
};

// Accumulators 0 to 3 += left part a . right part b over the whole length.
inline void multiply_parts(const Operands& x, int a, int b) {
  const Part* left = x.left + a * x.left_plane;
  const Part* right = x.right + b * x.right_plane;
  for (int64_t p = 0; p < x.length; p += kDepth) {
    _tile_loadd(4, left + p, x.left_depth * sizeof(Part));
    _tile_loadd(6, right + p * kTile, kDepth * sizeof(Part));
    _tile_loadd(7, right + x.right_panel + p * kTile, kDepth * sizeof(Part));
    _tile_loadd(5, left + kTile * x.left_depth + p, x.left_depth * sizeof(Part));
    _tile_dpbf16ps(0, 4, 6);
    _tile_dpbf16ps(1, 4, 7);
    _tile_dpbf16ps(2, 5, 6);
    _tile_dpbf16ps(3, 5, 7);
  }
}

// The five products of parts below high x high: each tile is loaded once or twice for them all. See
// Note [Products of parts], cpu/products/bf16_products.cpp.
inline void multiply_small_parts(const Operands& x) {
  for (int64_t p = 0; p < x.length; p += kDepth) {
    const auto load_left = [&](int part) __attribute__((always_inline)) {
      const Part* left = x.left + part * x.left_plane + p;
      _tile_loadd(4, left, x.left_depth * sizeof(Part));
      _tile_loadd(5, left + kTile * x.left_depth, x.left_depth * sizeof(Part));
    };
    const auto load_right = [&](int part) __attribute__((always_inline)) {
      const Part* right = x.right + part * x.right_plane + p * kTile;
      _tile_loadd(6, right, kDepth * sizeof(Part));
      _tile_loadd(7, right + x.right_panel, kDepth * sizeof(Part));
    };
    const auto multiply = [&]() __attribute__((always_inline)) {
      _tile_dpbf16ps(0, 4, 6);
      _tile_dpbf16ps(1, 4, 7);
      _tile_dpbf16ps(2, 5, 6);
      _tile_dpbf16ps(3, 5, 7);
    };
    load_left(2);
    load_right(0);
    multiply();
    load_left(1);
    multiply();
    load_right(1);
    multiply();
    load_left(0);
    multiply();
    load_right(2);
    multiply();
  }
}

// c (32, 32) (+)= left of L parts . right: all six products of parts that count for L = 3, else right's only part.
template <int L>
inline void amx_block(const Operands& x, float* c, int64_t ldc, bool accumulate) {
  const int64_t stride = ldc * sizeof(float);
  if (accumulate) {
    _tile_loadd(0, c, stride);
    _tile_loadd(1, c + kTile, stride);
    _tile_loadd(2, c + kTile * ldc, stride);
    _tile_loadd(3, c + kTile * ldc + kTile, stride);
  } else {
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
  }
  if (L == 3) multiply_small_parts(x);
  if (L == 2) multiply_parts(x, 1, 0);
  multiply_parts(x, 0, 0);
  _tile_stored(0, c, stride);
  _tile_stored(1, c + kTile, stride);
  _tile_stored(2, c + kTile * ldc, stride);
  _tile_stored(3, c + kTile * ldc + kTile, stride);
}

// The same with AVX512-BF16 for at most two parts, eight rows at a time.
template <int L>
inline void dot_block(const Operands& x, float* c, int64_t ldc, bool accumulate) {
  constexpr int rows = 8;
  for (int i = 0; i < kBlock; i += rows, c += rows * ldc) {
    __m512 sum[rows][2];
    for (int r = 0; r < rows; ++r)
      for (int q = 0; q < 2; ++q)
        sum[r][q] = accumulate ? _mm512_loadu_ps(c + r * ldc + q * kTile) : _mm512_setzero_ps();
    for (int part = L - 1; part >= 0; --part) {
      const Part* left = x.left + part * x.left_plane + i * x.left_depth;
      for (int64_t p = 0; p < x.length; p += 2) {
        const __m512bh b0 = (__m512bh)_mm512_loadu_si512(x.right + p * kTile);
        const __m512bh b1 = (__m512bh)_mm512_loadu_si512(x.right + x.right_panel + p * kTile);
#pragma GCC unroll 8
        for (int r = 0; r < rows; ++r) {
          int32_t pair;
          __builtin_memcpy(&pair, left + r * x.left_depth + p, sizeof(pair));
          const __m512bh a = (__m512bh)_mm512_set1_epi32(pair);
          sum[r][0] = _mm512_dpbf16_ps(sum[r][0], a, b0);
          sum[r][1] = _mm512_dpbf16_ps(sum[r][1], a, b1);
        }
      }
    }
    for (int r = 0; r < rows; ++r)
      for (int q = 0; q < 2; ++q) _mm512_storeu_ps(c + r * ldc + q * kTile, sum[r][q]);
  }
}

}  // namespace
}  // namespace cmx
