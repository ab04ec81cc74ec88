// One block of a softmax whose other blocks lie in other processes, on the CPU: cpu/products/block.h with a block of
// the caller's own. Forward leaves per row what SoftmaxSum::save keeps, a similarity and the logarithm of the sum above
// it, which keep their digits where a log-sum-exp has none; the processes' statistics meet in double
// (cmx_fast/ops/softmax_block.py). Backward takes the whole softmax and adds the block's gradients in the working
// precision, not in the inputs', because the caller is yet to sum those of the other blocks.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <optional>
#include <string>
#include <tuple>
#include <vector>

#include "common/checks.h"
#include "cpu/products/block.h"

namespace cmx {
namespace {

// The inputs in the working precision; without y the columns are the rows, each without itself.
template <class T>
struct Problem {
  Rows<T> x;
  std::optional<Rows<T>> y;
  std::optional<Tensor> excluded;
  Logits<T> logits;

  Problem(const Tensor& rows, const std::optional<Tensor>& columns, const Tensor& logit_scale,
          const std::optional<Tensor>& excluded_columns, const std::string& similarity)
      : x(make_rows<T>(contiguous(rows), 0, false)),
        y(columns ? std::optional(make_rows<T>(contiguous(*columns), 0, false)) : std::nullopt),
        logits(make_logits(parse_similarity(similarity), checked_scale(logit_scale))) {
    if (excluded_columns) excluded = contiguous(*excluded_columns);
  }

  Logits<T> make_logits(Similarity similarity, double scale) const {
    return {similarity, scale, reach(similarity, y ? std::max(x.max_norm, y->max_norm) : x.max_norm)};
  }
  bool self() const { return !y; }
  // Class members refer to each other's rows: made where it is used.
  Block<T> block() const {
    const auto* excluded_columns = excluded ? static_cast<const int64_t*>(excluded->data_ptr()) : nullptr;
    return {x, y ? *y : x, excluded_columns, self()};
  }
};

template <class T>
Tensor run_forward(const Problem<T>& problem, const Tensor& logit_scale) {
  const int64_t n = problem.x.n;
  std::vector<SoftmaxSum> sums(n);
  add_sums(problem.block(), problem.logits, sums.data(), problem.self() ? sums.data() : nullptr,
           static_cast<T*>(nullptr));
  Tensor statistics = torch::stable::new_empty(logit_scale, {4, n});
  auto* to = static_cast<T*>(statistics.data_ptr());
  for (int64_t i = 0; i < n; ++i) {
    sums[i].save(problem.logits.scale, to + i, to + n + i);
    to[2 * n + i] = sums[i].mean();
    to[3 * n + i] = sums[i].plain;
  }
  return statistics;
}

// From (3, n): of every row a similarity, the softmax's weight over its sum above that, and the share.
template <class T>
SoftmaxGradient<T> gradient_of(const Tensor& softmax, const Logits<T>& logits) {
  const int64_t n = softmax.size(1);
  const auto* from = static_cast<const T*>(softmax.data_ptr());
  SoftmaxGradient<T> gradient(logits, n);
  for (int64_t i = 0; i < n; ++i) gradient.set(i, from[i], 0, from[n + i], from[2 * n + i]);
  return gradient;
}

template <class T>
std::tuple<Tensor, Tensor> run_backward(const Problem<T>& problem, const Tensor& logit_scale, const Tensor& row_softmax,
                                        const std::optional<Tensor>& column_softmax, bool need_x, bool need_y) {
  const auto rows = gradient_of<T>(contiguous(row_softmax), problem.logits);
  std::optional<SoftmaxGradient<T>> columns;
  if (column_softmax) columns = gradient_of<T>(contiguous(*column_softmax), problem.logits);
  // Not in the inputs' dtype: the blocks' gradients are yet to be summed.
  const auto gradient_like = [&](bool needed, const Rows<T>* rows) {
    return needed ? torch::stable::new_empty(logit_scale, {rows->n, rows->d})
                  : torch::stable::new_empty(logit_scale, {0});
  };
  const Tensor dx = gradient_like(need_x, &problem.x), dy = gradient_like(need_y, problem.y ? &*problem.y : nullptr);
  std::optional<RowGradient<T>> x_gradient, y_gradient;
  if (need_x) x_gradient.emplace(dx, 0, problem.x.n, problem.x.d);
  if (need_y) y_gradient.emplace(dy, 0, problem.y->n, problem.y->d);
  add_gradients(problem.block(), problem.logits, rows,
                problem.self() ? &rows
                : columns      ? &*columns
                               : nullptr,
                static_cast<const T*>(nullptr), x_gradient ? x_gradient->data() : nullptr,
                y_gradient ? y_gradient->data() : nullptr);
  if (x_gradient) x_gradient->finish(problem.x);
  if (y_gradient) y_gradient->finish(*problem.y);
  return {dx, dy};
}

Tensor softmax_block_fwd(Tensor x, std::optional<Tensor> y, Tensor logit_scale, std::optional<Tensor> excluded,
                         std::string similarity) {
  if (is_double(x)) return run_forward(Problem<double>(x, y, logit_scale, excluded, similarity), logit_scale);
  return run_forward(Problem<float>(x, y, logit_scale, excluded, similarity), logit_scale);
}

std::tuple<Tensor, Tensor> softmax_block_bwd(Tensor x, std::optional<Tensor> y, Tensor logit_scale,
                                             std::optional<Tensor> excluded, std::string similarity, Tensor row_softmax,
                                             std::optional<Tensor> column_softmax, bool need_x, bool need_y) {
  const auto run = [&](const auto& problem) {
    return run_backward(problem, logit_scale, row_softmax, column_softmax, need_x, need_y);
  };
  return is_double(x) ? run(Problem<double>(x, y, logit_scale, excluded, similarity))
                      : run(Problem<float>(x, y, logit_scale, excluded, similarity));
}

}  // namespace
}  // namespace cmx

STABLE_TORCH_LIBRARY_IMPL(cmx_fast, CPU, m) {
  m.impl("softmax_block_fwd", TORCH_BOX(&cmx::softmax_block_fwd));
  m.impl("softmax_block_bwd", TORCH_BOX(&cmx::softmax_block_bwd));
}
