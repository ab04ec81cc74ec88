// InfoNCE on the CPU.
//
// Algorithm: a direction's candidates are blocks of similarities (other keys, banks, other queries) whose softmax sums
// add up; cpu/products/block.h walks a block tile by tile and never stores it. One walk over the block of queries and
// keys serves both directions: its rows' sums are the queries', its columns' the keys'. The positive stays outside of
// all blocks, in O(N D) and double precision, and meets their log-sum-exp L in loss = log(1 + exp(L - z)), so that
// neither the loss nor the gradient loses digits when it dominates.
//
// Who owns what: a slice of the batch is a task; within it the block's row tiles are. Backward, d loss / d similarity
// is made per tile from what forward has saved of each row's softmax (SoftmaxSum::save) and multiplied with the other
// side; the positives' part, which is O(N D), is added here. Why it is right: targets are checked to lie in [0, M), and
// to be a permutation where keys look for queries, so each row of the columns' statistics is written by exactly one
// query. Memory: O((N + M) D), a tile per thread and a panel of about 32 MiB, unless similarities are kept (`cache`).
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <cmath>
#include <numeric>
#include <optional>
#include <span>
#include <string>
#include <tuple>

#include "common/checks.h"
#include "common/parallel.h"
#include "cpu/products/bank_means.h"
#include "cpu/products/block.h"
#include "cpu/simd/elements.h"
#include "cpu/tensors/buffer.h"

namespace cmx {
namespace {

// The two sides of the loss. Queries look for their key; with `symmetric` keys look for their query as well.
enum Side { kQueries, kKeys };

// The schema's options, by its names.
struct Options {
  bool in_batch, within;
  Similarity similarity;
  bool symmetric, normalize;
  double label_smoothing;

  // The sides that look for the other.
  std::span<const Side> sides() const {
    static constexpr Side kBoth[] = {kQueries, kKeys};
    return {kBoth, symmetric ? size_t(2) : size_t(1)};
  }
};

// One slice of the batch: the inputs in the working precision, and what both passes derive from them.
template <class T>
struct Problem {
  Rows<T> query, key;
  const std::vector<Rows<T>>& bank;
  std::vector<int64_t> key_of_query, query_of_key;
  std::vector<double> positive;  // similarity of query i and its key
  const Options& options;

  Problem(const Tensor& q, const Tensor& k, const std::vector<Rows<T>>& bank, const std::optional<Tensor>& target,
          int64_t batch, const Options& options)
      : query(make_rows<T>(q, batch, options.normalize)),
        key(make_rows<T>(k, batch, options.normalize)),
        bank(bank),
        key_of_query(query.n),
        positive(query.n),
        options(options) {
    const int64_t n = query.n, m = key.n;
    if (target) {
      const auto* values = static_cast<const int64_t*>(target->data_ptr()) + batch * n;
      std::copy_n(values, n, key_of_query.begin());
    } else {
      std::iota(key_of_query.begin(), key_of_query.end(), 0);
    }
    for (const int64_t j : key_of_query) STD_TORCH_CHECK(j >= 0 && j < m, "target must lie in [0, ", m, "), got ", j);
    if (options.symmetric) {
      STD_TORCH_CHECK(n == m, "symmetric needs as many keys as queries, got ", m, " and ", n);
      query_of_key.assign(m, -1);
      for (int64_t i = 0; i < n; ++i) query_of_key[key_of_query[i]] = i;
      for (const int64_t i : query_of_key) STD_TORCH_CHECK(i >= 0, "symmetric needs a target that is a permutation");
    }
    for (int64_t i = 0; i < n; ++i) positive[i] = similarity(query.row(i), key.row(key_of_query[i]));
  }

  double similarity(const T* x, const T* y) const {
    if (options.similarity == Similarity::kDot) return dot(x, y, query.d);
    double square = 0;
    for (int64_t p = 0; p < query.d; ++p) square += (double(x[p]) - y[p]) * (double(x[p]) - y[p]);
    return options.similarity == Similarity::kDistance ? -std::sqrt(square) : -square;
  }

  // d similarity / d x = weight * y - weight * x for distances, weight * y for products.
  double positive_weight(int64_t i) const {
    switch (options.similarity) {
      case Similarity::kDot:
        return 1;
      case Similarity::kDistance:
        return positive[i] == 0 ? 0 : -1 / positive[i];
      default:
        return 2;
    }
  }

  // Candidates of a query (or key): its positive and the negatives.
  double candidates() const {
    double count = 1 + (options.in_batch ? key.n - 1 : 0) + (options.within ? query.n - 1 : 0);
    for (const auto& rows : bank) count += rows.n;
    return count;
  }

  double reach() const {
    double longest = std::max(query.max_norm, key.max_norm);
    for (const auto& rows : bank) longest = std::max(longest, double(rows.max_norm));
    return cmx::reach(options.similarity, longest);
  }

  // The row of a pair in its side's statistics: query i, or its key.
  int64_t row_of(Side side, int64_t i) const { return side == kQueries ? i : key_of_query[i]; }

  // Visits the blocks of similarities: visit(block, rows, columns) with the side whose sums the block's rows add to,
  // and that of its columns, if these add to any.
  template <class Visit>
  void for_blocks(const Visit& visit) const {
    const std::optional<Side> none, keys = options.symmetric ? std::optional(kKeys) : none;
    if (options.in_batch) visit(Block<T>{query, key, key_of_query.data()}, kQueries, keys);
    for (const Side side : options.sides()) {
      const Rows<T>& own = side == kQueries ? query : key;
      for (const auto& rows : bank) visit(Block<T>{own, rows}, side, none);
      if (options.within) visit(Block<T>{own, own, nullptr, true}, side, std::optional(side));
    }
  }
};

// A direction's saved statistics (4, n) of the negatives: a similarity and the logarithm of their sum above it (see
// SoftmaxSum::save), mean similarity and sum of similarities.
template <class T>
struct Stats {
  T* data;
  int64_t n;
  Stats(const Tensor& tensor, int64_t batch)
      : data(static_cast<T*>(tensor.data_ptr()) + batch * 4 * tensor.size(2)), n(tensor.size(2)) {}
  T& similarity(int64_t i) const { return data[i]; }
  T& log_sum(int64_t i) const { return data[n + i]; }
  T& mean(int64_t i) const { return data[2 * n + i]; }
  T& plain(int64_t i) const { return data[3 * n + i]; }
};

template <class T>
std::vector<Rows<T>> rows_of(const std::vector<Tensor>& bank, bool squares) {
  std::vector<Rows<T>> rows;
  for (const auto& tensor : bank) rows.push_back(make_rows<T>(torch::stable::contiguous(tensor), 0, false, squares));
  return rows;
}

// Width of the rows that a forward pass keeps for its backward pass: similarities (n, m) of queries and keys or, where
// only a bank has negatives, the softmax-weighted means (n, d) of its rows (cpu/products/bank_means.h).
int64_t saved_width(const Options& options, int64_t m, int64_t d) { return options.in_batch ? m : d; }

template <class T>
void forward(const Problem<T>& problem, const Logits<T>& logits, T* loss, const Stats<T> (&stats)[2], T* saved) {
  const Options& options = problem.options;
  std::vector<SoftmaxSum> sums[2];
  for (const Side side : options.sides()) sums[side].resize(stats[side].n);
  problem.for_blocks([&](const Block<T>& block, Side rows, std::optional<Side> columns) {
    const bool in_batch = &block.x == &problem.query && &block.y == &problem.key;
    if (saved && !options.in_batch) return add_sums_and_rows(block, logits, sums[rows].data(), saved);
    add_sums(block, logits, sums[rows].data(), columns ? sums[*columns].data() : nullptr,
             in_batch ? saved : static_cast<T*>(nullptr));
  });
  const double eps = options.label_smoothing, share = eps / problem.candidates();
  for (int64_t i = 0; i < problem.query.n; ++i) {
    double total = 0;
    for (const Side side : options.sides()) {
      const int64_t r = problem.row_of(side, i);
      const SoftmaxSum& sum = sums[side][r];
      const double u = problem.positive[i];
      // 0 times what is not finite is NaN: an infinity stays visible where the exponential swallowed it.
      total += softplus(sum.log_sum_above(logits.scale, u)) + 0 * (sum.mean() + u);
      if (eps > 0) total += logits.scale * (eps * u - share * (sum.plain + u));
      sum.save(logits.scale, &stats[side].similarity(r), &stats[side].log_sum(r));
      stats[side].mean(r) = sum.mean();
      stats[side].plain(r) = sum.plain;
    }
    loss[i] = options.symmetric ? total / 2 : total;
    for (int64_t p = 0; p < problem.query.d && saved && !options.in_batch; ++p)
      saved[i * problem.query.d + p] /= sums[kQueries][i].sum == 0 ? T(1) : T(sums[kQueries][i].sum);
  }
}

template <class T>
double backward(const Problem<T>& problem, const Logits<T>& logits, const T* grad, const Stats<T> (&stats)[2],
                const T* saved, T* dquery, T* dkey) {
  const Options& options = problem.options;
  const double eps = options.label_smoothing, share = eps / problem.candidates();
  std::vector<SoftmaxGradient<T>> gradient;
  for (const Side side : options.sides()) gradient.emplace_back(logits, stats[side].n);
  std::vector<double> pull(problem.query.n);  // derivative by the positive's logit
  double dscale = 0;
  for (int64_t i = 0; i < problem.query.n; ++i) {
    for (const Side side : options.sides()) {
      const int64_t r = problem.row_of(side, i);
      const double g = options.symmetric ? grad[i] / 2.0 : grad[i], u = problem.positive[i];
      const double similarity = stats[side].similarity(r), log_sum = stats[side].log_sum(r);
      const double weight = g * sigmoid(logits.scale * (similarity - u) + log_sum);
      gradient[side].set(r, similarity, log_sum, weight, g * share);
      pull[i] += -weight + g * (eps - share);
      dscale += weight * (stats[side].mean(r) - u);
      if (eps > 0) dscale += g * (eps * u - share * (stats[side].plain(r) + u));
    }
  }
  const bool means = saved && !options.in_batch;
  for (int64_t i = 0; i < problem.query.n && means && dquery; ++i) {
    const T weight = -logits.scale * pull[i];
    for (int64_t p = i * problem.query.d; p < (i + 1) * problem.query.d; ++p) dquery[p] += weight * saved[p];
  }
  problem.for_blocks([&](const Block<T>& block, Side rows, std::optional<Side> columns) {
    if (means) return;
    T* dx = rows == kQueries ? dquery : dkey;
    const bool in_batch = &block.x == &problem.query && &block.y == &problem.key;
    T* dy = in_batch ? dkey : nullptr;
    if (dx || dy)
      add_gradients(block, logits, gradient[rows], columns ? &gradient[*columns] : nullptr, in_batch ? saved : nullptr,
                    dx, dy);
  });
  const bool distances = options.similarity != Similarity::kDot;
  for (int64_t i = 0; i < problem.query.n; ++i) {
    const int64_t j = problem.key_of_query[i], d = problem.query.d;
    const T weight = logits.scale * pull[i] * problem.positive_weight(i);
    const T *q = problem.query.row(i), *k = problem.key.row(j);
    for (int64_t p = 0; p < d && dquery; ++p) dquery[i * d + p] += weight * (distances ? k[p] - q[p] : k[p]);
    for (int64_t p = 0; p < d && dkey; ++p) dkey[j * d + p] += weight * (distances ? q[p] - k[p] : q[p]);
  }
  return dscale;
}

using Forward = std::tuple<Tensor, Tensor, Tensor, Tensor>;

template <class T>
Forward run_forward(const Tensor& query, const Tensor& key, const Tensor& logit_scale, const std::vector<Tensor>& bank,
                    const std::optional<Tensor>& target, const Options& options, bool cache) {
  const int64_t b = query.size(0), n = query.size(1), m = key.size(1);
  const double scale = checked_scale(logit_scale);
  Tensor loss = torch::stable::new_empty(logit_scale, {b, n});
  Tensor row_stats = torch::stable::new_empty(logit_scale, {b, 4, n});
  Tensor col_stats = torch::stable::new_empty(logit_scale, {b, 4, options.symmetric ? m : 0});
  const int64_t width = saved_width(options, m, query.size(2));
  Tensor saved =
      cache ? torch::stable::new_empty(logit_scale, {b, n, width}) : torch::stable::new_empty(logit_scale, {0});
  advise_huge_pages(saved.data_ptr(), saved.numel() * int64_t(sizeof(T)));
  const bool means = cache && !options.in_batch;
  if (means) torch::stable::zero_(saved);
  const auto banks = rows_of<T>(bank, !means);
  run_tasks(b, [&](int64_t batch) {
    const Problem<T> problem(query, key, banks, target, batch, options);
    // Banks of which no norms were measured may be of any length.
    const Logits<T> logits(options.similarity, scale, means ? kAnyReach : problem.reach());
    const Stats<T> stats[2] = {{row_stats, batch}, {col_stats, batch}};
    forward(problem, logits, static_cast<T*>(loss.data_ptr()) + batch * n, stats,
            cache ? static_cast<T*>(saved.data_ptr()) + batch * n * width : nullptr);
  });
  return {loss, row_stats, col_stats, saved};
}

template <class T>
std::tuple<Tensor, Tensor, Tensor> run_backward(const Tensor& grad, const Tensor& query, const Tensor& key,
                                                const Tensor& logit_scale, const std::vector<Tensor>& bank,
                                                const std::optional<Tensor>& target, const Options& options,
                                                const Tensor& row_stats, const Tensor& col_stats, const Tensor& saved,
                                                bool need_query, bool need_key) {
  const int64_t b = query.size(0), n = query.size(1), m = key.size(1), d = query.size(2);
  const double scale = checked_scale(logit_scale);
  Tensor dquery = need_query ? torch::stable::new_empty(query, {b, n, d}) : torch::stable::new_empty(query, {0});
  Tensor dkey = need_key ? torch::stable::new_empty(key, {b, m, d}) : torch::stable::new_empty(key, {0});
  Tensor dscale = torch::stable::new_empty(logit_scale, {});
  const auto banks = rows_of<T>(bank, saved.numel() == 0 || options.in_batch);
  std::vector<double> scale_gradients(b);
  run_tasks(b, [&](int64_t batch) {
    const Problem<T> problem(query, key, banks, target, batch, options);
    const Logits<T> logits(options.similarity, scale, problem.reach());
    const Stats<T> stats[2] = {{row_stats, batch}, {col_stats, batch}};
    std::optional<RowGradient<T>> dq, dk;
    if (need_query) dq.emplace(dquery, batch, n, d);
    if (need_key) dk.emplace(dkey, batch, m, d);
    scale_gradients[batch] = backward(
        problem, logits, static_cast<const T*>(grad.data_ptr()) + batch * n, stats,
        saved.numel() > 0 ? static_cast<const T*>(saved.data_ptr()) + batch * n * saved_width(options, m, d) : nullptr,
        need_query ? dq->data() : nullptr, need_key ? dk->data() : nullptr);
    if (need_query) dq->finish(problem.query);
    if (need_key) dk->finish(problem.key);
  });
  *static_cast<T*>(dscale.data_ptr()) = std::accumulate(scale_gradients.begin(), scale_gradients.end(), 0.0);
  return {dquery, dkey, dscale};
}

Forward info_nce_fwd(Tensor query, Tensor key, Tensor logit_scale, std::vector<Tensor> bank,
                     std::optional<Tensor> target, bool in_batch, bool within, std::string similarity, bool symmetric,
                     bool normalize, double label_smoothing, bool cache) {
  const Options options{.in_batch = in_batch,
                        .within = within,
                        .similarity = parse_similarity(similarity),
                        .symmetric = symmetric,
                        .normalize = normalize,
                        .label_smoothing = label_smoothing};
  return (is_double(query) ? run_forward<double> : run_forward<float>)(contiguous(query), contiguous(key), logit_scale,
                                                                       bank, contiguous_if_any(target), options, cache);
}

std::tuple<Tensor, Tensor, Tensor> info_nce_bwd(Tensor grad_loss, Tensor query, Tensor key, Tensor logit_scale,
                                                std::vector<Tensor> bank, std::optional<Tensor> target, bool in_batch,
                                                bool within, std::string similarity, bool symmetric, bool normalize,
                                                double label_smoothing, Tensor row_stats, Tensor col_stats,
                                                Tensor saved, bool need_query, bool need_key) {
  const Options options{.in_batch = in_batch,
                        .within = within,
                        .similarity = parse_similarity(similarity),
                        .symmetric = symmetric,
                        .normalize = normalize,
                        .label_smoothing = label_smoothing};
  return (is_double(query) ? run_backward<double> : run_backward<float>)(contiguous(grad_loss), contiguous(query),
                                                                         contiguous(key), logit_scale, bank,
                                                                         contiguous_if_any(target), options, row_stats,
                                                                         col_stats, saved, need_query, need_key);
}

}  // namespace
}  // namespace cmx

STABLE_TORCH_LIBRARY_IMPL(cmx_fast, CPU, m) {
  m.impl("info_nce_fwd", TORCH_BOX(&cmx::info_nce_fwd));
  m.impl("info_nce_bwd", TORCH_BOX(&cmx::info_nce_bwd));
}
