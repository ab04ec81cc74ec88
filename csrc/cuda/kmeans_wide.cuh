// The search of a k-means step in double, for the few vectors whose scores or squares float32 does not hold: Note
// [Vectors that float32 does not hold], kernels/kmeans/products.py. One thread owns a vector, whose channels it reads
// from the tile.
#pragma once

#include "kmeans_centroids.cuh"
#include "kmeans_vectors.cuh"

namespace cmx {

// True if float32 holds a vector's best score, its inverse norm, and its squared distance (or that over some channels),
// `largest` being the largest difference in it.
__device__ inline bool held(float best, float scale, float distance, float largest, int width) {
  return best < INFINITY && scale > 0x1p-62f && scale < 1e28f && distance <= kLargestSquare &&
         (largest == 0 || distance >= (width + 8) * kLeastSquare);
}

// A vector of a tile and the centroids (width, stride) in shared memory.
template <class Element>
struct WideSearch {
  const Element* x;  // its channels lie kPitch apart
  const float* values;
  int width, clusters, stride;

  __device__ float at(int d) const { return to_float(x[d * kPitch]); }

  // The largest difference between one of its channels and a centroid's.
  __device__ float largest_difference(float scale, int label) const {
    float largest = 0;
    for (int d = 0; d < width; ++d) largest = fmaxf(largest, fabsf(at(d) * scale - values[d * stride + label]));
    return largest;
  }

  // Its inverse norm.
  __device__ double scale(bool strict) const {
    double square = 0;
    for (int d = 0; d < width; ++d) square += double(at(d)) * at(d);
    return 1 / (strict ? sqrt(square) : fmax(sqrt(square), 1e-12));
  }

  // The nearest centroid, and its squared distance. With a NaN, or beside a centroid that is not finite, label 0 and
  // NaN; with an infinity label 0 and infinity.
  __device__ float nearest(double scale, int& label) const {
    double least = INFINITY;
    label = 0;
    for (int k = 0; k < clusters; ++k) {
      double distance = 0;
      for (int d = 0; d < width; ++d) {
        const float value = values[d * stride + k];
        const double difference = at(d) * scale - value;
        distance += difference * difference + (value - value);
      }
      if (distance != distance) {
        label = 0;
        return NAN;
      }
      if (distance < least) {
        least = distance;
        label = k;
      }
    }
    return float(least);
  }
};

}  // namespace cmx
