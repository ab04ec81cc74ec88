// The sigmoid contrastive loss on the CPU.
//
// Algorithm: a walk over tiles of 96 x 288 similarities. A pair's loss needs nothing of other pairs, so the first visit
// of a tile gives its losses, their derivatives and the products of these with both sides: three products for loss and
// gradients together. What remains for backward is to multiply by the incoming gradient. That is one number per row of
// the query, by which its own gradient can be multiplied afterwards; the key's sums over the queries, so where losses
// are not summed here (`summed`) it takes a second walk with the numbers known.
//
// Who owns what: a task owns a row tile and walks its columns, so sums and gradients of the query's rows are its own.
// The derivatives of a panel of rows are kept; tasks that own columns then multiply them with the rows, tile after
// tile, so that no result depends on the threads. Why it is right: a tile and its sums are of type T, sums over tiles
// double; ids of any value become classes by a hash map, and without ids row i's class is i. Memory: O((N + M) D), a
// tile per thread and a panel of about 32 MiB.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <numeric>
#include <optional>
#include <tuple>
#include <vector>

#include "common/checks.h"
#include "common/parallel.h"
#include "cpu/products/products.h"
#include "cpu/simd/elements.h"
#include "cpu/tensors/buffer.h"
#include "cpu/tensors/classes.h"
#include "cpu/tiles/sigmoid_tiles.h"

namespace cmx {
namespace {

constexpr int64_t kRowsPerTask = 256;

// The sums of a row of pairs: losses, derivatives by the logit, and these times the similarity.
struct RowSums {
  double loss = 0, slope = 0, weighted = 0;
};

// One slice of the batch: the inputs in the working precision.
template <class T>
struct Problem {
  Rows<T> query, key;
  std::vector<ClassOf<T>> query_class, key_class;
  double scale, bias;

  Problem(const Tensor& q, const Tensor& k, const Tensor& logit_scale, const Tensor& logit_bias,
          const std::optional<Tensor>& query_ids, const std::optional<Tensor>& key_ids, int64_t batch, bool normalize)
      : query(make_rows<T>(q, batch, normalize, false)),
        key(make_rows<T>(k, batch, normalize, false)),
        query_class(query.n),
        key_class(key.n + kPadding),
        scale(checked_scale(logit_scale)),
        bias(number_of(logit_bias)) {
    if (query_ids) {
      const auto* of_queries = static_cast<const int64_t*>(query_ids->data_ptr()) + batch * query.n;
      const auto* of_keys = static_cast<const int64_t*>(key_ids->data_ptr()) + batch * key.n;
      const Classes classes(of_queries, query.n, of_keys, key.n);
      std::copy(classes.of_row.begin(), classes.of_row.end(), query_class.begin());
      std::copy(classes.of_column.begin(), classes.of_column.end(), key_class.begin());
    } else {
      std::iota(query_class.begin(), query_class.end(), 0);
      std::iota(key_class.begin(), key_class.begin() + key.n, 0);
    }
  }
};

// Visits every pair once. Adds to `sums` (n) unless null, dx += weighted derivatives . key and dy += their transpose .
// query unless null. `weight` (n): the incoming gradient of each row's loss, 1 where null.
template <class T>
void walk(const Problem<T>& problem, const T* weight, RowSums* sums, T* dx, T* dy) {
  const Rows<T>&x = problem.query, &y = problem.key;
  const int64_t n = x.n, m = y.n, d = x.d;
  // Gradients of rows without features have no memory.
  if (n == 0 || m == 0 || !(sums || dx || dy)) return;
  const auto& kernels = best_sigmoid_kernels<T>();
  // Derivatives lie tile by tile, so that reading a tile down its columns stays within few pages.
  constexpr int64_t kTile = kTileRows * kTileCols, lds = kTileCols + kPadding;
  const int64_t column_tiles = ceil_div(m, kTileCols), height = rows_per_tile(n);
  // Without dy nothing outlives a tile, and one panel takes all rows.
  const int64_t fitting = dy ? kPanelBytes / (column_tiles * kTileCols * int64_t(sizeof(T))) : n + kTileRows;
  const int64_t panel_rows = std::max(height, fitting / height * height);
  const auto products = make_products<T>(
      x, y, {.scores = true, .product = dx != nullptr, .transposed = dy != nullptr, .cancelling = false});
  Buffer<T> derivatives(dy ? ceil_div(std::min(panel_rows, n), height) * column_tiles * kTile : 0);
  std::vector<T> factor(n, T(problem.scale));
  for (int64_t i = 0; i < n && weight; ++i) factor[i] = problem.scale * weight[i];

  for (int64_t panel = 0; panel < n; panel += panel_rows) {
    const int64_t rows_here = std::min(panel_rows, n - panel);
    products->set_panel(panel, rows_here);
    run_tasks(ceil_div(rows_here, height), [&](int64_t tile) {
      const int64_t i = panel + tile * height, rows = std::min(height, panel + rows_here - i);
      Buffer<T> scratch(kTileRows * lds), unkept(!dy && dx ? kTile : 0);
      T loss[kTileRows], slope[kTileRows], weighted[kTileRows];
      for (int64_t j = 0; j < m; j += kTileCols) {
        const int64_t cols = std::min(kTileCols, m - j);
        const SigmoidTile<T> pairs = {
            rows, cols, T(problem.scale), T(problem.bias), problem.query_class.data() + i, problem.key_class.data() + j,
        };
        T* u = scratch.data();
        products->scores(i - panel, rows, j, cols, u, lds);
        T* v = dy ? derivatives.data() + (tile * column_tiles + j / kTileCols) * kTile : dx ? unkept.data() : nullptr;
        if (sums) {
          kernels.sums(pairs, {loss, slope, weighted}, factor.data() + i, u, lds, v, kTileCols);
          for (int64_t r = 0; r < rows; ++r)
            sums[i + r].loss += loss[r], sums[i + r].slope += slope[r], sums[i + r].weighted += weighted[r];
        } else {
          kernels.slopes(pairs, factor.data() + i, u, lds, v, kTileCols);
        }
        if (dx) products->add_product(rows, j, cols, v, kTileCols, dx + i * d);
      }
    });
    if (!dy) continue;
    run_tasks(ceil_div(m, kTaskColumns), [&](int64_t task) {
      const int64_t begin = task * kTaskColumns, cols = std::min(kTaskColumns, m - begin);
      for (int64_t tile = 0; tile < ceil_div(rows_here, height); ++tile) {
        const int64_t i = tile * height;
        const T* v = derivatives.data() + (tile * column_tiles + begin / kTileCols) * kTile + begin % kTileCols;
        products->add_transposed(i, std::min(height, rows_here - i), cols, v, kTileCols, dy + begin * d);
      }
    });
  }
}

using Forward = std::tuple<Tensor, Tensor, Tensor, Tensor>;

template <class T>
Forward run_forward(const Tensor& query, const Tensor& key, const Tensor& logit_scale, const Tensor& logit_bias,
                    const std::optional<Tensor>& query_ids, const std::optional<Tensor>& key_ids, bool normalize,
                    bool summed, bool keep_query, bool keep_key) {
  const int64_t b = query.size(0), n = query.size(1), m = key.size(1), d = query.size(2);
  keep_key = keep_key && summed;
  Tensor loss = summed ? torch::stable::new_empty(logit_scale, {b}) : torch::stable::new_empty(logit_scale, {b, n});
  Tensor slopes = torch::stable::new_empty(logit_scale, {b, 2, n});
  Tensor query_gradient =
      keep_query ? torch::stable::new_empty(logit_scale, {b, n, d}) : torch::stable::new_empty(logit_scale, {0});
  Tensor key_gradient =
      keep_key ? torch::stable::new_empty(logit_scale, {b, m, d}) : torch::stable::new_empty(logit_scale, {0});
  auto* losses = static_cast<T*>(loss.data_ptr());
  auto* of_rows = static_cast<T*>(slopes.data_ptr());
  run_tasks(b, [&](int64_t batch) {
    const Problem<T> problem(query, key, logit_scale, logit_bias, query_ids, key_ids, batch, normalize);
    std::optional<RowGradient<T>> dx, dy;
    if (keep_query) dx.emplace(query_gradient, batch, n, d);
    if (keep_key) dy.emplace(key_gradient, batch, m, d);
    std::vector<RowSums> sums(n);
    walk<T>(problem, nullptr, sums.data(), dx ? dx->data() : nullptr, dy ? dy->data() : nullptr);
    double total = 0;
    for (int64_t i = 0; i < n; ++i) {
      total += sums[i].loss;
      if (!summed) losses[batch * n + i] = sums[i].loss;
      of_rows[2 * batch * n + i] = sums[i].weighted;
      of_rows[(2 * batch + 1) * n + i] = sums[i].slope;
    }
    if (summed) losses[batch] = total;
    if (dx) dx->finish(problem.query);
    if (dy) dy->finish(problem.key);
  });
  return {loss, slopes, query_gradient, key_gradient};
}

// out (b, n, d) = kept times each row's weight: weight[i], or weight[batch] where the losses were summed.
template <class T>
void multiply(const Tensor& kept, const T* weight, bool summed, const Tensor& out) {
  const int64_t rows = kept.size(0) * kept.size(1), n = kept.size(1), d = kept.size(2);
  const auto* values = static_cast<const T*>(kept.data_ptr());
  with_elements(out, [&](auto* elements) {
    using Element = std::remove_pointer_t<decltype(elements)>;
    run_tasks(ceil_div(rows, kRowsPerTask), [&](int64_t task) {
      for (int64_t i = task * kRowsPerTask; i < std::min(rows, (task + 1) * kRowsPerTask); ++i) {
        const T factor = weight[summed ? i / n : i];
        for (int64_t p = i * d; p < (i + 1) * d; ++p) elements[p] = static_cast<Element>(factor * values[p]);
      }
    });
  });
}

template <class T>
Forward run_backward(const Tensor& grad_loss, const Tensor& query, const Tensor& key, const Tensor& logit_scale,
                     const Tensor& logit_bias, const std::optional<Tensor>& query_ids,
                     const std::optional<Tensor>& key_ids, bool normalize, bool summed, const Tensor& slopes,
                     const Tensor& query_gradient, const Tensor& key_gradient, bool need_query, bool need_key) {
  const int64_t b = query.size(0), n = query.size(1), m = key.size(1), d = query.size(2);
  const auto* grad = static_cast<const T*>(grad_loss.data_ptr());
  const auto* of_rows = static_cast<const T*>(slopes.data_ptr());
  Tensor dquery = need_query ? torch::stable::new_empty(query, {b, n, d}) : torch::stable::new_empty(query, {0});
  Tensor dkey = need_key ? torch::stable::new_empty(key, {b, m, d}) : torch::stable::new_empty(key, {0});
  Tensor dscale = torch::stable::new_empty(logit_scale, {}), dbias = torch::stable::new_empty(logit_scale, {});
  const auto weight = [&](int64_t batch, int64_t i) { return grad[summed ? batch : batch * n + i]; };
  double by_scale = 0, by_bias = 0;
  for (int64_t batch = 0; batch < b; ++batch)
    for (int64_t i = 0; i < n; ++i) {
      by_scale += double(weight(batch, i)) * of_rows[2 * batch * n + i];
      by_bias += double(weight(batch, i)) * of_rows[(2 * batch + 1) * n + i];
    }
  *static_cast<T*>(dscale.data_ptr()) = by_scale;
  *static_cast<T*>(dbias.data_ptr()) = by_bias;
  if (need_query && query_gradient.numel() > 0) {
    multiply(query_gradient, grad, summed, dquery);
    need_query = false;
  }
  // Without losses it is 0, whatever the incoming gradient.
  if (need_key && key_gradient.numel() > 0 && n > 0) {
    multiply(key_gradient, grad, summed, dkey);
    need_key = false;
  }
  if (!need_query && !need_key) return {dquery, dkey, dscale, dbias};
  run_tasks(b, [&](int64_t batch) {
    const Problem<T> problem(query, key, logit_scale, logit_bias, query_ids, key_ids, batch, normalize);
    std::vector<T> weights(n);
    for (int64_t i = 0; i < n; ++i) weights[i] = weight(batch, i);
    std::optional<RowGradient<T>> dx, dy;
    if (need_query) dx.emplace(dquery, batch, n, d);
    if (need_key) dy.emplace(dkey, batch, m, d);
    walk<T>(problem, weights.data(), nullptr, dx ? dx->data() : nullptr, dy ? dy->data() : nullptr);
    if (dx) dx->finish(problem.query);
    if (dy) dy->finish(problem.key);
  });
  return {dquery, dkey, dscale, dbias};
}

Forward sigmoid_contrastive_fwd(Tensor query, Tensor key, Tensor logit_scale, Tensor logit_bias,
                                std::optional<Tensor> query_ids, std::optional<Tensor> key_ids, bool normalize,
                                bool summed, bool keep_query, bool keep_key) {
  return (is_double(query) ? run_forward<double> : run_forward<float>)(contiguous(query), contiguous(key), logit_scale,
                                                                       logit_bias, contiguous_if_any(query_ids),
                                                                       contiguous_if_any(key_ids), normalize, summed,
                                                                       keep_query, keep_key);
}

Forward sigmoid_contrastive_bwd(Tensor grad_loss, Tensor query, Tensor key, Tensor logit_scale, Tensor logit_bias,
                                std::optional<Tensor> query_ids, std::optional<Tensor> key_ids, bool normalize,
                                bool summed, Tensor slopes, Tensor query_gradient, Tensor key_gradient, bool need_query,
                                bool need_key) {
  return (is_double(query) ? run_backward<double>
                           : run_backward<float>)(contiguous(grad_loss), contiguous(query), contiguous(key),
                                                  logit_scale, logit_bias, contiguous_if_any(query_ids),
                                                  contiguous_if_any(key_ids), normalize, summed, slopes, query_gradient,
                                                  key_gradient, need_query, need_key);
}

}  // namespace
}  // namespace cmx

STABLE_TORCH_LIBRARY_IMPL(cmx_fast, CPU, m) {
  m.impl("sigmoid_contrastive_fwd", TORCH_BOX(&cmx::sigmoid_contrastive_fwd));
  m.impl("sigmoid_contrastive_bwd", TORCH_BOX(&cmx::sigmoid_contrastive_bwd));
}
