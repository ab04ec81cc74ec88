// Attention on the CPU, a tile of scores at a time: no matrix of all queries and keys exists. Heads of queries (d) and
// of values (e) may be of any sizes, since both are operands of the same products.
//
// Algorithm: FlashAttention's. Forward, a task owns a tile of up to 96 queries and walks the keys 288 at a time: scores
// (96, 288), maxima, exponentials in place, product with the values into out (96, e). When a row's maximum rises, its
// sum and its output are rescaled. Backward, a task owns a tile of queries and makes the softmax P and its derivatives
// S of all keys from the saved row statistics; dq is added there, and once a panel of tiles is done, tasks that own 96
// keys add P^T dout to dv and S^T q to dk, over the tiles in their order. Nothing is shared between tasks of a phase.
//
// Why it is right: exponents are of differences from the row's maximum in two-piece precision (cpu/simd/simd.h,
// exp2_below), so weights keep their digits at any scale; columns beyond the last get weight 0. The mean slope is
// summed from the slopes that it is subtracted from, so that they cancel where one weight is 1. Memory: P and S of one
// panel, a row tile per thread, for all keys.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <optional>
#include <tuple>
#include <vector>

#include "common/checks.h"
#include "common/parallel.h"
#include "cpu/products/products.h"
#include "cpu/simd/kernels.h"
#include "cpu/tensors/buffer.h"
#include "cpu/tiles/softmax_tiles.h"

namespace cmx {
namespace {

constexpr int64_t kTile = kTileRows * kTileCols;

template <class T>
Exponent<T> exponent(double scale) {
  const T khi = scale * kLog2E;
  return {khi, T(scale * kLog2E - double(khi))};
}

// Runs one(batch) for every slice, side by side where there are enough of them, else each on all threads.
template <class One>
void for_slices(int64_t count, const One& one) {
  if (count >= int64_t(torch::stable::get_num_threads())) return run_tasks(count, one);
  for (int64_t batch = 0; batch < count; ++batch) one(batch);
}

// Each row's largest product q . k and the sum of exponentials above it, from which backward makes the same weights. A
// log-sum-exp would lose their digits where scores are large.
template <class T>
struct RowStats {
  T *highest, *sum;
  RowStats(const Tensor& tensor, int64_t batch)
      : highest(static_cast<T*>(tensor.data_ptr()) + batch * 2 * tensor.size(2)), sum(highest + tensor.size(2)) {}
};

// out (n, e) = softmax(scale q k^T) v.
template <class T>
void forward(const Rows<T>& q, const Rows<T>& k, const Rows<T>& v, double scale, T* out, RowStats<T> stats) {
  const int64_t n = q.n, m = k.n, e = v.d;
  const Exponent<T> factor = exponent<T>(scale);
  const auto& kernels = best_kernels<T>();
  const auto& softmax = best_softmax_kernels<T>();
  const auto scores =
      make_products<T>(q, k, {.scores = true, .product = false, .transposed = false, .cancelling = false});
  Rows<T> weights;  // only their number and dtype count
  weights.n = n, weights.d = e, weights.bfloat16 = q.bfloat16;
  const auto means =
      make_products<T>(weights, v, {.scores = false, .product = true, .transposed = false, .cancelling = false});
  scores->set_panel(0, n);
  means->set_panel(0, n);
  const int64_t tile_rows = rows_per_tile(n);
  const std::vector<T> ones(kTileRows, T(1));
  run_tasks(ceil_div(n, tile_rows), [&](int64_t tile) {
    const int64_t i = tile * tile_rows, rows = std::min(tile_rows, n - i);
    Buffer<T> s(kTile);
    T tile_highest[kTileRows], *highest = stats.highest + i, *sum = stats.sum + i;
    std::fill_n(highest, rows, -std::numeric_limits<T>::infinity());
    std::fill_n(sum, rows, T(0));
    for (int64_t j = 0; j < m; j += kTileCols) {
      const int64_t cols = std::min(kTileCols, m - j);
      scores->scores(i, rows, j, cols, s.data(), kTileCols);
      kernels.maxima({rows, cols, nullptr, nullptr}, s.data(), kTileCols, tile_highest, nullptr);
      for (int64_t r = 0; r < rows; ++r) {
        if (!(tile_highest[r] > highest[r])) continue;
        if (sum[r] != 0) {
          const T ratio = std::exp2((highest[r] - tile_highest[r]) * factor.khi);
          sum[r] *= ratio;
          for (int64_t p = 0; p < e; ++p) out[(i + r) * e + p] *= ratio;
        }
        highest[r] = tile_highest[r];
      }
      softmax.exponentials(rows, cols, factor, highest, ones.data(), s.data(), kTileCols, sum);
      means->add_product(rows, j, cols, s.data(), kTileCols, out + i * e);
    }
    for (int64_t r = 0; r < rows && m; ++r)
      for (int64_t p = 0; p < e; ++p) out[(i + r) * e + p] /= sum[r];
  });
}

// A few row tiles at a time: their softmax P and its derivatives S lie in memory, all columns of them, until the
// columns have added P^T dout to dv and S^T q to dk.
template <class T>
void backward(const Rows<T>& grad, const Rows<T>& q, const Rows<T>& k, const Rows<T>& v, RowStats<T> stats,
              double scale, T* dq, T* dk, T* dv) {
  const int64_t n = q.n, m = k.n, d = q.d, e = v.d;
  if (n == 0 || m == 0) return;
  const Exponent<T> factor = exponent<T>(scale);
  const auto& softmax = best_softmax_kernels<T>();
  const auto scores = make_products<T>(
      q, k, {.scores = true, .product = dq != nullptr, .transposed = dk != nullptr, .cancelling = false});
  const auto slopes = make_products<T>(
      grad, v, {.scores = dq || dk, .product = false, .transposed = dv != nullptr, .cancelling = false});
  const int64_t tile_rows = rows_per_tile(n), column_tiles = ceil_div(m, kTileCols);
  const int64_t tiles =
      std::min<int64_t>(ceil_div(n, tile_rows), std::max<int64_t>(2, torch::stable::get_num_threads()));
  Buffer<T> weights(tiles * column_tiles * kTile), derivatives(tiles * column_tiles * kTile);
  std::vector<T> normaliser(n);
  for (int64_t i = 0; i < n; ++i) normaliser[i] = 1 / stats.sum[i];
  for (int64_t panel = 0; panel < n; panel += tiles * tile_rows) {
    const int64_t height = std::min(tiles * tile_rows, n - panel);
    scores->set_panel(panel, height);
    slopes->set_panel(panel, height);
    run_tasks(ceil_div(height, tile_rows), [&](int64_t tile) {
      const int64_t row = tile * tile_rows, rows = std::min(tile_rows, height - row), i = panel + row;
      // The mean slope under the softmax, of the slopes themselves: where one weight is 1, they cancel exactly.
      double weighted[kTileRows] = {};
      T unused[kTileRows] = {}, mean[kTileRows];
      for (int64_t t = 0; t < column_tiles; ++t) {
        const int64_t j = t * kTileCols, cols = std::min(kTileCols, m - j);
        T *p = weights.data() + (tile * column_tiles + t) * kTile,
          *x = derivatives.data() + (tile * column_tiles + t) * kTile;
        scores->scores(row, rows, j, cols, p, kTileCols);
        softmax.exponentials(rows, cols, factor, stats.highest + i, normaliser.data() + i, p, kTileCols, unused);
        if (!dq && !dk) continue;
        slopes->scores(row, rows, j, cols, x, kTileCols);
        softmax.weighted_sums(rows, cols, p, x, kTileCols, weighted);
      }
      std::copy_n(weighted, rows, mean);
      for (int64_t t = 0; t < column_tiles && (dq || dk); ++t) {
        const int64_t j = t * kTileCols, cols = std::min(kTileCols, m - j);
        const int64_t at = (tile * column_tiles + t) * kTile;
        softmax.derivatives(rows, cols, weights.data() + at, mean, T(scale), derivatives.data() + at, kTileCols);
        if (dq) scores->add_product(rows, j, cols, derivatives.data() + at, kTileCols, dq + i * d);
      }
    });
    if (!dk && !dv) continue;
    run_tasks(ceil_div(m, kTaskColumns), [&](int64_t task) {
      const int64_t begin = task * kTaskColumns, cols = std::min(kTaskColumns, m - begin);
      for (int64_t tile = 0; tile * tile_rows < height; ++tile) {
        const int64_t row = tile * tile_rows, rows = std::min(tile_rows, height - row);
        const int64_t at = (tile * column_tiles + begin / kTileCols) * kTile + begin % kTileCols;
        if (dv) slopes->add_transposed(row, rows, cols, weights.data() + at, kTileCols, dv + begin * e);
        if (dk) scores->add_transposed(row, rows, cols, derivatives.data() + at, kTileCols, dk + begin * d);
      }
    });
  }
}

template <class T>
std::tuple<Tensor, Tensor> run_forward(const Tensor& query, const Tensor& key, const Tensor& value, double scale) {
  const int64_t b = query.size(0), n = query.size(1), e = value.size(2);
  Tensor out = torch::stable::new_empty(query, {b, n, e});
  Tensor stats = torch::stable::new_empty(query, {b, 2, n}, sizeof(T) == 8 ? ScalarType::Double : ScalarType::Float);
  for_slices(b, [&](int64_t batch) {
    const auto q = make_rows<T>(query, batch, false, false), k = make_rows<T>(key, batch, false, false),
               v = make_rows<T>(value, batch, false, false);
    RowGradient<T> sums(out, batch, n, e);
    forward<T>(q, k, v, scale, sums.data(), {stats, batch});
    sums.finish({});
  });
  return {out, stats};
}

template <class T>
std::tuple<Tensor, Tensor, Tensor> run_backward(const Tensor& grad, const Tensor& query, const Tensor& key,
                                                const Tensor& value, const Tensor& stats, double scale, bool need_query,
                                                bool need_key, bool need_value) {
  const int64_t b = query.size(0), n = query.size(1), m = key.size(1), d = query.size(2), e = value.size(2);
  const auto gradient_of = [&](const Tensor& input, bool needed) {
    return needed ? torch::stable::new_empty(input, {b, input.size(1), input.size(2)})
                  : torch::stable::new_empty(input, {0});
  };
  const Tensor dquery = gradient_of(query, need_query), dkey = gradient_of(key, need_key),
               dvalue = gradient_of(value, need_value);
  for_slices(b, [&](int64_t batch) {
    const auto g = make_rows<T>(grad, batch, false, false), q = make_rows<T>(query, batch, false, false),
               k = make_rows<T>(key, batch, false, false), v = make_rows<T>(value, batch, false, false);
    std::optional<RowGradient<T>> dq, dk, dv;
    if (need_query) dq.emplace(dquery, batch, n, d);
    if (need_key) dk.emplace(dkey, batch, m, d);
    if (need_value) dv.emplace(dvalue, batch, m, e);
    backward<T>(g, q, k, v, {stats, batch}, scale, dq ? dq->data() : nullptr, dk ? dk->data() : nullptr,
                dv ? dv->data() : nullptr);
    for (auto* gradient : {&dq, &dk, &dv})
      if (*gradient) (*gradient)->finish({});
  });
  return {dquery, dkey, dvalue};
}

std::tuple<Tensor, Tensor> attention_fwd(Tensor query, Tensor key, Tensor value, double scale) {
  return (is_double(query) ? run_forward<double> : run_forward<float>)(contiguous(query), contiguous(key),
                                                                       contiguous(value), scale);
}

std::tuple<Tensor, Tensor, Tensor> attention_bwd(Tensor grad_out, Tensor query, Tensor key, Tensor value,
                                                 Tensor row_stats, double scale, bool need_query, bool need_key,
                                                 bool need_value) {
  return (is_double(query) ? run_backward<double> : run_backward<float>)(contiguous(grad_out), contiguous(query),
                                                                         contiguous(key), contiguous(value), row_stats,
                                                                         scale, need_query, need_key, need_value);
}

}  // namespace
}  // namespace cmx

STABLE_TORCH_LIBRARY_IMPL(cmx_fast, CPU, m) {
  m.impl("attention_fwd", TORCH_BOX(&cmx::attention_fwd));
  m.impl("attention_bwd", TORCH_BOX(&cmx::attention_bwd));
}
