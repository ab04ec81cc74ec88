// The nearest of K centroids for a tile of rows: a screen over all, then distances to those that can be the nearest,
// see Note [Screened search], cpu/products/screen.h. Centroids go by in passes of 1024, whose scores for the tile stay
// in the second-level cache; a row's best score, least distance and label are carried along. Labels start at -1 and any
// row that keeps it, or whose squares have no digits, is searched again without a screen, so every label lies in [0,
// K).
#pragma once

#include <cstdint>
#include <memory>

#include "cpu/products/screen.h"
#include "cpu/products/search.h"
#include "cpu/tensors/buffer.h"
#include "cpu/tiles/feature_tiles.h"

namespace cmx {

template <class T>
class NearestCentroids {
 public:
  // centroids (k, d) contiguous; `unit`: each divided by its norm.
  NearestCentroids(const Tensor& centroids, bool unit);

  int64_t k() const { return centred_->k; }
  const T* centroid(int64_t i) const { return values_.data() + i * centred_->d; }

  // A thread's working memory between calls.
  struct Scratch {
    ScreenRows rows;
    Buffer<T> scores, row_state;  // row_state (3, n): slack, best score, least distance
  };
  // label and squared distance of n rows; where all distances are infinite or NaN, label 0 and its distance.
  void find(const TileRows<T>& rows, int64_t n, Scratch& scratch, int64_t* label, double* distance) const;

 private:
  // The same of one row without a screen, whatever the magnitudes.
  void find_wide(const T* row, int64_t* label, double* distance) const;

  const SearchKernels<T>& kernels_;
  Buffer<T> values_;
  std::unique_ptr<CentredCentroids<T>> centred_;
  std::unique_ptr<Screen<T>> screen_;
};

}  // namespace cmx
