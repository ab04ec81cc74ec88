// Passes that the drivers ask of one instruction set: products over a tile, and those over a tile of similarities.
//
// The drivers decide which tile, these tables how: one source (vector_kernels.h) is compiled once per instruction set
// (kernels_*.cpp) and chosen at run time. Every pass works on a tile that its driver has made to fit the caches, and
// writes whole vectors: rows of its outputs have room for that.
//
// Note [Shared exponentials]: an entry u of a tile takes part in the softmax of its row and in that of its column, each
// with its own shift, and an exponential costs more than everything else done with it. In the usual form 2^(u k) = e
// 2^n is computed once (exp2_parts) and scaled by 2^(n - shift) for the row and for the column: shifts are whole
// numbers, so both are exact. That holds while exp2_parts can tell whole number and fraction of u k apart: up to
// kLargestShared, cpu/products/block.cpp. For larger logits (`large`) row and column take an exponential each, 2^((u -
// shift) k), the difference first.
#pragma once

#include <cstdint>

namespace cmx {

// Tile of similarities: every micro-kernel's row and column count divides these, so only matrix edges waste work.
inline constexpr int64_t kTileRows = 96;
inline constexpr int64_t kTileCols = 288;
inline constexpr double kLog2E = 1.44269504088896340736;

// Which entries of a tile count. Columns are relative to the tile; an entry counts when
// lower[i] < column < cols and column != excluded[i]. Null arrays exclude nothing.
struct TileMask {
  int64_t rows, cols;
  const int64_t* excluded;
  const int64_t* lower;
};

// Sums of exp2(u * k - shift) over rows and columns, with u-weighted and plain sums beside them.
// Column arrays are null when only the rows' softmax is wanted. One exponential serves a row and a column: shifts are
// whole numbers, and |u * k| must be below 2^21. `large` is for any logits: exp2((u - shift) * k), the
// difference first, with a similarity at or above the row's or column's others as its shift. There the u-weighted sum
// is of u less the shift, so that large ones neither overflow nor cancel.
template <class T>
struct TileSums {
  T khi, klo;  // logit_scale * log2(e) in two pieces
  bool large;
  const T* row_shift;
  const T* col_shift;
  T *row_sum, *row_weighted, *row_plain;
  T *col_sum, *col_weighted, *col_plain;
};

// v = (e_i f_i + e_j h_j) - (b_i + c_j), e as above: the loss's derivative by the product x_i . y_j.
// With `divide` (distances) v is divided by u, 0 where u is 0. row_sum/col_sum: sums of v, null for dot products.
template <class T>
struct TileWeights {
  T khi, klo;
  bool large;
  const T *row_shift, *row_factor, *row_offset;
  const T *col_shift, *col_factor, *col_offset;  // null without the columns' softmax
  bool divide;
  T *row_sum, *col_sum;
};

template <class T>
struct Kernels {
  int64_t panel;  // operands are packed in panels of this many columns

  // y (n, d) -> [ceil(n / panel)][d][panel], zero padded: what scores reads.
  void (*pack_columns)(const T* y, int64_t n, int64_t d, T* packed);
  // s (m, n) = x (m, d) . packed columns; rows of s hold n rounded up to panel.
  void (*scores)(int64_t m, int64_t n, int64_t d, const T* x, const T* packed, T* s, int64_t lds);
  // y (n, d) -> [ceil(d / panel)][stride][panel], zero padded: what the two below read. y and packed start at some row.
  void (*pack_rows)(const T* y, int64_t n, int64_t d, int64_t stride, T* packed);
  // c (m, d) += v (m, n) . y (n, d), and with v (n, m) transposed.
  void (*add_product)(int64_t m, int64_t n, int64_t d, const T* v, int64_t ldv, const T* packed, int64_t stride, T* c);
  void (*add_transposed)(int64_t m, int64_t n, int64_t d, const T* v, int64_t ldv, const T* packed, int64_t stride,
                         T* c);

  // Sum of a[p] * b[p] in double.
  double (*dot)(const T* a, const T* b, int64_t d);
  // In place: products to -sqrt(max(|x|^2 + |y|^2 - 2 x.y, 0)), or minus the square.
  void (*distance)(const TileMask&, bool squared, const T* row_square, const T* col_square, T* s, int64_t lds);
  // Maximum of u over the counted entries of each row and column (-inf where there is none).
  void (*maxima)(const TileMask&, const T* u, int64_t ldu, T* row_max, T* col_max);
  void (*sums)(const TileMask&, const TileSums<T>&, const T* u, int64_t ldu);
  void (*weights)(const TileMask&, const TileWeights<T>&, const T* u, int64_t ldu, T* v, int64_t ldv);
};

// One table per instruction set (kernels_*.cpp), and the best of them for this processor.
namespace baseline {
template <class T>
const Kernels<T>& tile_kernels();
}
namespace avx2 {
template <class T>
const Kernels<T>& tile_kernels();
}
namespace avx512 {
template <class T>
const Kernels<T>& tile_kernels();
}
template <class T>
const Kernels<T>& best_kernels();

}  // namespace cmx
