// A thread's part of the features: whole windows of a pyramid's coarsest level, so that the sums over the windows of
// every level never leave its registers. Loads are of VECTOR neighbours in memory, along the channels (channels last)
// or along a row of positions.
#pragma once

#include "elements.cuh"
#include "pyramid.cuh"

namespace cmx {

// Features (B, C, T, H, W) and one filter per sample (B, C), contiguous.
template <class Element>
struct Problem {
  const Element* features;
  const float* filters;
  Strides strides;
  Pyramid pyramid;
  int batch, channels;
};

// kSide x kColumns positions of kStep channels; with channels last in memory one window of neighbouring channels, else
// windows side by side of one channel. VECTOR neighbours in memory are loaded at once. At most 16 positions.
template <class E, int LEVELS, bool LAST, int VECTOR>
struct Patch {
  using Element = E;
  using Vector = Chunk<Element, VECTOR>;
  static constexpr int kLevels = LEVELS;
  static constexpr bool kChannelsLast = LAST;
  static constexpr int kSide = 1 << (LEVELS - 1);
  static constexpr int kColumns = !LAST && VECTOR > kSide ? VECTOR : kSide;
  static constexpr int kPositions = kSide * kColumns;
  static constexpr int kCells = kPositions + (LEVELS > 1 ? kPositions / 4 : 0) + (LEVELS > 2 ? kPositions / 16 : 0);
  static constexpr int kStep = LAST ? VECTOR : 1;
  static constexpr int kRun = LAST ? 1 : VECTOR;  // positions in a chunk
  static constexpr int kChunks = kPositions / kRun;

  Vector chunks[kChunks];

  // Where a patch lies in its sample.
  struct Place {
    int t, row, column;  // its first position is (t, row * kSide, column * kColumns)
    int rows, columns;   // of it inside the frame

    __device__ Place(const Pyramid& pyramid, int patch) {
      const int across = per_row(pyramid), down = pyramid.rows(LEVELS - 1);
      t = patch / (down * across);
      row = patch / across % down;
      column = patch % across;
      rows = min(kSide, pyramid.height - row * kSide);
      columns = min(kColumns, pyramid.width - column * kColumns);
    }
    __device__ int64_t offset(const Strides& strides) const {
      return t * strides.t + row * kSide * strides.h + column * kColumns * strides.w;
    }
    // The cell of the patch's i-th of a level, or -1 outside the frame.
    __device__ int cell(const Pyramid& pyramid, int level, int i) const {
      const int wide = kColumns >> level;
      const int y = (row * kSide >> level) + i / wide, x = (column * kColumns >> level) + i % wide;
      return y < pyramid.rows(level) && x < pyramid.columns(level) ? cell_of(pyramid, level, t, y, x) : -1;
    }
  };
  __host__ __device__ static int per_row(const Pyramid& pyramid) { return (pyramid.width + kColumns - 1) / kColumns; }
  __host__ __device__ static int per_sample(const Pyramid& pyramid) {
    return pyramid.times * pyramid.rows(LEVELS - 1) * per_row(pyramid);
  }

  // x points to the patch's first position in its first channel. What lies outside the frame is 0.
  __device__ void load(const Element* x, const Strides& strides, const Place& place) {
#pragma unroll
    for (int i = 0; i < kChunks; ++i) {
      const int y = i * kRun / kColumns, column = i * kRun % kColumns;
      const bool inside = y < place.rows && column < place.columns;
      chunks[i] = inside ? *reinterpret_cast<const Vector*>(x + y * strides.h + column * strides.w) : Vector{};
    }
  }
  __device__ void store(Element* x, const Strides& strides, const Place& place) const {
#pragma unroll
    for (int i = 0; i < kChunks; ++i) {
      const int y = i * kRun / kColumns, column = i * kRun % kColumns;
      if (y < place.rows && column < place.columns)
        *reinterpret_cast<Vector*>(x + y * strides.h + column * strides.w) = chunks[i];
    }
  }
  // The positions of one of its channels.
  __device__ void unpack(int channel, float (&values)[kPositions]) const {
#pragma unroll
    for (int i = 0; i < kPositions; ++i) values[i] = to_float(chunks[i / kRun].element[LAST ? channel : i % kRun]);
  }
  __device__ void pack(int channel, const float (&values)[kPositions]) {
#pragma unroll
    for (int i = 0; i < kPositions; ++i)
      chunks[i / kRun].element[LAST ? channel : i % kRun] = rounded<Element>(values[i]);
  }

  // The filter of its channels. Vectors of them are aligned: pyramid_launch.cuh sees to it.
  __device__ static void load_filter(const float* filter, float (&values)[kStep]) {
    if constexpr (kStep % 4 == 0) {
#pragma unroll
      for (int i = 0; i < kStep; i += 4) {
        const auto four = *reinterpret_cast<const Chunk<float, 4>*>(filter + i);
#pragma unroll
        for (int j = 0; j < 4; ++j) values[i + j] = four.element[j];
      }
    } else {
#pragma unroll
      for (int i = 0; i < kStep; ++i) values[i] = filter[i];
    }
  }

  // Sums over windows of 2 x 2 of what is `wide` columns wide.
  template <int COUNT>
  __device__ static void pool(const float* finer, int wide, float (&sums)[COUNT]) {
#pragma unroll
    for (int i = 0; i < COUNT; ++i) {
      const float* corner = finer + i / (wide / 2) * 2 * wide + i % (wide / 2) * 2;
      sums[i] = (corner[0] + corner[1]) + (corner[wide] + corner[wide + 1]);
    }
  }
};

// The threads of a block as patches beside channels, whichever are neighbours in memory as neighbours: `width` of them.
template <class P>
struct Lanes {
  int patch, group;     // this thread's
  int patches, groups;  // of the block

  __device__ explicit Lanes(int width) {
    const int inner = threadIdx.x % width, outer = threadIdx.x / width;
    patch = P::kChannelsLast ? outer : inner;
    group = P::kChannelsLast ? inner : outer;
    patches = P::kChannelsLast ? kThreads / width : width;
    groups = kThreads / patches;
  }
};

}  // namespace cmx
