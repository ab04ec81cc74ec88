// The levels of (T, H, W) maps: windows of 2^level x 2^level within a frame, partial ones at the far edges. A level's
// windows are numbered (T, rows, columns), level after level.
#pragma once

#include <cstdint>

#include "reductions.cuh"

namespace cmx {

constexpr float kSmallestNorm = 1e-12f;  // a vector no longer than this answers with a cosine of 0

// A sample's windows of all levels are its cells, a level's together as (T, rows, columns).
struct Pyramid {
  int times, height, width, levels;

  __host__ __device__ int rows(int level) const { return (height + (1 << level) - 1) >> level; }
  __host__ __device__ int columns(int level) const { return (width + (1 << level) - 1) >> level; }
  __host__ __device__ int windows(int level) const { return times * rows(level) * columns(level); }
  __host__ __device__ int positions() const { return windows(0); }
  __host__ __device__ int begin(int level) const {
    int cell = 0;
    for (int finer = 0; finer < level; ++finer) cell += windows(finer);
    return cell;
  }
  __host__ __device__ int cells() const { return begin(levels); }
  // Positions of the frame in a window.
  __device__ int count(int level, int row, int column) const {
    const int side = 1 << level;
    return min(height - (row << level), side) * min(width - (column << level), side);
  }
};

// Where a window's value is among a sample's cells.
__device__ inline int cell_of(const Pyramid& pyramid, int level, int t, int row, int column) {
  return pyramid.begin(level) + (t * pyramid.rows(level) + row) * pyramid.columns(level) + column;
}

// 1 / length, or 0 for what is too short; NaN stays.
__device__ inline float inverse_length(float length) { return length <= kSmallestNorm ? 0.f : 1.f / length; }

// Of a sample's filter; the whole block takes part.
__device__ inline float filter_inverse_length(const float* filter, int channels, float* shared) {
  float square = 0;
  for (int c = threadIdx.x; c < channels; c += blockDim.x) square += filter[c] * filter[c];
  return inverse_length(sqrtf(sum_block(square, shared)));
}

}  // namespace cmx
