#include "cpu/products/bank_means.h"

#include <algorithm>
#include <cmath>

#include "common/parallel.h"
#include "cpu/products/products.h"
#include "cpu/simd/kernels.h"
#include "cpu/tensors/buffer.h"

namespace cmx {
namespace {

// Bank rows of a task: packed, and with the scores of a tile, they lie in the second-level cache. As many as there are
// queries at least, for these are packed once per task.
constexpr int64_t kRowsPerTask = 5 * kTileCols;
constexpr int64_t kPartialBytes = 32 << 20;

// A task: some rows of the bank against all queries.
template <class T>
class Task {
 public:
  Task(const Block<T>& block, const Logits<T>& logits) : x_(block.x), y_(block.y), logits_(logits) {
    products_ = make_products<T>(x_, y_, {.scores = true, .product = true, .transposed = false, .cancelling = false});
    products_->set_panel(0, x_.n);
  }

  // The sums' shifts are the task's own.
  void run(SoftmaxSum* sums, T* weighted) {
    std::fill_n(weighted, x_.n * x_.d, T(0));
    for (int64_t i = 0; i < x_.n; i += kTileRows)
      run_tile(i, std::min(kTileRows, x_.n - i), sums + i, weighted + i * x_.d);
  }

 private:
  void run_tile(int64_t i, int64_t rows, SoftmaxSum* sums, T* weighted) {
    const Kernels<T>& kernels = best_kernels<T>();
    const int64_t m = y_.n, lds = ceil_div(m, kTileCols) * kTileCols + kPadding;
    thread_local Buffer<T> scores, exponentials;
    scores.resize(kTileRows * lds);
    exponentials.resize(kTileRows * kTileCols);
    for (int64_t j = 0; j < m; j += kTileCols)
      products_->scores(i, rows, j, std::min(kTileCols, m - j), scores.data() + j, lds);
    T shift[kTileRows], ones[kTileRows], zeros[kTileRows], sum[3 * kTileRows];
    std::fill_n(ones, kTileRows, T(1));
    std::fill_n(zeros, kTileRows, T(0));
    const TileMask all = {rows, m, nullptr, nullptr};
    kernels.maxima(all, scores.data(), lds, shift, nullptr);
    for (int64_t r = 0; r < rows; ++r) shift[r] = softmax_shift(logits_, shift[r]);
    kernels.sums(all,
                 {logits_.khi, logits_.klo, logits_.large, shift, nullptr, sum, sum + kTileRows, sum + 2 * kTileRows,
                  nullptr, nullptr, nullptr},
                 scores.data(), lds);
    for (int64_t r = 0; r < rows; ++r)
      sums[r].add_tile(logits_, shift[r], sum[r], sum[kTileRows + r], sum[2 * kTileRows + r]);
    TileWeights<T> weights = {logits_.khi, logits_.klo, logits_.large, shift, ones, zeros};
    for (int64_t j = 0; j < m; j += kTileCols) {
      const int64_t cols = std::min(kTileCols, m - j);
      kernels.weights({rows, cols, nullptr, nullptr}, weights, scores.data() + j, lds, exponentials.data(), kTileCols);
      products_->add_product(rows, j, cols, exponentials.data(), kTileCols, weighted);
    }
  }

  const Rows<T>&x_, &y_;
  const Logits<T>& logits_;
  std::unique_ptr<Products<T>> products_;
};

}  // namespace

template <class T>
void add_sums_and_rows(const Block<T>& block, const Logits<T>& logits, SoftmaxSum* sums, T* weighted) {
  const int64_t n = block.x.n, m = block.y.n, d = block.x.d;
  if (n == 0 || m == 0) return;
  const int64_t most = std::max<int64_t>(1, kPartialBytes / (n * d * int64_t(sizeof(T))));
  const int64_t step = ceil_div(std::max({kRowsPerTask, n, ceil_div(m, most)}), kTileCols) * kTileCols,
                tasks = ceil_div(m, step);
  std::vector<SoftmaxSum> task_sums(tasks * n);
  Buffer<T> rows(tasks * n * d);
  run_tasks(tasks, [&](int64_t task) {
    Rows<T> y;
    y.data = block.y.row(task * step), y.n = std::min(step, m - task * step), y.d = d, y.bfloat16 = block.y.bfloat16;
    Task<T>(Block<T>{block.x, y}, logits).run(task_sums.data() + task * n, rows.data() + task * n * d);
  });
  // In the order of the tasks, brought to the larger top.
  run_tasks(n, [&](int64_t i) {
    for (int64_t task = 0; task < tasks; ++task) {
      const SoftmaxSum& part = task_sums[task * n + i];
      const double before = sums[i].top;
      sums[i].add(logits.scale, part.top, part.sum, part.weighted, part.plain);
      const auto share = [&](double top) { return T(std::exp(logits.scale * (top - sums[i].top))); };
      const T old = before == sums[i].top ? T(1) : share(before),
              added = part.top == sums[i].top ? T(1) : share(part.top);
      const T* row = rows.data() + (task * n + i) * d;
      for (int64_t p = 0; p < d; ++p) weighted[i * d + p] = old * weighted[i * d + p] + added * row[p];
    }
  });
}

template void add_sums_and_rows(const Block<float>&, const Logits<float>&, SoftmaxSum*, float*);
template void add_sums_and_rows(const Block<double>&, const Logits<double>&, SoftmaxSum*, double*);

}  // namespace cmx
