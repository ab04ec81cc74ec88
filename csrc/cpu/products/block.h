// Softmax sums over one block of similarities and the gradients through them, without the block in memory.
//
// Algorithm: a walk over tiles of 96 x 288 (kTileRows x kTileCols; flatter ones for small problems). Per tile:
// products, from them similarities, from these the sums of exponentials of the rows and of the columns, or the
// derivatives of the losses and their products with the other side. Who owns what: a task owns a row tile and walks its
// columns, so the rows' sums and gradients are its own. Column sums are left per row tile; they are added, and the
// transposed products made, by tasks that own columns, over the row tiles in their order: the result depends on neither
// the threads nor their timing.
//
// Why it is right: tiles are of type T, what joins them is double (SoftmaxSum); exponentials are taken below a shift at
// the largest logit, or at a bound so close above it that no sum vanishes (bounding_shifts), in the forms of Note
// [Shared exponentials], cpu/simd/kernels.h. Memory: a tile per thread; forward four numbers per column and row tile of
// a panel of 8 x 96 rows; backward the derivatives of a panel, see kPanelBytes.
//
// Note [Symmetric blocks]: with `self` the rows are the columns. Only entries above the diagonal are visited; each
// serves its row as (i, j) and its column as (j, i). That halves the similarities and their exponentials, and the two
// products of a gradient cost one. Tiles wholly below the diagonal are skipped, those on it are masked
// (TileMask::lower).
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <string>
#include <vector>

#include "cpu/simd/kernels.h"
#include "cpu/tensors/rows.h"

namespace cmx {

enum class Similarity { kDot, kDistance, kSquaredDistance };
Similarity parse_similarity(const std::string& name);  // "dot", "l2" or "sql2"

// logit = scale * u, with the base-2 exponent in two pieces: khi + klo = scale * log2(e) to twice T's precision.
template <class T>
struct Logits {
  Similarity similarity;
  double scale;
  T khi, klo;
  bool large;  // which form of TileSums and TileWeights the kernels take
  // `reach`: no similarity is larger.
  Logits(Similarity similarity, double scale, double reach);
};

// The shift of a row's or column's exponentials from its largest similarity, -inf where it has none.
template <class T>
T softmax_shift(const Logits<T>& logits, T largest) {
  if (logits.large) return largest == -std::numeric_limits<T>::infinity() ? T(0) : largest;
  return std::isinf(largest) ? T(0) : std::ceil(largest * logits.khi);
}

// The reach of similarities that nobody has bounded.
inline constexpr double kAnyReach = std::numeric_limits<double>::infinity();

// The largest similarity of rows that are no longer than this.
inline double reach(Similarity similarity, double longest) {
  if (similarity == Similarity::kDistance) return 2 * longest;
  return longest * longest * (similarity == Similarity::kDot ? 1 : 4);
}

// A running sum of exp(scale * (u - top)) with the u-weighted and the plain sum of u beside it. A similarity and what
// is above it keep their digits at any scale; a log-sum-exp has none left for the sum where logits are large.
struct SoftmaxSum {
  double top = -std::numeric_limits<double>::infinity();
  double sum = 0, weighted = 0, plain = 0;
  void add(double scale, double other_top, double other_sum, double other_weighted, double other_plain);
  // Adds the sums that kernels.sums has made of one row or column of a tile.
  template <class T>
  void add_tile(const Logits<T>& logits, T shift, T tile_sum, T tile_weighted, T tile_plain) {
    const double tile_top = logits.large ? double(shift) : shift / (logits.scale * kLog2E);
    add(logits.scale, tile_top, tile_sum, logits.large ? tile_weighted + tile_top * tile_sum : tile_weighted,
        tile_plain);
  }
  double log_sum_above(double scale,
                       double u) const;  // log of the sum of exp(scale * (u_j - u)); -inf for an empty sum
  double mean() const;                   // softmax-weighted mean of u; 0 for an empty sum
  // Saves a softmax for backward: the similarity in T whose logit is nearest to the log-sum-exp, and log_sum_above it,
  // which is what the rounding has taken from it.
  template <class T>
  void save(double scale, T* similarity, T* log_sum) const {
    constexpr double most = std::numeric_limits<T>::max();
    *similarity = sum == 0 ? top : std::max(-most, std::min(most, top + std::log(sum) / scale));
    // 0 times what is not finite is NaN: gradients of a loss of NaN are NaN.
    *log_sum = log_sum_above(scale, *similarity) + 0 * weighted;
  }
};

// Rows x against columns y. Entry (i, excluded[i]) is left out. With `self`, x and y are the same rows: the diagonal is
// left out, and only entries above it are visited, each serving its row and, mirrored, its column.
template <class T>
struct Block {
  const Rows<T>& x;
  const Rows<T>& y;
  const int64_t* excluded = nullptr;
  bool self = false;
  bool cancelling = false;  // see ProductNeeds
};

// Adds the block to the softmax sums of its rows and, unless null, of its columns (self: both are the same array).
// `saved` (x.n, y.n), unless null, receives the similarities.
template <class T>
void add_sums(const Block<T>& block, const Logits<T>& logits, SoftmaxSum* rows, SoftmaxSum* columns, T* saved);

// log(1 + exp(x)) and its derivative: the loss of one positive against negatives x above it, and their share.
inline double softplus(double x) { return x > 0 ? x + std::log1p(std::exp(-x)) : std::log1p(std::exp(x)); }
inline double sigmoid(double x) { return x > 0 ? 1 / (1 + std::exp(-x)) : std::exp(x) / (1 + std::exp(x)); }

// The loss's derivative by logit (i, j), times scale: factor * e - offset, for the softmax of one side of the block,
// with the exponentials e of TileWeights.
template <class T>
struct SoftmaxGradient {
  std::vector<T> shift, factor, offset;
  // From a softmax as SoftmaxSum::save leaves it, its upstream weight and the constant subtracted from every entry. A
  // row that is not set has an infinite shift: its exponentials are 0, where from 0 they could overflow, and 0 * inf is
  // NaN.
  SoftmaxGradient(const Logits<T>& logits, int64_t n);
  void set(int64_t i, double similarity, double log_sum, double weight, double constant);

 private:
  double multiplier_, scale_;
  bool large_;
};

// dx += (d loss / d similarities) . y and dy += its transpose . x; either may be null. `columns` is null without the
// columns' softmax; with `self` it is the rows' own and dx receives both sides.
template <class T>
void add_gradients(const Block<T>& block, const Logits<T>& logits, const SoftmaxGradient<T>& rows,
                   const SoftmaxGradient<T>* columns, const T* saved, T* dx, T* dy);

}  // namespace cmx
