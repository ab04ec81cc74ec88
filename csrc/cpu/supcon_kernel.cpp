// The supervised contrastive loss on the CPU: one block of similarities for the denominators, class sums for the
// positives, so that labels cost O(M D). A row's only positive stays out of the block, as in InfoNCE: only such a row's
// loss can vanish, and its gradient would cancel.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <cmath>
#include <optional>
#include <tuple>
#include <unordered_map>

#include "block.h"
#include "buffer.h"
#include "common/checks.h"
#include "common/parallel.h"

namespace cmx {
namespace {

constexpr int64_t kColumnsPerTask = 32;
constexpr int64_t kRowsPerTask = 64;

// Labels of any value as classes 0, 1, ... shared by rows and columns.
struct Classes {
  std::vector<int64_t> of_row, of_column, columns_in_class;

  Classes(const Tensor& rows, const Tensor& columns) {
    std::unordered_map<int64_t, int64_t> index;
    const auto number = [&](const Tensor& labels) {
      const auto* values = static_cast<const int64_t*>(labels.data_ptr());
      std::vector<int64_t> classes(labels.numel());
      for (int64_t i = 0; i < labels.numel(); ++i)
        classes[i] = index.try_emplace(values[i], index.size()).first->second;
      return classes;
    };
    of_row = number(rows);
    of_column = number(columns);
    columns_in_class.resize(index.size());
    for (const int64_t c : of_column) ++columns_in_class[c];
  }
};

// Sum of weight[i] * row i over each class, (classes, d). Every column is summed by one task in row order.
template <class T>
std::vector<double> class_sums(const Rows<T>& rows, const std::vector<int64_t>& classes, int64_t count,
                               const std::vector<double>* weight) {
  std::vector<double> sums(count * rows.d);
  run_tasks(ceil_div(rows.d, kColumnsPerTask), [&](int64_t task) {
    const int64_t begin = task * kColumnsPerTask, end = std::min(rows.d, begin + kColumnsPerTask);
    for (int64_t i = 0; i < rows.n; ++i) {
      const double w = weight ? (*weight)[i] : 1;
      for (int64_t p = begin; p < end; ++p) sums[classes[i] * rows.d + p] += w * rows.row(i)[p];
    }
  });
  return sums;
}

template <class F>
void for_rows(int64_t n, const F& f) {
  run_tasks(ceil_div(n, kRowsPerTask), [&](int64_t task) {
    for (int64_t i = task * kRowsPerTask; i < std::min(n, (task + 1) * kRowsPerTask); ++i) f(i);
  });
}

// The inputs in the working precision; without ref_features the columns are the rows.
template <class T>
struct Problem {
  Rows<T> rows;
  std::optional<Rows<T>> ref;
  Classes classes;
  std::vector<int64_t> only_positive;  // of each row, -1 where there are none or several

  Problem(const Tensor& features, const Tensor& labels, const std::optional<Tensor>& ref_features,
          const std::optional<Tensor>& ref_labels, bool normalize)
      : rows(make_rows<T>(contiguous(features), 0, normalize)),
        classes(contiguous(labels), contiguous(ref_labels ? *ref_labels : labels)) {
    if (ref_features) ref = make_rows<T>(contiguous(*ref_features), 0, normalize);
    // The sum of a class's columns less the row itself is the positive where there is one.
    std::vector<int64_t> index_sum(classes.columns_in_class.size());
    for (size_t j = 0; j < classes.of_column.size(); ++j) index_sum[classes.of_column[j]] += j;
    only_positive.assign(rows.n, -1);
    for (int64_t i = 0; i < rows.n; ++i)
      if (positives(i) == 1) only_positive[i] = index_sum[classes.of_row[i]] - (self() ? i : 0);
  }

  bool self() const { return !ref; }
  int64_t positives(int64_t i) const { return classes.columns_in_class[classes.of_row[i]] - self(); }
  const Rows<T>& columns() const { return ref ? *ref : rows; }
  Block<T> block() const { return {rows, columns(), only_positive.data(), self(), true}; }
};

using Forward = std::tuple<Tensor, Tensor, Tensor, Tensor>;

template <class T>
Forward run_forward(const Problem<T>& problem, const Tensor& logit_scale, bool cache) {
  const Rows<T>& rows = problem.rows;
  const Classes& classes = problem.classes;
  const int64_t n = rows.n, m = problem.columns().n, d = rows.d;
  const Logits<T> logits(Similarity::kDot, checked_scale(logit_scale));
  Tensor loss = torch::stable::new_empty(logit_scale, {n});
  Tensor stats = torch::stable::new_empty(logit_scale, {3, n});
  Tensor class_rows = torch::stable::new_empty(logit_scale, {n, d});
  Tensor saved = cache ? torch::stable::new_empty(logit_scale, {n, m}) : torch::stable::new_empty(logit_scale, {0});
  advise_huge_pages(saved.data_ptr(), saved.numel() * int64_t(sizeof(T)));

  std::vector<SoftmaxSum> sums(n);
  add_sums(problem.block(), logits, sums.data(), problem.self() ? sums.data() : nullptr,
           cache ? static_cast<T*>(saved.data_ptr()) : nullptr);
  const auto class_sum = class_sums<T>(problem.columns(), classes.of_column, classes.columns_in_class.size(), nullptr);
  auto* losses = static_cast<T*>(loss.data_ptr());
  auto* statistics = static_cast<T*>(stats.data_ptr());
  auto* positives = static_cast<T*>(class_rows.data_ptr());
  for_rows(n, [&](int64_t i) {
    const double* sum = class_sum.data() + classes.of_row[i] * d;
    for (int64_t p = 0; p < d; ++p) positives[i * d + p] = problem.self() ? sum[p] - rows.row(i)[p] : sum[p];
    const int64_t count = problem.positives(i);
    statistics[i] = sums[i].log_sum_exp();
    statistics[2 * n + i] = count;
    const double mean_positive = count ? dot(rows.row(i), positives + i * d, d) / count : 0;
    // Less the positives: their difference keeps digits that rounding each would lose.
    statistics[n + i] = sums[i].mean() - mean_positive;
    const double difference = sums[i].log_sum_exp() - logits.scale * mean_positive;
    // 0 * mean: what is not finite stays visible where the exponential swallowed it, or where there is no positive.
    losses[i] = (count == 0 ? 0 : count == 1 ? softplus(difference) : difference) + 0 * sums[i].mean();
  });
  return {loss, stats, class_rows, saved};
}

template <class T>
std::tuple<Tensor, Tensor, Tensor> run_backward(const Problem<T>& problem, const Tensor& grad_loss,
                                                const Tensor& features, const std::optional<Tensor>& ref_features,
                                                const Tensor& logit_scale, const Tensor& stats,
                                                const Tensor& class_rows, const Tensor& saved, bool need_features,
                                                bool need_ref) {
  const Rows<T>& rows = problem.rows;
  const Classes& classes = problem.classes;
  const int64_t n = rows.n, m = problem.columns().n, d = rows.d;
  const Logits<T> logits(Similarity::kDot, checked_scale(logit_scale));
  const auto* grad = static_cast<const T*>(grad_loss.data_ptr());
  const auto* statistics = static_cast<const T*>(stats.data_ptr());
  const auto* positives = static_cast<const T*>(class_rows.data_ptr());

  SoftmaxGradient<T> gradient(logits, n);
  std::vector<double> pull(n);  // minus the derivative by each positive's logit
  double dscale = 0;
  for (int64_t i = 0; i < n; ++i) {
    const double count = statistics[2 * n + i];
    if (count == 0) continue;
    const double similarity = dot(rows.row(i), positives + i * d, d);
    const double weight = count == 1 ? grad[i] * sigmoid(statistics[i] - logits.scale * similarity) : grad[i];
    gradient.set(i, statistics[i], weight, 0);
    pull[i] = weight / count;
    dscale += weight * statistics[n + i];
  }

  Tensor dfeatures =
      need_features ? torch::stable::new_empty(features, {n, d}) : torch::stable::new_empty(features, {0});
  Tensor dref = need_ref ? torch::stable::new_empty(*ref_features, {m, d}) : torch::stable::new_empty(features, {0});
  Tensor scale_gradient = torch::stable::new_empty(logit_scale, {});
  *static_cast<T*>(scale_gradient.data_ptr()) = dscale;
  std::optional<RowGradient<T>> drows, dcolumns;
  if (need_features) drows.emplace(dfeatures, 0, n, d);
  if (need_ref) dcolumns.emplace(dref, 0, m, d);
  if (!drows && !dcolumns) return {dfeatures, dref, scale_gradient};

  add_gradients(problem.block(), logits, gradient, problem.self() ? &gradient : nullptr,
                saved.numel() > 0 ? static_cast<const T*>(saved.data_ptr()) : nullptr, drows ? drows->data() : nullptr,
                dcolumns ? dcolumns->data() : nullptr);

  // Each positive p of i gets -pull_i x_i, i itself -pull_i times the sum of its positives.
  const auto pulled = class_sums<T>(rows, classes.of_row, classes.columns_in_class.size(), &pull);
  if (drows)
    for_rows(n, [&](int64_t i) {
      T* dx = drows->data() + i * d;
      const double* sum = pulled.data() + classes.of_row[i] * d;
      for (int64_t p = 0; p < d; ++p) {
        const double from_others = problem.self() ? sum[p] - pull[i] * rows.row(i)[p] : 0;
        dx[p] -= T(logits.scale * (pull[i] * positives[i * d + p] + from_others));
      }
    });
  if (dcolumns)
    for_rows(m, [&](int64_t j) {
      T* dy = dcolumns->data() + j * d;
      const double* sum = pulled.data() + classes.of_column[j] * d;
      for (int64_t p = 0; p < d; ++p) dy[p] -= T(logits.scale * sum[p]);
    });
  if (drows) drows->finish(rows);
  if (dcolumns) dcolumns->finish(*problem.ref);
  return {dfeatures, dref, scale_gradient};
}

Forward supcon_fwd(Tensor features, Tensor labels, Tensor logit_scale, std::optional<Tensor> ref_features,
                   std::optional<Tensor> ref_labels, bool normalize, bool cache) {
  if (is_double(features))
    return run_forward(Problem<double>(features, labels, ref_features, ref_labels, normalize), logit_scale, cache);
  return run_forward(Problem<float>(features, labels, ref_features, ref_labels, normalize), logit_scale, cache);
}

std::tuple<Tensor, Tensor, Tensor> supcon_bwd(Tensor grad_loss, Tensor features, Tensor labels, Tensor logit_scale,
                                              std::optional<Tensor> ref_features, std::optional<Tensor> ref_labels,
                                              bool normalize, Tensor stats, Tensor class_rows, Tensor saved,
                                              bool need_features, bool need_ref) {
  const auto run = [&](const auto& problem) {
    return run_backward(problem, contiguous(grad_loss), features, ref_features, logit_scale, stats, class_rows, saved,
                        need_features, need_ref);
  };
  return is_double(features) ? run(Problem<double>(features, labels, ref_features, ref_labels, normalize))
                             : run(Problem<float>(features, labels, ref_features, ref_labels, normalize));
}

}  // namespace
}  // namespace cmx

STABLE_TORCH_LIBRARY_IMPL(cmx_fast, CPU, m) {
  m.impl("supcon_fwd", TORCH_BOX(&cmx::supcon_fwd));
  m.impl("supcon_bwd", TORCH_BOX(&cmx::supcon_bwd));
}
