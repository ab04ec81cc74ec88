// Products in T itself: the vector kernels of cpu/simd on packed operands, where no matrix unit is faster. y is packed
// as (panels of columns, d) for scores and as (panels of features, rows) for the gradient of x; the current panel of x
// as (panels of features, rows) for the gradient of y. Each packing task owns one tile of columns or rows.
#include "cpu/products/products.h"

#include <algorithm>

#include "common/parallel.h"
#include "cpu/simd/kernels.h"
#include "cpu/tensors/buffer.h"

namespace cmx {
namespace {

// Products in T itself with the vector kernels.
template <class T>
class VectorProducts final : public Products<T> {
 public:
  VectorProducts(const Rows<T>& x, const Rows<T>& y, ProductNeeds needs) : x_(x), y_(y), needs_(needs) {
    const int64_t tiles = ceil_div(y.n, kTileCols), d = y.d, panel = kernels_.panel;
    if (needs.scores) columns_.resize(ceil_div(y.n, panel) * panel * d);
    if (needs.product) rows_.resize(ceil_div(d, panel) * panel * y.n);
    run_tasks(tiles, [&](int64_t tile) {
      const int64_t j = tile * kTileCols, m = std::min(kTileCols, y.n - j);
      if (needs.scores) kernels_.pack_columns(y.row(j), m, d, columns_.data() + j * d);
      if (needs.product) kernels_.pack_rows(y.row(j), m, d, y.n, rows_.data() + j * panel);
    });
  }

  void set_panel(int64_t i, int64_t n) override {
    first_ = i;
    if (!needs_.transposed) return;
    panel_rows_ = n;
    panel_.resize(ceil_div(x_.d, kernels_.panel) * kernels_.panel * n);
    run_tasks(ceil_div(n, kTileRows), [&](int64_t tile) {
      const int64_t r = tile * kTileRows;
      kernels_.pack_rows(x_.row(i + r), std::min(kTileRows, n - r), x_.d, n, panel_.data() + r * kernels_.panel);
    });
  }

  void scores(int64_t i, int64_t n, int64_t j, int64_t m, T* s, int64_t lds) override {
    kernels_.scores(n, m, x_.d, x_.row(first_ + i), columns_.data() + j * y_.d, s, lds);
  }

  void add_product(int64_t n, int64_t j, int64_t m, const T* v, int64_t ldv, T* c) override {
    kernels_.add_product(n, m, y_.d, v, ldv, rows_.data() + j * kernels_.panel, y_.n, c);
  }

  void add_transposed(int64_t i, int64_t n, int64_t m, const T* v, int64_t ldv, T* c) override {
    kernels_.add_transposed(m, n, x_.d, v, ldv, panel_.data() + i * kernels_.panel, panel_rows_, c);
  }

 private:
  const Kernels<T>& kernels_ = best_kernels<T>();
  const Rows<T>&x_, &y_;
  const ProductNeeds needs_;
  Buffer<T> columns_, rows_, panel_;
  int64_t first_ = 0, panel_rows_ = 0;
};

}  // namespace

constexpr int64_t kSmall = 3 << 20;  // multiplications

template <class T>
std::unique_ptr<Products<T>> make_products(const Rows<T>& x, const Rows<T>& y, ProductNeeds needs) {
  // Matrix units sleep between small problems, and waking them takes as long as the products do without.
  if constexpr (sizeof(T) == 4)
    if (x.n * y.n * x.d > kSmall)
      if (auto products = make_bf16_products(x, y, needs)) return products;
  return std::make_unique<VectorProducts<T>>(x, y, needs);
}

template std::unique_ptr<Products<float>> make_products(const Rows<float>&, const Rows<float>&, ProductNeeds);
template std::unique_ptr<Products<double>> make_products(const Rows<double>&, const Rows<double>&, ProductNeeds);

}  // namespace cmx
