// The supervised contrastive loss on the CPU.
//
// Algorithm: one block of similarities for the denominators (cpu/products/block.h), class sums for the positives, so
// that labels cost O(M D). The mean logit of a row's positives is the row times the sum of its class without itself,
// over their number: no mask of M x M is made and labels never meet the tiles. Without references the block is
// symmetric and only entries above its diagonal are multiplied: Note [Symmetric blocks], cpu/products/block.h.
//
// Note [An only positive]: a row with exactly one positive has it left out of the block, as in InfoNCE, and its loss is
// log(1 + exp(L - z)). Only such a row's loss can vanish; taken from a softmax that contains it, loss and gradient
// would be differences of nearly equal numbers. With several positives the loss is at least the log of their number.
//
// Who owns what: class sums are made by tasks of 32 features, each over all rows in their order, so no sum depends on
// the threads; rows of the results by tasks of 64 rows. Why it is right: sums are double; labels of any value become
// classes by a hash map, so no label is out of range; a row without positives gets loss 0 and is never set in the
// gradient, whose exponentials are then 0. Memory: O(M D), in double for the sums.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <cmath>
#include <optional>
#include <tuple>

#include "common/checks.h"
#include "common/parallel.h"
#include "cpu/products/block.h"
#include "cpu/tensors/buffer.h"
#include "cpu/tensors/classes.h"

namespace cmx {
namespace {

constexpr int64_t kColumnsPerTask = 32;
constexpr int64_t kRowsPerTask = 64;

Classes classes_of(const Tensor& rows, const Tensor& columns) {
  return {static_cast<const int64_t*>(rows.data_ptr()), rows.numel(), static_cast<const int64_t*>(columns.data_ptr()),
          columns.numel()};
}

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

// store(i, p, sum): feature p of the same sum over the *other* rows of row i's class, for every row and feature. It
// adds those before row i and those behind it; the class's sum less the row would leave nothing of a short row beside a
// long one.
template <class T, class F>
void sums_of_others(const Rows<T>& rows, const std::vector<int64_t>& classes, int64_t count,
                    const std::vector<double>* weight, const F& store) {
  run_tasks(ceil_div(rows.d, kColumnsPerTask), [&](int64_t task) {
    const int64_t begin = task * kColumnsPerTask, width = std::min(rows.d - begin, kColumnsPerTask);
    std::vector<double> before(rows.n * width), passed(count * width);
    const auto pass = [&](int64_t i, const auto& use) {
      double* sum = passed.data() + classes[i] * width;
      const double w = weight ? (*weight)[i] : 1;
      for (int64_t p = 0; p < width; ++p) {
        use(before[i * width + p], sum[p], p);
        sum[p] += w * rows.row(i)[begin + p];
      }
    };
    for (int64_t i = 0; i < rows.n; ++i) pass(i, [](double& kept, double sum, int64_t) { kept = sum; });
    std::fill(passed.begin(), passed.end(), 0.0);
    for (int64_t i = rows.n - 1; i >= 0; --i)
      pass(i, [&](double kept, double sum, int64_t p) { store(i, begin + p, kept + sum); });
  });
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
  std::vector<int64_t> columns_in_class;
  std::vector<int64_t> only_positive;  // of each row, -1 where there are none or several: Note [An only positive]

  Problem(const Tensor& features, const Tensor& labels, const std::optional<Tensor>& ref_features,
          const std::optional<Tensor>& ref_labels, bool normalize)
      : rows(make_rows<T>(contiguous(features), 0, normalize)),
        classes(classes_of(contiguous(labels), contiguous(ref_labels ? *ref_labels : labels))),
        columns_in_class(classes.count) {
    if (ref_features) ref = make_rows<T>(contiguous(*ref_features), 0, normalize);
    // The sum of a class's columns less the row itself is the positive where there is one.
    std::vector<int64_t> index_sum(classes.count);
    for (const int64_t c : classes.of_column) ++columns_in_class[c];
    for (size_t j = 0; j < classes.of_column.size(); ++j) index_sum[classes.of_column[j]] += j;
    only_positive.assign(rows.n, -1);
    for (int64_t i = 0; i < rows.n; ++i)
      if (positives(i) == 1) only_positive[i] = index_sum[classes.of_row[i]] - (self() ? i : 0);
  }

  bool self() const { return !ref; }
  int64_t positives(int64_t i) const { return columns_in_class[classes.of_row[i]] - self(); }
  const Rows<T>& columns() const { return ref ? *ref : rows; }
  Logits<T> logits(const Tensor& scale) const {
    const double longest = std::max(rows.max_norm, columns().max_norm);
    return {Similarity::kDot, checked_scale(scale), reach(Similarity::kDot, longest)};
  }
  Block<T> block() const { return {rows, columns(), only_positive.data(), self(), true}; }
};

using Forward = std::tuple<Tensor, Tensor, Tensor, Tensor>;

template <class T>
Forward run_forward(const Problem<T>& problem, const Tensor& logit_scale, bool cache) {
  const Rows<T>& rows = problem.rows;
  const Classes& classes = problem.classes;
  const int64_t n = rows.n, m = problem.columns().n, d = rows.d;
  const Logits<T> logits = problem.logits(logit_scale);
  Tensor loss = torch::stable::new_empty(logit_scale, {n});
  Tensor stats = torch::stable::new_empty(logit_scale, {4, n});
  Tensor class_rows = torch::stable::new_empty(logit_scale, {n, d});
  Tensor saved = cache ? torch::stable::new_empty(logit_scale, {n, m}) : torch::stable::new_empty(logit_scale, {0});
  advise_huge_pages(saved.data_ptr(), saved.numel() * int64_t(sizeof(T)));

  std::vector<SoftmaxSum> sums(n);
  add_sums(problem.block(), logits, sums.data(), problem.self() ? sums.data() : nullptr,
           cache ? static_cast<T*>(saved.data_ptr()) : nullptr);
  auto* losses = static_cast<T*>(loss.data_ptr());
  auto* statistics = static_cast<T*>(stats.data_ptr());
  auto* positives = static_cast<T*>(class_rows.data_ptr());
  const int64_t number = classes.count;
  if (problem.self()) {
    sums_of_others(rows, classes.of_row, number, nullptr,
                   [&](int64_t i, int64_t p, double sum) { positives[i * d + p] = sum; });
  } else {
    const auto sums_of_classes = class_sums<T>(problem.columns(), classes.of_column, number, nullptr);
    for_rows(n, [&](int64_t i) { std::copy_n(sums_of_classes.data() + classes.of_row[i] * d, d, positives + i * d); });
  }
  for_rows(n, [&](int64_t i) {
    const int64_t count = problem.positives(i);
    sums[i].save(logits.scale, &statistics[i], &statistics[n + i]);
    statistics[3 * n + i] = count;
    const double mean_positive = count ? dot(rows.row(i), positives + i * d, d) / count : 0;
    // Less the positives: their difference keeps digits that rounding each would lose.
    statistics[2 * n + i] = sums[i].mean() - mean_positive;
    const double difference = sums[i].log_sum_above(logits.scale, mean_positive);
    // 0 times what is not finite is NaN: it stays visible where the exponential swallowed it, or without a positive.
    losses[i] = (count == 0   ? 0
                 : count == 1 ? softplus(difference)
                              : difference) +
                0 * (sums[i].mean() + mean_positive);
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
  const Logits<T> logits = problem.logits(logit_scale);
  const auto* grad = static_cast<const T*>(grad_loss.data_ptr());
  const auto* statistics = static_cast<const T*>(stats.data_ptr());
  const auto* positives = static_cast<const T*>(class_rows.data_ptr());

  SoftmaxGradient<T> gradient(logits, n);
  std::vector<double> pull(n);  // minus the derivative by each positive's logit
  double dscale = 0;
  for (int64_t i = 0; i < n; ++i) {
    const double count = statistics[3 * n + i], log_sum = statistics[n + i];
    if (count == 0) continue;
    const double similarity = dot(rows.row(i), positives + i * d, d);
    const double weight =
        count == 1 ? grad[i] * sigmoid(logits.scale * (statistics[i] - similarity) + log_sum) : grad[i];
    gradient.set(i, statistics[i], log_sum, weight, 0);
    pull[i] = weight / count;
    dscale += weight * statistics[2 * n + i];
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
  const int64_t number = classes.count;
  const auto add_pull = [&](int64_t i, int64_t p, double from_others) {
    drows->data()[i * d + p] -= T(logits.scale * (pull[i] * positives[i * d + p] + from_others));
  };
  if (drows && problem.self()) sums_of_others(rows, classes.of_row, number, &pull, add_pull);
  if (drows && !problem.self())
    for_rows(n, [&](int64_t i) {
      for (int64_t p = 0; p < d; ++p) add_pull(i, p, 0);
    });
  if (dcolumns) {
    const auto pulled = class_sums<T>(rows, classes.of_row, number, &pull);
    for_rows(m, [&](int64_t j) {
      T* dy = dcolumns->data() + j * d;
      const double* sum = pulled.data() + classes.of_column[j] * d;
      for (int64_t p = 0; p < d; ++p) dy[p] -= T(logits.scale * sum[p]);
    });
  }
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
