// Unrolled ISTA on the CPU in Gram form.
//
// Algorithm: with r = eta (D^T (x - D a) - lambda) a step is a' = max(0, a + r), and r' = r - eta (a' - a) D^T D: a
// product with a small symmetric matrix whose rounding shrinks as the codes settle. Backward makes the steps again,
// keeping the codes of each, and walks back through them: a gradient passes where the code is positive.
//
// Tile and owner: a task owns a tile of 64 rows, which goes through all steps while its codes and r, (64, k) each, lie
// in the cache. Backward, a task owns some tiles and sums of its own over them, by D^T D (k, k) and by D (c, k), in
// double; these are added in the order of the tasks, whose number depends on the problem alone.
//
// Why it is right: the first r is made in double, since its rounding would be added once per step. D^T D is summed in
// double and rounded once. Memory: forward a few (64, k) and (64, c) per thread; backward the codes of all steps of one
// tile per thread, and at most 64 MiB of sums or one task's.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <memory>
#include <tuple>
#include <vector>

#include "common/checks.h"
#include "common/parallel.h"
#include "cpu/products/search.h"
#include "cpu/simd/kernels.h"
#include "cpu/tensors/buffer.h"
#include "cpu/tensors/rows.h"
#include "cpu/tiles/feature_tiles.h"

namespace cmx {
namespace {

constexpr int64_t kRowsPerTile = 64;
constexpr int64_t kTilesPerTask = 32;
constexpr int64_t kSumsPerTask = 2048;
constexpr int64_t kPartialBytes = 64 << 20;

template <class T>
T scalar(const Tensor& value) {
  return *static_cast<const T*>(value.data_ptr());
}

// A matrix that rows are multiplied by: rows (n, inner) . matrix (inner, outer).
template <class T>
class RightFactor {
 public:
  RightFactor(const T* matrix, int64_t inner, int64_t outer)
      : inner_(inner), outer_(outer), packed_(ceil_div(outer, kernels_.panel) * kernels_.panel * inner) {
    kernels_.pack_rows(matrix, inner, outer, inner, packed_.data());
  }
  // out (n, outer) += rows (n, inner) . matrix
  void add_product(const T* rows, int64_t n, T* out) const {
    kernels_.add_product(n, inner_, outer_, rows, inner_, packed_.data(), inner_, out);
  }

 private:
  const Kernels<T>& kernels_ = best_kernels<T>();
  const int64_t inner_, outer_;
  Buffer<T> packed_;
};

// The dictionary (c, k) as the steps use it.
template <class T>
struct Steps {
  int64_t c, k, count;
  double step_size, penalty;
  Buffer<double> columns;  // eta D^T (k, c)
  // By eta D, in double: its rounding would be added once per step.
  std::unique_ptr<RightFactor<double>> project;
  std::unique_ptr<RightFactor<T>> advance;  // by -eta D^T D

  Steps(const Tensor& dictionary, const Tensor& step_size, double lam, int64_t count)
      : c(dictionary.size(0)),
        k(dictionary.size(1)),
        count(count),
        step_size(scalar<T>(step_size)),
        penalty(this->step_size * lam),
        columns(k * c) {
    const T* d = static_cast<const T*>(dictionary.data_ptr());
    const SearchKernels<double>& kernels = best_search_kernels<double>();
    Buffer<double> scaled(c * k);
    std::copy_n(d, c * k, scaled.data());
    kernels.transpose(scaled.data(), k, k, c, columns.data(), c);
    Buffer<T> transition(k * k);
    run_tasks(k, [&](int64_t i) {
      for (int64_t j = 0; j < k; ++j)
        transition.data()[i * k + j] = -this->step_size * dot(columns.data() + i * c, columns.data() + j * c, c);
    });
    advance = std::make_unique<RightFactor<T>>(transition.data(), k, k);
    kernels.scale(scaled.data(), this->step_size, c * k);
    project = std::make_unique<RightFactor<double>>(scaled.data(), c, k);
    kernels.scale(columns.data(), this->step_size, k * c);
  }

  // codes (count, n, k) after each step, or with `last` only the last ones (n, k), of the rows x (n, c).
  // work (2, n, k): r and the codes' change.
  void run(const double* x, int64_t n, bool last, T* work, T* codes) const {
    const SearchKernels<T>& kernels = best_search_kernels<T>();
    thread_local Buffer<double> projected;
    projected.resize(kRowsPerTile * k);
    std::fill_n(projected.data(), n * k, -penalty);
    project->add_product(x, n, projected.data());
    T *const r = work, *const change = work + n * k;
    std::copy_n(projected.data(), n * k, r);
    std::fill_n(codes, n * k, T(0));
    kernels.step_codes(codes, r, n * k, codes, change);
    for (int64_t t = 1; t < count; ++t) {
      advance->add_product(change, n, r);
      T* const next = last ? codes : codes + n * k;
      kernels.step_codes(codes, r, n * k, next, change);
      codes = next;
    }
  }
};

// A tile's rows in double, one after the other.
template <class T>
const double* load_wide(const FeatureTiles<T>& tiles, int64_t tile) {
  thread_local Buffer<T> loaded;
  thread_local Buffer<double> wide;
  const TileRows<T> rows = tiles.load(tile, loaded);
  wide.resize(kRowsPerTile * tiles.d());
  for (int64_t i = 0; i < tiles.rows(tile); ++i) std::copy_n(rows.row(i), tiles.d(), wide.data() + i * tiles.d());
  return wide.data();
}

template <class T>
Tensor run_forward(const Tensor& x, const Tensor& dictionary, const Tensor& step_size, double lam, int64_t count) {
  const Steps<T> steps(dictionary, step_size, lam, count);
  const int64_t tile_codes = kRowsPerTile * steps.k;
  Tensor codes = torch::stable::new_empty(x, {x.size(0), x.size(1), steps.k});
  const FeatureTiles<T> tiles(x, Normalize::kNo, kRowsPerTile), code_tiles(codes, Normalize::kNo, kRowsPerTile);
  run_tasks(tiles.count(), [&](int64_t tile) {
    thread_local Buffer<T> work;
    work.resize(3 * tile_codes);
    T* const last = work.data() + 2 * tile_codes;
    steps.run(load_wide(tiles, tile), tiles.rows(tile), true, work.data(), last);
    code_tiles.store(tile, last, codes);
  });
  return codes;
}

// Gradients of tiles of rows, and the sums over them by -eta D^T D (k, k) and by eta D (c, k), in double.
template <class T>
class Backward {
 public:
  Backward(const Steps<T>& steps, const Tensor& grad_codes, const Tensor& x, const Tensor& dx)
      : steps_(steps),
        c_(steps.c),
        k_(steps.k),
        grad_tiles_(grad_codes, Normalize::kNo, kRowsPerTile),
        tiles_(x, Normalize::kNo, kRowsPerTile),
        dx_(dx),
        rebuild_(steps.columns.data(), k_, c_) {}

  int64_t tiles() const { return tiles_.count(); }

  void run(int64_t tile, double* by_transition, double* by_scaled) const {
    thread_local Buffer<T> tile_sums, result;
    thread_local Buffer<double> wide, packed;
    const int64_t n = tiles_.rows(tile);
    const double* x = load_wide(tiles_, tile);
    tile_sums.resize(k_ * k_);
    const T* by_r = through_steps(tile, x, tile_sums.data());
    kernels_.accumulate(tile_sums.data(), 1, k_ * k_, by_transition);
    wide.resize(kRowsPerTile * (k_ + c_));
    double *const by_r_wide = wide.data(), *const into_x = by_r_wide + kRowsPerTile * k_;
    std::copy_n(by_r, n * k_, by_r_wide);
    packed.resize(ceil_div(k_, wide_products_.panel) * wide_products_.panel * kRowsPerTile);
    wide_products_.pack_rows(by_r_wide, n, k_, n, packed.data());
    wide_products_.add_transposed(c_, n, k_, x, c_, packed.data(), n, by_scaled);
    std::fill_n(into_x, n * c_, 0.0);
    rebuild_.add_product(by_r_wide, n, into_x);
    result.resize(kRowsPerTile * c_);
    std::copy_n(into_x, n * c_, result.data());
    tiles_.store(tile, result.data(), dx_);
  }

 private:
  // The gradient by the first step's r (n, k); by_transition (k, k) receives the tile's sum.
  const T* through_steps(int64_t tile, const double* x, T* by_transition) const {
    thread_local Buffer<T> upstream, work, packed;
    const int64_t n = tiles_.rows(tile), tile_codes = kRowsPerTile * k_, count = steps_.count;
    work.resize((count + 5) * tile_codes);
    packed.resize(ceil_div(k_, products_.panel) * products_.panel * kRowsPerTile);
    T *gradient = work.data() + 2 * tile_codes, *next = gradient + tile_codes;
    T *const by_r = next + tile_codes, *const codes = by_r + tile_codes;
    steps_.run(x, n, false, work.data(), codes);
    const TileRows<T> grad_rows = grad_tiles_.load(tile, upstream);
    for (int64_t i = 0; i < n; ++i) std::copy_n(grad_rows.row(i), k_, gradient + i * k_);
    std::fill_n(by_r, n * k_, T(0));
    std::fill_n(by_transition, k_ * k_, T(0));
    for (int64_t t = count - 1; t >= 0; --t) {
      kernels_.where_positive(codes + t * n * k_, n * k_, gradient, by_r);
      if (t == 0) break;
      products_.pack_rows(gradient, n, k_, n, packed.data());
      products_.add_transposed(k_, n, k_, codes + (t - 1) * n * k_, k_, packed.data(), n, by_transition);
      std::copy_n(gradient, n * k_, next);
      steps_.advance->add_product(gradient, n, next);
      std::swap(gradient, next);
    }
    return by_r;
  }

  const Kernels<T>& products_ = best_kernels<T>();
  const Kernels<double>& wide_products_ = best_kernels<double>();
  const SearchKernels<T>& kernels_ = best_search_kernels<T>();
  const Steps<T>& steps_;
  const int64_t c_, k_;
  const FeatureTiles<T> grad_tiles_, tiles_;
  const Tensor dx_;
  const RightFactor<double> rebuild_;
};

template <class T>
std::tuple<Tensor, Tensor> run_backward(const Tensor& grad_codes, const Tensor& x, const Tensor& dictionary,
                                        const Tensor& step_size, double lam, int64_t count) {
  const Steps<T> steps(dictionary, step_size, lam, count);
  const int64_t c = steps.c, k = steps.k, sums = k * k + c * k;
  const Tensor dx = empty_in_workspace(x);
  Tensor ddictionary = torch::stable::new_empty(dictionary, {c, k});
  const Backward<T> backward(steps, grad_codes, x, dx);

  // How many tasks there are, each with its own sums, depends on the problem alone: so does the result.
  const int64_t most = std::max<int64_t>(1, kPartialBytes / (sums * int64_t(sizeof(double))));
  const int64_t tasks = std::clamp<int64_t>(backward.tiles() / kTilesPerTask, 1, most);
  const int64_t per_task = ceil_div(backward.tiles(), tasks);
  Buffer<double> partial(tasks * sums);
  run_tasks(tasks, [&](int64_t task) {
    double* const task_sums = partial.data() + task * sums;
    std::fill_n(task_sums, sums, 0.0);
    for (int64_t tile = task * per_task; tile < std::min(backward.tiles(), (task + 1) * per_task); ++tile)
      backward.run(tile, task_sums, task_sums + k * k);
  });
  std::vector<double> total(sums);
  run_tasks(ceil_div(sums, kSumsPerTask), [&](int64_t task) {
    for (int64_t p = task * kSumsPerTask; p < std::min(sums, (task + 1) * kSumsPerTask); ++p)
      for (int64_t i = 0; i < tasks; ++i) total[p] += partial.data()[i * sums + p];
  });

  // dD = eta (by_scaled - D (by_transition + by_transition^T)).
  const T* d = static_cast<const T*>(dictionary.data_ptr());
  T* out = static_cast<T*>(ddictionary.data_ptr());
  run_tasks(c, [&](int64_t i) {
    for (int64_t j = 0; j < k; ++j) {
      double sum = total[k * k + i * k + j];
      for (int64_t q = 0; q < k; ++q) sum -= double(d[i * k + q]) * (total[q * k + j] + total[j * k + q]);
      out[i * k + j] = steps.step_size * sum;
    }
  });
  return {dx, ddictionary};
}

Tensor sparse_code_fwd(Tensor x, Tensor dictionary, Tensor step_size, double lam, int64_t steps) {
  return (is_double(dictionary) ? run_forward<double> : run_forward<float>)(x, contiguous(dictionary), step_size, lam,
                                                                            steps);
}

std::tuple<Tensor, Tensor> sparse_code_bwd(Tensor grad_codes, Tensor x, Tensor dictionary, Tensor step_size, double lam,
                                           int64_t steps) {
  return (is_double(dictionary) ? run_backward<double> : run_backward<float>)(grad_codes, x, contiguous(dictionary),
                                                                              step_size, lam, steps);
}

}  // namespace
}  // namespace cmx

STABLE_TORCH_LIBRARY_IMPL(cmx_fast, CPU, m) {
  m.impl("sparse_code_fwd", TORCH_BOX(&cmx::sparse_code_fwd));
  m.impl("sparse_code_bwd", TORCH_BOX(&cmx::sparse_code_bwd));
}
