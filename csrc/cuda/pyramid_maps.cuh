// The maps without channels around the passes over the features.
//
// Forward, a block owns a whole sample where a softmax or a loss needs it, else some positions; a position is one
// thread's. Backward, a thread owns a window and gathers from the positions that read it, so nothing is scattered or
// atomic. The enlargement is bilinear with half-pixel centres; its transpose is the same tent function of position and
// window.
#pragma once

#include "pyramid.cuh"

namespace cmx {

constexpr int kMapThreads = 1024;  // where a block has a whole sample's map

enum class Norm { kCosine, kSoftmax, kNone };

// Mean over the levels of their windows' values, enlarged bilinearly to a position.
__device__ inline float enlarged(const Pyramid& pyramid, const float* cells, int p) {
  const int y = p / pyramid.width % pyramid.height, x = p % pyramid.width;
  const int t = p / pyramid.width / pyramid.height;
  float total = cells[p];
  for (int level = 1; level < pyramid.levels; ++level) {
    const int rows = pyramid.rows(level), columns = pyramid.columns(level);
    const float row = fmaxf((y + 0.5f) / (1 << level) - 0.5f, 0.f);
    const float column = fmaxf((x + 0.5f) / (1 << level) - 0.5f, 0.f);
    const int top = int(row), left = int(column);
    const int bottom = min(top + 1, rows - 1), right = min(left + 1, columns - 1);
    const float down = row - top, across = column - left;
    const float* const frame = cells + cell_of(pyramid, level, t, 0, 0);
    const float upper = frame[top * columns + left] * (1 - across) + frame[top * columns + right] * across;
    const float lower = frame[bottom * columns + left] * (1 - across) + frame[bottom * columns + right] * across;
    total += upper * (1 - down) + lower * down;
  }
  return total / pyramid.levels;
}

// The map (B, positions), less the prediction where there is one, and then the sum of squares of what is written. A
// softmax and a loss need a whole sample in a block: `blocks` is 1 then.
__global__ void __launch_bounds__(kMapThreads)
    map_kernel(const float* __restrict__ values, const float* __restrict__ prediction, float* map,
               float* __restrict__ losses, const Pyramid pyramid, Norm norm, int blocks) {
  extern __shared__ float shared[];
  const int64_t b = blockIdx.x / blocks;
  const int n = pyramid.positions(), stride = blocks * blockDim.x;
  const int begin = blockIdx.x % blocks * blockDim.x + threadIdx.x;
  const float* const cells = values + b * pyramid.cells();
  float* const out = map + b * n;
  float top = -INFINITY, total = 0, loss = 0;
  for (int p = begin; p < n; p += stride) {
    const float value = enlarged(pyramid, cells, p);
    top = value > top ? value : top;
    out[p] = norm == Norm::kCosine ? (1 + value) / 2 : value;
  }
  if (norm == Norm::kSoftmax) {
    top = max_block(top, shared);
    for (int p = begin; p < n; p += stride) total += out[p] = expf(out[p] - top);
    total = sum_block(total, shared);
    for (int p = begin; p < n; p += stride) out[p] /= total;
  }
  if (prediction) {
    for (int p = begin; p < n; p += stride) {
      const float difference = out[p] - prediction[b * n + p];
      out[p] = difference;
      loss += difference * difference;
    }
    loss = sum_block(loss, shared);
    if (threadIdx.x == 0) losses[b] = loss;
  }
}

// The gradient by every window's value, from that of the map (B, positions): `filter_factors` (B, cells), the multiple
// of the filter that a window's positions get, and with cosines `window_factors` (B, cells), that of the window's own
// sum. `radial` (B, blocks) adds up to the multiple of the filter that its gradient loses.
__global__ void __launch_bounds__(kThreads, 1)
    window_gradients_kernel(const float* __restrict__ gradient, const float* __restrict__ map,
                            const float* __restrict__ filters, const float* __restrict__ cosines,
                            const float* __restrict__ inverse_norms, float* __restrict__ filter_factors,
                            float* __restrict__ window_factors, float* __restrict__ radial, const Pyramid pyramid,
                            int channels, Norm norm, int blocks) {
  extern __shared__ float shared[];
  const int64_t b = blockIdx.x / blocks;
  const int n = pyramid.positions(), cell = blockIdx.x % blocks * blockDim.x + threadIdx.x;
  const float* const map_gradient = gradient + b * n;
  float mean = 0, scale = 1;
  if (norm == Norm::kSoftmax) {
    for (int p = threadIdx.x; p < n; p += blockDim.x) mean += map[b * n + p] * map_gradient[p];
    mean = sum_block(mean, shared);
    // Every channel of the filter's gradient has the mean's error in common: the second sum takes it away.
    float rest = 0;
    for (int p = threadIdx.x; p < n; p += blockDim.x) rest += map[b * n + p] * (map_gradient[p] - mean);
    mean += sum_block(rest, shared);
  }
  if (norm == Norm::kCosine) scale = filter_inverse_length(filters + b * channels, channels, shared);
  float lost = 0;
  if (cell < pyramid.cells()) {
    int level = 0;
    while (level + 1 < pyramid.levels && cell >= pyramid.begin(level + 1)) ++level;
    const int rows = pyramid.rows(level), columns = pyramid.columns(level), side = 1 << level;
    const int window = cell - pyramid.begin(level);
    const int t = window / columns / rows, i = window / columns % rows, j = window % columns;
    // The positions that lie between this window and its neighbours; of level 0 the position itself.
    const int margin = side / 2;
    float slope = 0;
    for (int y = max(i * side - margin, 0); y < min((i + 1) * side + margin, pyramid.height); ++y)
      for (int x = max(j * side - margin, 0); x < min((j + 1) * side + margin, pyramid.width); ++x) {
        const float row = fminf(fmaxf((y + 0.5f) / side - 0.5f, 0.f), rows - 1.f);
        const float column = fminf(fmaxf((x + 0.5f) / side - 0.5f, 0.f), columns - 1.f);
        const float share = fmaxf(1 - fabsf(row - i), 0.f) * fmaxf(1 - fabsf(column - j), 0.f);
        const int p = (t * pyramid.height + y) * pyramid.width + x;
        slope += share * (norm == Norm::kSoftmax ? map[b * n + p] * (map_gradient[p] - mean) : map_gradient[p]);
      }
    slope /= pyramid.levels;
    const int count = pyramid.count(level, i, j);
    const int64_t out = b * pyramid.cells() + cell;
    if (norm == Norm::kCosine) {
      slope /= 2;
      const float inverse = inverse_norms[out];
      lost = slope * cosines[out];
      window_factors[out] = -lost * inverse * inverse / (float(count) * count);
      slope *= inverse;
    }
    filter_factors[out] = scale * slope / count;
  }
  if (norm == Norm::kCosine) {
    lost = sum_block(lost, shared);
    if (threadIdx.x == 0) radial[blockIdx.x] = lost * scale * scale;
  }
}

}  // namespace cmx
