// Softmax sums over one block of similarities and the gradients through them, without the block in memory.
#pragma once

#include <cmath>
#include <cstdint>
#include <limits>
#include <string>
#include <vector>

#include "rows.h"

namespace cmx {

enum class Similarity { kDot, kDistance, kSquaredDistance };
Similarity parse_similarity(const std::string& name);  // "dot", "l2" or "sql2"

// logit = scale * u, with the base-2 exponent in two pieces: khi + klo = scale * log2(e) to twice T's precision.
template <class T>
struct Logits {
  Similarity similarity;
  double scale;
  T khi, klo;
  Logits(Similarity similarity, double scale);
};

// A running sum of exp2(logit * log2(e) - shift) with the u-weighted and the plain sum of u beside it.
struct SoftmaxSum {
  double shift = -std::numeric_limits<double>::infinity();
  double sum = 0, weighted = 0, plain = 0;
  void add(double other_shift, double other_sum, double other_weighted, double other_plain);
  double log_sum_exp() const;  // natural logarithm; -inf for an empty sum
  double mean() const;         // softmax-weighted mean of u; 0 for an empty sum
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

// The loss's derivative by logit (i, j), times scale: factor * exp2(z log2(e) - shift) - offset, for the softmax of one
// side of the block.
template <class T>
struct SoftmaxGradient {
  std::vector<T> shift, factor, offset;
  // From log-sum-exp L, upstream weights w of the softmax and the constant b subtracted from every entry. A row that
  // is not set has an infinite shift: its exponentials are 0, where from 0 they could overflow and 0 * inf is NaN.
  SoftmaxGradient(const Logits<T>& logits, int64_t n);
  void set(int64_t i, double log_sum_exp, double weight, double constant);

 private:
  double multiplier_;
};

// dx += (d loss / d similarities) . y and dy += its transpose . x; either may be null. `columns` is null without the
// columns' softmax; with `self` it is the rows' own and dx receives both sides.
template <class T>
void add_gradients(const Block<T>& block, const Logits<T>& logits, const SoftmaxGradient<T>& rows,
                   const SoftmaxGradient<T>* columns, const T* saved, T* dx, T* dy);

}  // namespace cmx
