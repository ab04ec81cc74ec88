// The vectors of a k-means step in tiles of 64, and how a block brings a tile into its shared memory: channel by
// channel, since neighbouring positions are neighbours in memory, 16 or 4 bytes at a time where addresses allow. A tile
// lies within one sample; positions beyond the sample become 0.
#pragma once

#include "cuda/async_copy.cuh"
#include "elements.cuh"

namespace cmx {

constexpr int kTile = 64;
// Elements from a channel of a tile to the next: 8 rows of a matrix then lie in different banks.
constexpr int kPitch = kTile + 8;

// Where a tile lies: within one sample.
struct Place {
  int sample, first;
};

// (batch, positions, width), neighbours in memory of neighbouring positions.
template <class Element>
struct Vectors {
  const Element* data;
  int64_t stride_b, stride_d;
  int64_t batch;
  int positions, width;

  __host__ __device__ int tiles_per_sample() const { return (positions + kTile - 1) / kTile; }
  __host__ __device__ int64_t tiles() const { return batch * tiles_per_sample(); }
  __device__ Place place_of(int64_t tile) const {
    return {int(tile / tiles_per_sample()), int(tile % tiles_per_sample()) * kTile};
  }
  __device__ void advance(Place& place) const {
    place.first += kTile;
    if (place.first < positions) return;
    place.first = 0;
    ++place.sample;
  }
  __device__ int inside_of(const Place& place) const { return min(positions - place.first, kTile); }
  // Of its first vector among all.
  __device__ int64_t index_of(const Place& place) const { return int64_t(place.sample) * positions + place.first; }

  // Neighbours that can be copied at once: a tile begins at a multiple of any.
  __host__ __device__ int vector() const {
    for (const int n : {8, 2})
      if (reinterpret_cast<uintptr_t>(data) % (n * sizeof(Element)) == 0 && stride_b % n == 0 && stride_d % n == 0)
        return n;
    return 1;
  }

  // Starts to bring a tile in, (width, kPitch), 0 beyond the sample, by vector() at once. Whoever waits for it needs a
  // barrier, too.
  __device__ void fetch(const Place& place, Element* to, int at_once) const {
    const int inside = inside_of(place);
    const Element* const from = data + place.sample * stride_b + place.first;
    if (at_once == 8)
      copy<8>(to, from, inside);
    else if (at_once == 2)
      copy<2>(to, from, inside);
    else
      for (int i = threadIdx.x; i < width * kTile; i += blockDim.x) {
        const int d = i / kTile, p = i % kTile;
        to[d * kPitch + p] = p < inside ? from[d * stride_d + p] : rounded<Element>(0.f);
      }
  }

 private:
  template <int VECTOR>
  __device__ void copy(Element* to, const Element* from, int inside) const {
    constexpr int kPerRow = kTile / VECTOR, kBytes = sizeof(Element);
    for (int i = threadIdx.x; i < width * kPerRow; i += blockDim.x) {
      const int d = i / kPerRow, p = i % kPerRow * VECTOR, there = max(0, min(inside - p, VECTOR));
      copy_async<VECTOR * kBytes>(to + d * kPitch + p, from + d * stride_d + (there ? p : 0), there * kBytes);
    }
  }
};

}  // namespace cmx
