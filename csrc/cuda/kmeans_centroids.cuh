// Centroids made ready for a k-means step: as the metric sees them, for the distances, and moved by their mean and
// split into numbers of the vectors' own type, as the matrix unit takes them.
//
// One block owns all centroids, in shared memory; kSharers threads share a centroid. Norms, the mean and squares are
// double. Why it is right: |x - m|^2 is least where x.(m - o) - (|m - o|^2 / 2 + o.(m - o)) is largest, with the mean
// o; x itself is never moved, and halves lose nothing. Centroids beyond the last have a half of infinity and are never
// the nearest; one whose square is too large has NaN, which makes every score notice.
#pragma once

#include <cstring>

#include "elements.cuh"
#include "reductions.cuh"

namespace cmx {

constexpr int kMostClusters = 64;
constexpr int kMostWidth = 128;
constexpr int kDepth = 16;  // channels of a product
constexpr int kPrepareThreads = 512;
constexpr int kSharers = 8;  // threads that sum over a centroid's channels

// Parts that add up to a float32 number: 3 x 8 bits of bfloat16, 2 x 11 of float16 and their signs.
template <class Element>
constexpr int kParts = 3;
template <>
inline constexpr int kParts<__half> = 2;

template <class To, class From>
__device__ To same_bits(const From& from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  memcpy(&to, &from, sizeof to);
  return to;
}

template <class Element>
__device__ uint32_t pair_of(Element lower, Element upper) {
  return same_bits<uint32_t>(Chunk<Element, 2>{lower, upper});
}

// Squares up to here leave their sums finite. From the least on, times the number of channels, they keep their digits.
constexpr float kLargestSquare = 0x1p124f, kLeastSquare = 1e-31f;

// `padded` centroids, of which those beyond the last are never the nearest.
struct Centroids {
  float* values;    // (width, padded)
  float* halves;    // (padded,): to be subtracted from a product for its score; the largest score is the nearest
                    // centroid's. NaN where its square is too large, infinite beyond the last
  float* scale;     // to be multiplied with the parts' products
  uint32_t* parts;  // (padded / 16, width / 16, kParts, 32 lanes, 4): a lane's right factors of 16 centroids

  __host__ __device__ Centroids(float* memory, int width, int padded)
      : values(memory),
        halves(values + width * padded),
        scale(halves + padded),
        parts(reinterpret_cast<uint32_t*>(scale + 4)) {}  // 16 bytes at a time
  __host__ __device__ static int64_t floats(int width, int padded, int parts) {
    return int64_t(width) * padded + padded + 4 + int64_t(width) * padded * parts / 2;
  }
};

inline int prepare_floats(int width, int padded) { return padded * (width + 1) + width + kPrepareThreads / kWarp; }

// float16 has few exponents: parts as large as it holds, so that none vanishes. A power of two, by which nothing
// rounds.
template <class Element>
__device__ float part_scale(float) {
  return 1;
}
template <>
__device__ inline float part_scale<__half>(float top) {
  constexpr int kLargest = 14, kMost = 100;
  int exponent = 0;
  if (top > 0 && top < INFINITY) frexpf(top, &exponent);
  return ldexpf(1, min(kLargest - exponent, kMost));
}

// One block, of centroids (clusters, width) without gaps. STRICT: unit vectors, NaN in place of a zero vector.
template <class Element>
__global__ void __launch_bounds__(kPrepareThreads, 1)
    prepare_kernel(const float* __restrict__ centroids, const Centroids out, int clusters, int width, int padded,
                   bool strict) {
  extern __shared__ float shared[];
  float* const own = shared;  // (padded, width + 1)
  float* const origin = own + padded * (width + 1);
  float* const tops = origin + width;
  const int stride = width + 1, cluster = threadIdx.x / kSharers, share = threadIdx.x % kSharers;
  for (int i = threadIdx.x; i < padded * width; i += kPrepareThreads)
    own[i / width * stride + i % width] = i < clusters * width ? centroids[i] : 0.f;
  __syncthreads();
  if (strict) {
    double square = 0;
    if (cluster < clusters)
      for (int d = share; d < width; d += kSharers)
        square += double(own[cluster * stride + d]) * own[cluster * stride + d];
    const double inverse = 1 / sqrt(sum_neighbours(square, kSharers));
    if (cluster < clusters)
      for (int d = share; d < width; d += kSharers)
        own[cluster * stride + d] = float(own[cluster * stride + d] * inverse);
    __syncthreads();
  }
  for (int d = threadIdx.x; d < width; d += kPrepareThreads) {
    double total = 0;
    for (int k = 0; k < clusters; ++k) total += own[k * stride + d];
    origin[d] = float(total / clusters);
  }
  for (int i = threadIdx.x; i < padded * width; i += kPrepareThreads)
    out.values[i] = own[i % padded * stride + i / padded];
  __syncthreads();
  double square = 0, along = 0;
  float top = 0;
  if (cluster < clusters)
    for (int d = share; d < width; d += kSharers) {
      float& moved = own[cluster * stride + d];
      moved -= origin[d];
      square += double(moved) * moved;
      along += double(moved) * origin[d];
      top = fmaxf(top, fabsf(moved));
    }
  const double half = sum_neighbours(square / 2 + along, kSharers);
  const bool held = sum_neighbours(square, kSharers) <= kLargestSquare;
  if (share == 0 && cluster < padded) out.halves[cluster] = cluster >= clusters ? INFINITY : held ? float(half) : NAN;
  const float scale = part_scale<Element>(max_block(top, tops));  // behind its barriers all centroids are moved
  if (threadIdx.x == 0) *out.scale = 1 / scale;
  const int steps = width / kDepth;
  for (int i = threadIdx.x; i < padded / kDepth * steps * kWarp; i += kPrepareThreads) {
    const int lane = i % kWarp, step = i / kWarp % steps, first = i / kWarp / steps * kDepth;
    // Registers upper and lower of the centroids first + 0..7, then of first + 8..15.
    float rest[8];
#pragma unroll
    for (int j = 0; j < 8; ++j)
      rest[j] =
          scale * own[(first + j / 4 * 8 + lane / 4) * stride + step * kDepth + j / 2 % 2 * 8 + lane % 4 * 2 + j % 2];
#pragma unroll
    for (int part = 0; part < kParts<Element>; ++part) {
      Chunk<uint32_t, 4> registers;
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const Element lower = rounded<Element>(rest[2 * j]), upper = rounded<Element>(rest[2 * j + 1]);
        rest[2 * j] -= to_float(lower);
        rest[2 * j + 1] -= to_float(upper);
        registers.element[j] = pair_of(lower, upper);
      }
      reinterpret_cast<Chunk<uint32_t, 4>*>(out.parts)[(i / kWarp * kParts<Element> + part) * kWarp + lane] = registers;
    }
  }
}

}  // namespace cmx
