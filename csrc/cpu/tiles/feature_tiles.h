// Vectors of a (batch, positions, d) tensor with any strides, a tile of rows at a time in the working precision.
//
// Rows are read where they lie if the tensor holds them as they are wanted: of type T, features next to each other, not
// normalised. Maps (channels first) are transposed a block of 16 x 16 at a time, other types are converted, and rows
// are normalised without overflow at any magnitude (make_unit). A tile has 32 to 64 rows, about 128 KiB where that
// allows, or as many as its owner asks for.
#pragma once

#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <cstdint>

#include "cpu/tensors/buffer.h"

namespace cmx {

using torch::stable::Tensor;

enum class Normalize {
  kNo,
  kBounded,  // by max(norm, 1e-12)
  kStrict,   // by the norm: a zero vector becomes NaN
};

// Rows of a tile: where the tensor holds them as they are wanted, there; else in the buffer of whoever loaded them.
template <class T>
struct TileRows {
  const T* data;
  int64_t stride;
  const T* row(int64_t i) const { return data + i * stride; }
};

// The same rows with no gap between them, copied to the buffer where there was one.
template <class T>
TileRows<T> without_gaps(const TileRows<T>& rows, int64_t n, int64_t d, Buffer<T>& buffer) {
  if (rows.stride == d) return rows;
  buffer.resize(n * d);
  for (int64_t i = 0; i < n; ++i) std::copy_n(rows.row(i), d, buffer.data() + i * d);
  return {buffer.data(), d};
}

template <class T>
class FeatureTiles {
 public:
  static constexpr int64_t kMostRows = 64;

  // rows_per_tile: as many as fit the cache unless given.
  FeatureTiles(const Tensor& x, Normalize normalize, int64_t rows_per_tile = 0);

  int64_t count() const { return batches_ * tiles_per_batch_; }
  int64_t positions() const { return batches_ * positions_; }
  int64_t d() const { return d_; }
  int64_t rows_per_tile() const { return rows_per_tile_; }
  // Positions of a tile, counted over all batches.
  int64_t begin(int64_t tile) const;
  int64_t rows(int64_t tile) const;
  // True if rows are read where they lie.
  bool in_place() const;
  // The buffers grow to what a tile needs. inverse_norm (rows of the tile), unless null, receives what rows were
  // multiplied by.
  TileRows<T> load(int64_t tile, Buffer<T>& buffer, T* inverse_norm = nullptr) const;
  // The other way, for gradients: rows (n, d) of a tile into a tensor laid out like x, in its dtype.
  void store(int64_t tile, const T* rows, const Tensor& like) const;

 private:
  Tensor x_;
  Normalize normalize_;
  int64_t batches_, positions_, d_, rows_per_tile_, tiles_per_batch_;
};

}  // namespace cmx
