// The three matrix products of a block of similarities, whatever instructions they run on: scores x y^T, and from
// derivatives v of the scores v y and v^T x. Operands are packed once, y as a whole and x a panel at a time, in the
// order in which the micro-kernels read them; a task then multiplies one tile, and tasks share nothing but packed
// operands.
#pragma once

#include <cstdint>
#include <memory>

#include "cpu/simd/kernels.h"
#include "cpu/tensors/rows.h"

namespace cmx {

inline constexpr int64_t kPadding = 64;  // spare entries after a row of a tile: kernels write whole vectors
inline constexpr int64_t kPanelBytes = 32
                                       << 20;  // derivatives kept between the two gradient products, or one row tile's
inline constexpr int64_t kTaskColumns = 96;    // columns of one task of the transposed product; divides kTileCols

// Small problems take flatter tiles, so that every core has some; multiples of the matrix units' blocks of 32.
inline int64_t rows_per_tile(int64_t n) { return n >= 8 * kTileRows ? kTileRows : n >= 2 * kTileRows ? 64 : 32; }

// Rows x (n, d) against columns y (m, d), a panel of rows at a time. The methods on tiles are called from many threads.
template <class T>
class Products {
 public:
  virtual ~Products() = default;
  // Makes rows [i, i + n) of x the current panel; row arguments below count from its first row.
  virtual void set_panel(int64_t i, int64_t n) = 0;
  // s (n, m) = x[i : i + n] . y[j : j + m]^T, j a multiple of kTileCols; rows of s hold m rounded up to the padding.
  virtual void scores(int64_t i, int64_t n, int64_t j, int64_t m, T* s, int64_t lds) = 0;
  // c (n, d) += v (n, m) . y[j : j + m]
  virtual void add_product(int64_t n, int64_t j, int64_t m, const T* v, int64_t ldv, T* c) = 0;
  // c (m, d) += v (n, m)^T . x[i : i + n]
  virtual void add_transposed(int64_t i, int64_t n, int64_t m, const T* v, int64_t ldv, T* c) = 0;
};

// The products that a pass needs: packing is done for these only. `cancelling`: the caller subtracts something of the
// size of the products from them, so derivatives need more digits than a bfloat16 input has.
struct ProductNeeds {
  bool scores, product, transposed, cancelling;
};

template <class T>
std::unique_ptr<Products<T>> make_products(const Rows<T>& x, const Rows<T>& y, ProductNeeds needs);

// On bfloat16 matrix instructions where the processor has them and they pay, else null (bf16_products.cpp).
std::unique_ptr<Products<float>> make_bf16_products(const Rows<float>& x, const Rows<float>& y, ProductNeeds needs);

}  // namespace cmx
