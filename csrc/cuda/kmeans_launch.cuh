// The launches of a k-means step: prepare_kernel (one block), step_kernel, combine_kernel, and their shapes.
// `launch(kernel, blocks, threads, floats of shared memory, arguments...)` starts one of them; `launch.resident(kernel,
// threads, floats)` says how many blocks run at a time.
//
// All blocks of step_kernel run at a time, each with as many tiles as the others. A row of partials holds the float32
// sums of at most kMostTiles tiles; combine_kernel's blocks own 32 columns each and add the rows in double, always in
// the same order: the same inputs give the same bits on one chip.
#pragma once

#include <algorithm>

#include "kmeans_step.cuh"

namespace cmx {

constexpr int kCombineThreads = 512;

// Labels (batch, positions), and of every `length` tiles a row of `partials` (rows, columns). A block has `rows`.
template <class S>
__global__ void __launch_bounds__(S::kStepThreads, S::kStepThreads <= 128 ? 2 : 1)
    step_kernel(const Vectors<typename S::Element> x, const Centroids centroids, const float* __restrict__ weight,
                Metric metric, int64_t* __restrict__ labels, float* __restrict__ partials, int clusters, int length,
                int rows) {
  extern __shared__ __align__(16) float shared[];
  const int64_t begin = int64_t(blockIdx.x) * length * rows;
  const int count = int(min(x.tiles() - begin, int64_t(length) * rows));
  float* row = partials + int64_t(blockIdx.x) * rows * columns_of(clusters, x.width);
  S step(x, centroids, clusters, weight, metric, shared);
  Place place = x.place_of(begin), next = place;
  const auto fetch = [&](int tile, int stage) {
    if (tile < count) step.fetch(next, stage);
    x.advance(next);
    end_group();
  };
  for (int ahead = 0; ahead < kStages - 1; ++ahead) fetch(ahead, ahead);
  int stage = 0, added = 0;
  for (int tile = 0; tile < count; ++tile) {
    wait_for_groups<kStages - 2>();
    __syncthreads();  // the tile is there for all, and all have left the one before
    fetch(tile + kStages - 1, (stage + kStages - 1) % kStages);
    step.score(place, stage);
    __syncthreads();
    if (__syncthreads_or(step.measure(place, stage))) {
      step.settle(place, stage);
      __syncthreads();
    }
    step.add(place, stage, labels);
    x.advance(place);
    stage = (stage + 1) % kStages;
    if (++added == length || tile + 1 == count) {
      step.flush(row, clusters);
      row += columns_of(clusters, x.width);
      added = 0;
    }
  }
}

// A step's results: labels (batch, positions), sums (clusters, width), and either counts or weights (clusters,).
struct StepResults {
  int64_t* labels;
  float* sums;
  int64_t* counts;
  double *weights, *inertia;
};

// Adds the rows of `partials` (rows, columns) in float64, always in the same order. A block takes 32 columns.
__global__ void __launch_bounds__(kCombineThreads, 1)
    combine_kernel(const float* __restrict__ partials, const StepResults results, int64_t rows, int clusters, int width,
                   bool strict) {
  extern __shared__ __align__(16) float shared[];
  double* const totals = reinterpret_cast<double*>(shared);
  const int columns = columns_of(clusters, width), column = blockIdx.x * kWarp + threadIdx.x % kWarp;
  double total = 0;
  if (column < columns)
#pragma unroll 8
    for (int64_t row = threadIdx.x / kWarp; row < rows; row += kCombineThreads / kWarp)
      total += partials[row * columns + column];
  totals[threadIdx.x] = total;
  __syncthreads();
  if (threadIdx.x >= kWarp || column >= columns) return;
  for (int other = kWarp; other < kCombineThreads; other += kWarp) total += totals[other + threadIdx.x];
  const int cluster = column / (width + 1), d = column % (width + 1);
  if (column == columns - 1)
    *results.inertia = strict ? total / 2 : total;
  else if (d < width)
    results.sums[cluster * width + d] = float(total);
  else if (results.weights)
    results.weights[cluster] = total;
  else
    results.counts[cluster] = int64_t(total);
}

static_assert(Step<__half, kMostClusters, true>::floats(kMostWidth) * sizeof(float) <= 99 << 10,
              "the least shared memory that a block can have on sm_80 and later chips");

// Calls f with the block of a step.
template <class Element, class F>
void with_step(int clusters, bool scaled, const F& f) {
  if (clusters <= 32) return scaled ? f((Step<Element, 32, true>*)nullptr) : f((Step<Element, 32, false>*)nullptr);
  return scaled ? f((Step<Element, 64, true>*)nullptr) : f((Step<Element, 64, false>*)nullptr);
}

// How the tiles are shared out: a block's rows of partial sums, and the tiles that each is of.
struct Plan {
  int64_t blocks, rows;
  int rows_per_block, tiles_per_row;

  // All blocks run at a time, each with as many tiles as the others.
  Plan(int64_t tiles, int64_t resident) {
    const int64_t most = std::max<int64_t>(1, (tiles + resident - 1) / resident);
    rows_per_block = int((most + kMostTiles - 1) / kMostTiles);
    tiles_per_row = int((most + rows_per_block - 1) / rows_per_block);
    rows = (tiles + tiles_per_row - 1) / tiles_per_row;
    blocks = (rows + rows_per_block - 1) / rows_per_block;
  }
};

template <class Launch, class Element>
Plan plan_step(const Launch& launch, const Vectors<Element>& x, int clusters, bool scaled) {
  int64_t resident = 1;
  with_step<Element>(clusters, scaled, [&](auto* step) {
    using S = std::remove_pointer_t<decltype(step)>;
    resident = launch.resident(step_kernel<S>, S::kStepThreads, S::floats(x.width));
  });
  return Plan(x.tiles(), resident);
}

inline int padded_clusters(int clusters) { return clusters <= 32 ? 32 : 64; }

template <class Element>
int64_t prepared_floats(int clusters, int width) {
  return Centroids::floats(width, padded_clusters(clusters), kParts<Element>);
}

// With `prepared` (prepared_floats,) and `partials` (plan.rows, columns_of) for the kernels' own use.
template <class Launch, class Element>
void run_step(const Launch& launch, const Plan& plan, const Vectors<Element>& x, const float* centroids,
              const float* weight, int clusters, Metric metric, float* prepared, float* partials,
              const StepResults& results) {
  const int padded = padded_clusters(clusters), columns = columns_of(clusters, x.width);
  if (plan.blocks) {
    const Centroids ready(prepared, x.width, padded);
    launch(prepare_kernel<Element>, 1, kPrepareThreads, prepare_floats(x.width, padded), centroids, ready, clusters,
           x.width, padded, metric.strict);
    with_step<Element>(clusters, weight || metric.unit, [&](auto* step) {
      using S = std::remove_pointer_t<decltype(step)>;
      launch(step_kernel<S>, plan.blocks, S::kStepThreads, S::floats(x.width), x, ready, weight, metric, results.labels,
             partials, clusters, plan.tiles_per_row, plan.rows_per_block);
    });
  }
  launch(combine_kernel, (columns + kWarp - 1) / kWarp, kCombineThreads, 2 * kCombineThreads, partials, results,
         plan.rows, clusters, x.width, metric.strict);
}

}  // namespace cmx
