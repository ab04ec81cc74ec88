// Products on the bfloat16 matrix instructions of x86-64: AMX tiles, or AVX512-BF16 dot products for bfloat16 inputs.
//
// Note [Products of parts]: a float32 number is the exact sum of three bfloat16 numbers (high, middle, low: 3 x 8 bits
// of mantissa). With AMX at sixteen times the rate of float32 arithmetic, the six products of parts that reach
// float32's rounding (high high, high middle, middle high, middle middle, high low, low high) cost less than the
// float32 product itself. The small ones are summed first, so that they are rounded at their own size.
//
// Parts by input: float32 three of either operand. bfloat16 one of rows and columns, and of the derivatives one, or two
// where the caller subtracts something of their size (ProductNeeds::cancelling). A packed right operand is [panel of 16
// columns][part][depth / 32][16 pairs][16 columns][2]; a block is 32 x 32, four accumulator tiles.
#include <algorithm>
#include <cstdint>
#include <memory>
#include <type_traits>

#include "common/parallel.h"
#include "cpu/products/products.h"
#include "cpu/simd/instruction_set.h"
#include "cpu/simd/kernels.h"
#include "cpu/tensors/buffer.h"

#if defined(__x86_64__)
#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,amx-tile,amx-bf16,avx2,fma")

#include "cpu/products/bf16_blocks.h"

namespace cmx {
namespace {

// Products of P parts of the rows and columns, and V parts of the derivatives. amx: on tiles, else with dot products.
template <int P, int V, bool amx>
class Bf16Products final : public Products<float> {
 public:
  Bf16Products(const Rows<float>& x, const Rows<float>& y, ProductNeeds needs) : x_(x), y_(y), needs_(needs) {
    columns_shape_.depth = round_up(y.d, kDepth);
    rows_shape_.depth = round_up(y.n, kDepth);
    if (needs.scores) columns_.resize(round_up(y.n, kBlock) / kTile * P * columns_shape_.plane());
    if (needs.product) rows_.resize(round_up(y.d, kBlock) / kTile * P * rows_shape_.plane());
    run_tasks(ceil_div(y.n, kTileRows), [&](int64_t task) {
      const int64_t begin = task * kTileRows, n = std::min(kTileRows, y.n - begin);
      for (int64_t j = begin; j < begin + round_up(n, kBlock) && needs.scores; j += kTile)
        pack_right_columns<P>(y_.row(j), y_.d, y_.n - j, y_.d, columns_.data() + j / kTile * P * columns_shape_.plane(),
                              columns_shape_);
      if (needs.product) pack_right_rows<P>(y_.row(begin), n, y_.d, rows_.data(), begin, rows_shape_);
    });
  }

  void set_panel(int64_t i, int64_t n) override {
    panel_rows_ = round_up(n, kBlock);
    panel_shape_.depth = panel_rows_;
    if (needs_.scores) left_.resize(P * panel_rows_ * columns_shape_.depth);
    if (needs_.transposed) panel_.resize(round_up(x_.d, kBlock) / kTile * P * panel_shape_.plane());
    run_tasks(ceil_div(n, kTileRows), [&](int64_t task) {
      const int64_t begin = task * kTileRows, rows = std::min(kTileRows, n - begin), depth = columns_shape_.depth;
      if (needs_.scores)
        pack_left<P>(x_.row(i + begin), x_.d, rows, x_.d, left_.data() + begin * depth, round_up(rows, kBlock), depth,
                     panel_rows_ * depth);
      if (needs_.transposed) pack_right_rows<P>(x_.row(i + begin), rows, x_.d, panel_.data(), begin, panel_shape_);
    });
  }

  void scores(int64_t i, int64_t n, int64_t j, int64_t m, float* s, int64_t lds) override {
    const int64_t depth = columns_shape_.depth;
    multiply<P>(
        n, m,
        {left_.data() + i * depth, depth, panel_rows_ * depth, columns_.data() + j / kTile * P * columns_shape_.plane(),
         P * columns_shape_.plane(), columns_shape_.plane(), depth},
        s, lds, false, true);
  }

  void add_product(int64_t n, int64_t j, int64_t m, const float* v, int64_t ldv, float* c) override {
    const int64_t rows = round_up(n, kBlock), depth = round_up(m, kDepth);
    Part* left = scratch(V * rows * depth);
    pack_left<V>(v, ldv, n, m, left, rows, depth, rows * depth);
    multiply<V>(
        n, y_.d,
        {left, depth, rows * depth, rows_.data() + j * kTile, P * rows_shape_.plane(), rows_shape_.plane(), depth}, c,
        y_.d, true, false);
  }

  void add_transposed(int64_t i, int64_t n, int64_t m, const float* v, int64_t ldv, float* c) override {
    const int64_t rows = round_up(m, kBlock), depth = round_up(n, kDepth);
    Part* left = scratch(V * rows * depth);
    pack_left_transposed<V>(v, ldv, n, m, left, rows, depth);
    multiply<V>(
        m, x_.d,
        {left, depth, rows * depth, panel_.data() + i * kTile, P * panel_shape_.plane(), panel_shape_.plane(), depth},
        c, x_.d, true, false);
  }

 private:
  // Parts of the derivatives that this thread multiplies now.
  static Part* scratch(int64_t size) {
    thread_local Buffer<Part> buffer;
    if (buffer.size() < size) buffer.resize(size);
    return buffer.data();
  }

  // c (m, n) (+)= left of L parts . right; a padded c has room for whole blocks.
  template <int L>
  static void multiply(int64_t m, int64_t n, Operands x, float* c, int64_t ldc, bool accumulate, bool padded) {
    std::conditional_t<amx, TileConfiguration, int> configuration{};
    alignas(64) float edge[kBlock * kBlock];
    const Part* left = x.left;
    for (int64_t j = 0; j < n; j += kBlock, x.right += 2 * x.right_panel) {
      x.left = left;
      for (int64_t i = 0; i < m; i += kBlock, x.left += kBlock * x.left_depth) {
        float* ci = c + i * ldc + j;
        if (padded || (i + kBlock <= m && j + kBlock <= n)) {
          block<L>(x, ci, ldc, accumulate);
          continue;
        }
        block<L>(x, edge, kBlock, false);
        for (int64_t r = 0; r < std::min(kBlock, m - i); ++r)
          for (int64_t q = 0; q < std::min(kBlock, n - j); ++q)
            ci[r * ldc + q] = (accumulate ? ci[r * ldc + q] : 0) + edge[r * kBlock + q];
      }
    }
    (void)configuration;
  }

  template <int L>
  static void block(const Operands& x, float* c, int64_t ldc, bool accumulate) {
    if constexpr (amx)
      amx_block<L>(x, c, ldc, accumulate);
    else
      dot_block<L>(x, c, ldc, accumulate);
  }

  const Rows<float>&x_, &y_;
  const ProductNeeds needs_;
  RightShape columns_shape_, rows_shape_, panel_shape_;
  Buffer<Part> columns_, rows_, panel_, left_;
  int64_t panel_rows_ = 0;
};

}  // namespace

std::unique_ptr<Products<float>> make_bf16_products(const Rows<float>& x, const Rows<float>& y, ProductNeeds needs) {
  const bool amx = instruction_set() >= InstructionSet::kAmx;
  const bool dots = instruction_set() >= InstructionSet::kAvx512Bf16;
  const bool bfloat16 = x.bfloat16 && y.bfloat16;
  if (amx && !bfloat16) return std::make_unique<Bf16Products<3, 3, true>>(x, y, needs);
  if (amx && needs.cancelling) return std::make_unique<Bf16Products<1, 2, true>>(x, y, needs);
  if (amx) return std::make_unique<Bf16Products<1, 1, true>>(x, y, needs);
  if (dots && bfloat16 && needs.cancelling) return std::make_unique<Bf16Products<1, 2, false>>(x, y, needs);
  if (dots && bfloat16) return std::make_unique<Bf16Products<1, 1, false>>(x, y, needs);
  return nullptr;
}

}  // namespace cmx
#pragma GCC pop_options

#else

namespace cmx {
std::unique_ptr<Products<float>> make_bf16_products(const Rows<float>&, const Rows<float>&, ProductNeeds) {
  return nullptr;
}
}  // namespace cmx

#endif
