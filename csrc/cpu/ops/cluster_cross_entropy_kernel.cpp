// Cross-entropy of tiles of rows against frozen centroids on the CPU.
//
// Algorithm: a row's own centroid stays out of the softmax, as in InfoNCE: loss = log(1 + exp(L - z)) with L over the
// others, whose gradient keeps its digits where the loss vanishes. Without a target the own centroid is the nearest,
// found by the screened search of k-means (cpu/products/nearest.h) while the tile lies in the cache.
//
// Tile and owner: a task owns 8 tiles of up to 64 rows, each (rows, D) without gaps, and walks the centroids in passes
// of up to 1152, whole tiles of columns, whose logits stay in the second-level cache. Backward makes the logits again
// and adds each pass's derivatives times its centroids to the tile's gradient (rows, D). Every row is one task's, so
// nothing is shared.
//
// Why it is right: targets are checked to lie in [0, K); shifts are each pass's own maxima and meet in double
// (SoftmaxSum); the own logit is a dot product in double, and its derivative, minus the weight, is put into the pass
// that holds the own centroid, whose softmax entry is masked to 0. Memory: the packed centroids and a tile per thread.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <cmath>
#include <optional>
#include <tuple>
#include <vector>

#include "common/checks.h"
#include "common/parallel.h"
#include "cpu/products/block.h"
#include "cpu/products/nearest.h"
#include "cpu/products/search.h"
#include "cpu/simd/kernels.h"
#include "cpu/tensors/buffer.h"
#include "cpu/tensors/rows.h"
#include "cpu/tiles/feature_tiles.h"

namespace cmx {
namespace {

constexpr int64_t kTilesPerTask = 8;
constexpr int64_t kCentroidsPerPass = 1024;  // a tile's logits stay in the second-level cache

// Products of a tile's rows with the centroids, a pass of them at a time, and of derivatives with the centroids.
template <class T>
class Classifier {
 public:
  Classifier(const Tensor& x, const Tensor& centroids, bool normalize, bool backward)
      : tiles(x, normalize ? Normalize::kBounded : Normalize::kNo),
        k(centroids.size(0)),
        d(centroids.size(1)),
        centroids_(static_cast<const T*>(centroids.data_ptr())),
        columns_(ceil_div(k, kernels.panel) * kernels.panel * d),
        rows_(backward ? ceil_div(d, kernels.panel) * kernels.panel * k : 0) {
    kernels.pack_columns(centroids_, k, d, columns_.data());
    if (backward) kernels.pack_rows(centroids_, k, d, k, rows_.data());
  }

  // A thread's working memory for a tile.
  struct Scratch {
    Buffer<T> loaded, rows, logits, derivatives, gradient;
    std::vector<int64_t> excluded;
    std::vector<T> row_values;
    std::vector<double> distances;
  };

  // The tile's rows with no gap between them.
  TileRows<T> load(int64_t tile, Scratch& scratch, T* inverse_norm = nullptr) const {
    return without_gaps(tiles.load(tile, scratch.loaded, inverse_norm), tiles.rows(tile), d, scratch.rows);
  }

  int64_t pass() const { return ceil_div(std::min(k, kCentroidsPerPass), kTileCols) * kTileCols; }

  // f(first centroid, mask) after scratch.logits holds those of a pass; the rows' own centroids are masked out.
  template <class F>
  void for_passes(const TileRows<T>& rows, int64_t n, const int64_t* label, Scratch& scratch, const F& f) const {
    scratch.logits.resize(tiles.rows_per_tile() * pass());
    scratch.excluded.resize(n);
    for (int64_t j = 0; j < k; j += pass()) {
      const int64_t m = std::min(pass(), k - j);
      kernels.scores(n, m, d, rows.data, columns_.data() + j * d, scratch.logits.data(), pass());
      for (int64_t i = 0; i < n; ++i) scratch.excluded[i] = label[i] - j;
      f(j, TileMask{n, m, scratch.excluded.data(), nullptr});
    }
  }

  void add_centroids(int64_t n, int64_t j, int64_t m, const T* derivatives, T* gradient) const {
    kernels.add_product(n, m, d, derivatives, pass(), rows_.data() + j * kernels.panel, k, gradient);
  }

  double logit(const T* row, int64_t label) const { return kernels.dot(row, centroids_ + label * d, d); }

  const Kernels<T>& kernels = best_kernels<T>();
  const FeatureTiles<T> tiles;
  const int64_t k, d;

 private:
  const T* centroids_;
  Buffer<T> columns_, rows_;
};

// f(tile, scratch) for every tile.
template <class T, class F>
void for_tiles(const FeatureTiles<T>& tiles, const F& f) {
  run_tasks(ceil_div(tiles.count(), kTilesPerTask), [&](int64_t task) {
    thread_local typename Classifier<T>::Scratch scratch;
    for (int64_t tile = task * kTilesPerTask; tile < std::min(tiles.count(), (task + 1) * kTilesPerTask); ++tile)
      f(tile, scratch);
  });
}

void check_labels(const Tensor& labels, int64_t k) {
  const auto* values = static_cast<const int64_t*>(labels.data_ptr());
  const bool valid = std::all_of(values, values + labels.numel(), [&](int64_t z) { return z >= 0 && z < k; });
  STD_TORCH_CHECK(valid, "target must lie in 0 to ", k - 1);
}

template <class T>
std::tuple<Tensor, Tensor, Tensor> run_forward(const Tensor& x, const Tensor& centroids,
                                               const std::optional<Tensor>& target, bool normalize) {
  const Classifier<T> classifier(x, centroids, normalize, false);
  const Logits<T> logits(Similarity::kDot, 1, kAnyReach);
  Tensor losses = torch::stable::new_empty(centroids, {x.size(0), x.size(1)});
  Tensor softmax = torch::stable::new_empty(centroids, {2, x.size(0), x.size(1)});
  Tensor labels =
      target ? torch::stable::clone(*target) : torch::stable::new_empty(x, {x.size(0), x.size(1)}, ScalarType::Long);
  std::optional<NearestCentroids<T>> nearest;
  if (target)
    check_labels(labels, classifier.k);
  else
    nearest.emplace(centroids, false);
  for_tiles(classifier.tiles, [&](int64_t tile, typename Classifier<T>::Scratch& scratch) {
    thread_local typename NearestCentroids<T>::Scratch search;
    const int64_t begin = classifier.tiles.begin(tile), n = classifier.tiles.rows(tile);
    const TileRows<T> rows = classifier.load(tile, scratch);
    auto* label = static_cast<int64_t*>(labels.data_ptr()) + begin;
    scratch.row_values.resize(4 * n);
    T *shift = scratch.row_values.data(), *sum = shift + n;
    if (nearest) {
      scratch.distances.resize(n);
      nearest->find(rows, n, search, label, scratch.distances.data());
    }
    std::vector<SoftmaxSum> others(n);
    classifier.for_passes(rows, n, label, scratch, [&](int64_t, const TileMask& mask) {
      const T* u = scratch.logits.data();
      classifier.kernels.maxima(mask, u, classifier.pass(), shift, nullptr);
      for (int64_t i = 0; i < n; ++i) shift[i] = softmax_shift(logits, shift[i]);
      classifier.kernels.sums(
          mask,
          {logits.khi, logits.klo, logits.large, shift, nullptr, sum, sum + n, sum + 2 * n, nullptr, nullptr, nullptr},
          u, classifier.pass());
      for (int64_t i = 0; i < n; ++i) others[i].add_tile(logits, shift[i], sum[i], sum[n + i], sum[2 * n + i]);
    });
    auto* to = static_cast<T*>(softmax.data_ptr()) + begin;
    for (int64_t i = 0; i < n; ++i) {
      others[i].save(1, to + i, to + labels.numel() + i);
      const double own = classifier.logit(rows.row(i), label[i]);
      // 0 times what is not finite is NaN: an infinity stays visible where the exponential swallowed it.
      static_cast<T*>(losses.data_ptr())[begin + i] =
          softplus(others[i].log_sum_above(1, own)) + 0 * (others[i].mean() + own);
    }
  });
  return {losses, softmax, labels};
}

template <class T>
Tensor run_backward(const Tensor& grad_losses, const Tensor& x, const Tensor& centroids, const Tensor& labels,
                    const Tensor& softmax, bool normalize) {
  check_labels(labels, centroids.size(0));
  const Classifier<T> classifier(x, centroids, normalize, true);
  const Logits<T> logits(Similarity::kDot, 1, kAnyReach);
  const int64_t d = classifier.d;
  const Tensor dx = empty_in_workspace(x);
  for_tiles(classifier.tiles, [&](int64_t tile, typename Classifier<T>::Scratch& scratch) {
    const int64_t begin = classifier.tiles.begin(tile), n = classifier.tiles.rows(tile);
    scratch.row_values.resize(n);
    T* inverse_norm = scratch.row_values.data();
    const TileRows<T> rows = classifier.load(tile, scratch, inverse_norm);
    const auto* label = static_cast<const int64_t*>(labels.data_ptr()) + begin;
    const auto *similarity = static_cast<const T*>(softmax.data_ptr()) + begin, *log_sum = similarity + labels.numel();
    SoftmaxGradient<T> slopes(logits, n);
    std::vector<T> own(n);
    for (int64_t i = 0; i < n; ++i) {
      const double share = sigmoid(similarity[i] - classifier.logit(rows.row(i), label[i]) + log_sum[i]);
      const double weight = static_cast<const T*>(grad_losses.data_ptr())[begin + i] * share;
      slopes.set(i, similarity[i], log_sum[i], weight, 0);
      own[i] = -weight;
    }
    scratch.derivatives.resize(classifier.tiles.rows_per_tile() * classifier.pass());
    scratch.gradient.resize(classifier.tiles.rows_per_tile() * d);
    T *v = scratch.derivatives.data(), *gradient = scratch.gradient.data();
    std::fill_n(gradient, n * d, T(0));
    classifier.for_passes(rows, n, label, scratch, [&](int64_t j, const TileMask& mask) {
      TileWeights<T> weights = {logits.khi,          logits.klo,           logits.large,
                                slopes.shift.data(), slopes.factor.data(), slopes.offset.data()};
      classifier.kernels.weights(mask, weights, scratch.logits.data(), classifier.pass(), v, classifier.pass());
      for (int64_t i = 0; i < n; ++i)
        if (label[i] >= j && label[i] < j + mask.cols) v[i * classifier.pass() + label[i] - j] = own[i];
      classifier.add_centroids(n, j, mask.cols, v, gradient);
    });
    for (int64_t i = 0; i < n && normalize; ++i) undo_normalization(rows.row(i), inverse_norm[i], d, gradient + i * d);
    classifier.tiles.store(tile, gradient, dx);
  });
  return dx;
}

std::tuple<Tensor, Tensor, Tensor> cluster_cross_entropy_fwd(Tensor x, Tensor centroids, std::optional<Tensor> target,
                                                             bool normalize) {
  const std::optional<Tensor> labels = target ? std::optional<Tensor>(contiguous(*target)) : std::nullopt;
  return (is_double(centroids) ? run_forward<double> : run_forward<float>)(x, contiguous(centroids), labels, normalize);
}

Tensor cluster_cross_entropy_bwd(Tensor grad_losses, Tensor x, Tensor centroids, Tensor labels, Tensor softmax,
                                 bool normalize) {
  return (is_double(centroids) ? run_backward<double> : run_backward<float>)(contiguous(grad_losses), x,
                                                                             contiguous(centroids), contiguous(labels),
                                                                             contiguous(softmax), normalize);
}

}  // namespace
}  // namespace cmx

STABLE_TORCH_LIBRARY_IMPL(cmx_fast, CPU, m) {
  m.impl("cluster_cross_entropy_fwd", TORCH_BOX(&cmx::cluster_cross_entropy_fwd));
  m.impl("cluster_cross_entropy_bwd", TORCH_BOX(&cmx::cluster_cross_entropy_bwd));
}
