// The k-means pass on the CPU: a tile of rows is loaded, assigned and summed while it lies in the cache.
//
// Algorithm: labels by a screened search (cpu/products/nearest.h), the distance to the centroid chosen from
// differences, then sums of the rows by label. Tile: up to 64 rows (cpu/tiles/feature_tiles.h), in the working
// precision, unit rows where the metric wants them. Who owns what: a task owns a slice of the data, some whole tiles,
// and sums of its own, (K, D) in double; the slices' sums are added in their order. See Note [Slices].
//
// Why it is right: a label comes from the search and lies in [0, K) whatever the data; counts are integers and sums
// double, so neither stops growing. Memory: partial sums of at most 32 MiB; where K x D is too large for that the sums
// are made in a second read by tasks of 32 features, each over all rows in their order.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <optional>
#include <string>
#include <tuple>
#include <vector>

#include "common/checks.h"
#include "common/parallel.h"
#include "cpu/products/nearest.h"
#include "cpu/products/search.h"
#include "cpu/tensors/buffer.h"
#include "cpu/tensors/rows.h"
#include "cpu/tiles/feature_tiles.h"

namespace cmx {
namespace {

// Note [Slices]: sums are kept per slice of the data and added up in the order of the slices. How many slices there are
// depends on the problem alone, so the result depends neither on the number of threads nor on their timing.
constexpr int64_t kRowsPerSlice = 8192;
constexpr int64_t kMostSlices = 64;
constexpr int64_t kPartialBytes = 32 << 20;
constexpr int64_t kFeaturesPerTask = 32;

// Sums over the rows of a slice, but for the rows themselves.
struct Sums {
  std::vector<int64_t> counts;
  std::vector<double> weights;
  double inertia = 0;
};

template <class T>
class Pass {
 public:
  Pass(const Tensor& x, const Tensor& centroids, const std::string& metric, bool normalize)
      : cosine_(metric == "cosine"),
        tiles_(x, cosine_     ? Normalize::kStrict
                  : normalize ? Normalize::kBounded
                              : Normalize::kNo),
        nearest_(centroids, cosine_) {}

  // Writes the tiles' labels and calls f(tile, its rows, their distances).
  template <class F>
  void assign(int64_t first, int64_t last, int64_t* labels, const F& f) const {
    thread_local typename NearestCentroids<T>::Scratch scratch;
    thread_local Buffer<T> buffer;
    double distance[FeatureTiles<T>::kMostRows];
    for (int64_t tile = first; tile < last; ++tile) {
      const int64_t begin = tiles_.begin(tile), n = tiles_.rows(tile);
      const TileRows<T> rows = tiles_.load(tile, buffer);
      nearest_.find(rows, n, scratch, labels + begin, distance);
      // Between unit vectors 1 - cosine is half the squared distance.
      for (int64_t i = 0; cosine_ && i < n; ++i) distance[i] /= 2;
      f(tile, rows, distance);
    }
  }

  const FeatureTiles<T>& tiles() const { return tiles_; }
  int64_t k() const { return nearest_.k(); }

 private:
  const bool cosine_;
  const FeatureTiles<T> tiles_;
  const NearestCentroids<T> nearest_;
};

// Calls f with a float or a double, whichever the centroids are.
template <class F>
auto with_working_type(const Tensor& centroids, const F& f) {
  return is_double(centroids) ? f(double{}) : f(float{});
}

std::tuple<Tensor, Tensor> kmeans_assign(Tensor x, Tensor centroids, std::string metric, bool normalize) {
  Tensor labels = torch::stable::new_empty(x, {x.size(0), x.size(1)}, ScalarType::Long);
  Tensor distance = torch::stable::new_empty(centroids, {x.size(0), x.size(1)});
  with_working_type(centroids, [&](auto zero) {
    using T = decltype(zero);
    const Pass<T> pass(x, contiguous(centroids), metric, normalize);
    const int64_t tiles = pass.tiles().count(), per_task = ceil_div(kRowsPerSlice, pass.tiles().rows_per_tile()) / 4;
    run_tasks(ceil_div(tiles, per_task), [&](int64_t task) {
      pass.assign(task * per_task, std::min(tiles, (task + 1) * per_task), static_cast<int64_t*>(labels.data_ptr()),
                  [&](int64_t tile, const TileRows<T>&, const double* distances) {
                    std::copy_n(distances, pass.tiles().rows(tile),
                                static_cast<T*>(distance.data_ptr()) + pass.tiles().begin(tile));
                  });
    });
  });
  return {labels, distance};
}

template <class T>
class Step {
 public:
  Step(const Pass<T>& pass, const Tensor& labels, const T* weight)
      : pass_(pass), labels_(static_cast<int64_t*>(labels.data_ptr())), weight_(weight), d_(pass.tiles().d()) {}

  void run(double* sums, Sums& total) {
    const FeatureTiles<T>& tiles = pass_.tiles();
    const int64_t bytes = pass_.k() * d_ * int64_t(sizeof(double));
    const int64_t wanted = std::clamp<int64_t>(tiles.positions() / kRowsPerSlice, 1, kMostSlices);
    const bool fits = wanted * bytes <= kPartialBytes;
    Buffer<double> partial(fits ? wanted * pass_.k() * d_ : 0);
    std::vector<Sums> slices(wanted);
    const int64_t per_slice = ceil_div(tiles.count(), wanted);
    run_tasks(wanted, [&](int64_t slice) {
      double* slice_sums = partial.data() + slice * pass_.k() * d_;
      if (fits) std::fill_n(slice_sums, pass_.k() * d_, 0.0);
      slices[slice].counts.resize(pass_.k());
      slices[slice].weights.resize(weight_ ? pass_.k() : 0);
      pass_.assign(std::min(tiles.count(), slice * per_slice), std::min(tiles.count(), (slice + 1) * per_slice),
                   labels_, [&](int64_t tile, const TileRows<T>& rows, const double* distances) {
                     count(tile, distances, slices[slice]);
                     if (fits) add_rows(tile, rows, 0, d_, slice_sums);
                   });
    });
    if (fits)
      run_tasks(ceil_div(pass_.k() * d_, kRowsPerSlice), [&](int64_t task) {
        const int64_t begin = task * kRowsPerSlice, end = std::min(pass_.k() * d_, begin + kRowsPerSlice);
        std::fill(sums + begin, sums + end, 0.0);
        for (int64_t slice = 0; slice < wanted; ++slice)
          for (int64_t p = begin; p < end; ++p) sums[p] += partial.data()[slice * pass_.k() * d_ + p];
      });
    else
      add_by_features(sums);
    total.counts.assign(pass_.k(), 0);
    total.weights.assign(weight_ ? pass_.k() : 0, 0);
    for (const Sums& slice : slices) {
      for (int64_t k = 0; k < pass_.k(); ++k) total.counts[k] += slice.counts[k];
      for (size_t k = 0; k < total.weights.size(); ++k) total.weights[k] += slice.weights[k];
      total.inertia += slice.inertia;
    }
  }

 private:
  void count(int64_t tile, const double* distances, Sums& sums) const {
    const int64_t begin = pass_.tiles().begin(tile), n = pass_.tiles().rows(tile);
    for (int64_t i = 0; i < n; ++i) {
      const double w = weight_ ? weight_[begin + i] : 1;
      const int64_t label = labels_[begin + i];
      ++sums.counts[label];
      if (weight_) sums.weights[label] += w;
      sums.inertia += w * distances[i];
    }
  }

  // sums += features [first, last) of the tile's rows.
  void add_rows(int64_t tile, const TileRows<T>& rows, int64_t first, int64_t last, double* sums) const {
    const int64_t begin = pass_.tiles().begin(tile), n = pass_.tiles().rows(tile);
    for (int64_t i = 0; i < n; ++i)
      kernels_.accumulate(rows.row(i) + first, weight_ ? weight_[begin + i] : 1, last - first,
                          sums + labels_[begin + i] * d_ + first);
  }

  // So many centroids that their sums don't fit once per slice: a second read, of a small share beside the products,
  // in which every feature's sums are made by one task.
  void add_by_features(double* sums) const {
    run_tasks(ceil_div(d_, kFeaturesPerTask), [&](int64_t task) {
      const int64_t first = task * kFeaturesPerTask, last = std::min(d_, first + kFeaturesPerTask);
      for (int64_t k = 0; k < pass_.k(); ++k) std::fill(sums + k * d_ + first, sums + k * d_ + last, 0.0);
      Buffer<T> buffer;
      for (int64_t tile = 0; tile < pass_.tiles().count(); ++tile)
        add_rows(tile, pass_.tiles().load(tile, buffer), first, last, sums);
    });
  }

  const SearchKernels<T>& kernels_ = best_search_kernels<T>();
  const Pass<T>& pass_;
  int64_t* labels_;
  const T* weight_;
  const int64_t d_;
};

std::tuple<Tensor, Tensor, Tensor, Tensor> kmeans_step(Tensor x, Tensor centroids, std::optional<Tensor> weight,
                                                       std::string metric, bool normalize) {
  const int64_t k = centroids.size(0), d = centroids.size(1);
  Tensor labels = torch::stable::new_empty(x, {x.size(0), x.size(1)}, ScalarType::Long);
  Tensor sums = torch::stable::new_empty(centroids, {k, d});
  Tensor counts = torch::stable::new_empty(centroids, {k}, weight ? ScalarType::Double : ScalarType::Long);
  Tensor inertia = torch::stable::new_empty(centroids, {}, ScalarType::Double);
  with_working_type(centroids, [&](auto zero) {
    using T = decltype(zero);
    const Pass<T> pass(x, contiguous(centroids), metric, normalize);
    const Tensor weights = contiguous(weight.value_or(centroids));
    Buffer<double> wide(k * d);
    Sums total;
    Step<T>(pass, labels, weight ? static_cast<const T*>(weights.data_ptr()) : nullptr).run(wide.data(), total);
    std::copy_n(wide.data(), k * d, static_cast<T*>(sums.data_ptr()));
    if (weight)
      std::copy(total.weights.begin(), total.weights.end(), static_cast<double*>(counts.data_ptr()));
    else
      std::copy(total.counts.begin(), total.counts.end(), static_cast<int64_t*>(counts.data_ptr()));
    *static_cast<double*>(inertia.data_ptr()) = total.inertia;
  });
  return {labels, sums, counts, inertia};
}

}  // namespace
}  // namespace cmx

STABLE_TORCH_LIBRARY_IMPL(cmx_fast, CPU, m) {
  m.impl("kmeans_assign", TORCH_BOX(&cmx::kmeans_assign));
  m.impl("kmeans_step", TORCH_BOX(&cmx::kmeans_step));
}
