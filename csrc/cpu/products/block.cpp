#include "cpu/products/block.h"

#include <torch/headeronly/util/Exception.h>

#include <algorithm>
#include <cmath>

#include "common/parallel.h"
#include "cpu/products/products.h"
#include "cpu/simd/kernels.h"
#include "cpu/tensors/buffer.h"

namespace cmx {
namespace {

constexpr double kSafeExponent = 60;  // exp2 of sums within [-2 x 60, 0] neither overflows nor vanishes
// Up to this base-2 exponent exp2_parts tells whole number and fraction apart, with a factor of two to spare. Of double
// less: what is above a shift is found in double, and loses the digits that the shift has.
template <class T>
constexpr double kLargestShared = sizeof(T) == 4 ? 0x1p21 : 0x1p12;

// The walk over a block that both passes share: panels of rows, in each panel row tiles, in each tile columns.
template <class T>
struct Walk {
  const Block<T>& block;
  const int64_t tile_rows, panel_rows;

  Walk(const Block<T>& block, int64_t panel_rows)
      : block(block),
        tile_rows(rows_per_tile(block.x.n)),
        panel_rows(std::max(tile_rows, panel_rows / tile_rows * tile_rows)) {}

  // The first column tile with an entry that a tile starting at row i visits.
  int64_t first_column(int64_t i) const { return block.self ? (i + 1) / kTileCols * kTileCols : 0; }

  TileMask mask(int64_t i, int64_t rows, int64_t j, int64_t cols, int64_t* excluded, int64_t* lower) const {
    for (int64_t r = 0; r < rows; ++r) {
      if (block.excluded) excluded[r] = block.excluded[i + r] - j;
      if (block.self) lower[r] = i + r - j;
    }
    return {rows, cols, block.excluded ? excluded : nullptr, block.self ? lower : nullptr};
  }
};

// Similarities of tile (i, j) of the current panel into s.
template <class T>
void similarities(const Block<T>& block, Similarity similarity, Products<T>& products, int64_t panel,
                  const TileMask& mask, int64_t i, int64_t j, const T* column_square, T* s, int64_t lds) {
  products.scores(i - panel, mask.rows, j, mask.cols, s, lds);
  if (similarity != Similarity::kDot)
    best_kernels<T>().distance(mask, similarity == Similarity::kSquaredDistance, block.x.square.data() + i,
                               column_square + j, s, lds);
}

// An array with room for whole vectors after its end.
template <class T>
std::vector<T> padded(const std::vector<T>& values) {
  std::vector<T> result(values.size() + kPadding);
  std::copy(values.begin(), values.end(), result.begin());
  return result;
}

// Shifts from the Cauchy-Schwarz bound on each row's logits, which save the search for maxima; none where a softmax
// could vanish below the bound. Of distances, whose similarities are at most 0, the shift is 0.
template <class T>
std::vector<T> bounding_shifts(const Logits<T>& logits, const Rows<T>& x, const Rows<T>& y) {
  const double k = logits.scale * kLog2E;
  const bool dot = logits.similarity == Similarity::kDot;
  const double bound =
      dot ? double(x.max_norm) * y.max_norm
          : std::pow(double(x.max_norm) + y.max_norm, logits.similarity == Similarity::kDistance ? 1 : 2);
  if (logits.large || !(k * bound <= (dot ? kSafeExponent : 2 * kSafeExponent))) return {};
  std::vector<T> shifts(x.n + kPadding);
  for (int64_t i = 0; i < x.n && dot; ++i) shifts[i] = std::ceil(k * std::sqrt(double(x.square[i])) * y.max_norm);
  return shifts;
}

}  // namespace

Similarity parse_similarity(const std::string& name) {
  if (name == "dot") return Similarity::kDot;
  if (name == "l2") return Similarity::kDistance;
  STD_TORCH_CHECK(name == "sql2", "similarity must be 'dot', 'l2' or 'sql2', got ", name);
  return Similarity::kSquaredDistance;
}

template <class T>
Logits<T>::Logits(Similarity similarity, double scale, double reach)
    : similarity(similarity),
      scale(scale),
      // Of a scale within log2(e) of T's largest number the product is out of range.
      khi(std::min(scale * kLog2E, double(std::numeric_limits<T>::max()))),
      klo(scale * kLog2E - double(khi)),
      large(!(scale * kLog2E * reach <= kLargestShared<T>)) {}

void SoftmaxSum::add(double scale, double other_top, double other_sum, double other_weighted, double other_plain) {
  plain += other_plain;
  if (other_sum == 0) {
    weighted += 0 * other_weighted;  // a NaN, where a similarity is infinite
    return;
  }
  if (other_top == top) {
    sum += other_sum, weighted += other_weighted;
    return;
  }
  if (other_top > top) {
    const double ratio = std::exp(scale * (top - other_top));
    sum *= ratio, weighted *= ratio, top = other_top;
  }
  const double ratio = std::exp(scale * (other_top - top));
  sum += other_sum * ratio, weighted += other_weighted * ratio;
}

double SoftmaxSum::log_sum_above(double scale, double u) const {
  return sum == 0 ? -std::numeric_limits<double>::infinity() : scale * (top - u) + std::log(sum);
}

double SoftmaxSum::mean() const { return sum == 0 ? weighted : weighted / sum; }

template <class T>
void add_sums(const Block<T>& block, const Logits<T>& logits, SoftmaxSum* rows, SoftmaxSum* columns, T* saved) {
  const int64_t n = block.x.n, m = block.y.n;
  if (n == 0 || m == 0) return;
  const auto& kernels = best_kernels<T>();
  const Walk<T> walk(block, 8 * kTileRows);
  const auto products =
      make_products<T>(block.x, block.y, {.scores = true, .product = false, .transposed = false, .cancelling = false});
  const auto row_bound = bounding_shifts(logits, block.x, block.y),
             column_bound = bounding_shifts(logits, block.y, block.x);
  const bool bounded = !row_bound.empty();
  const auto column_square = padded(block.y.square);

  // Column sums of each row tile of a panel, added in order once the panel is done.
  const int64_t stride = m + kPadding, tiles = ceil_div(std::min(walk.panel_rows, n), walk.tile_rows);
  Buffer<T> partial(columns ? 4 * tiles * stride : 0);

  for (int64_t panel = 0; panel < n; panel += walk.panel_rows) {
    const int64_t height = std::min(walk.panel_rows, n - panel);
    products->set_panel(panel, height);
    run_tasks(ceil_div(height, walk.tile_rows), [&](int64_t tile) {
      const int64_t i = panel + tile * walk.tile_rows, tile_rows = std::min(walk.tile_rows, n - i);
      constexpr int64_t lds = kTileCols + kPadding;
      Buffer<T> scratch(kTileRows * lds), row_sums(4 * kTileRows), col_max(lds);
      int64_t excluded[kTileRows], lower[kTileRows];
      T *row_shift = row_sums.data(), *row_sum = row_shift + kTileRows;
      for (int64_t j = walk.first_column(i); j < m; j += kTileCols) {
        const int64_t cols = std::min(kTileCols, m - j);
        const TileMask mask = walk.mask(i, tile_rows, j, cols, excluded, lower);
        T* u = scratch.data();
        similarities(block, logits.similarity, *products, panel, mask, i, j, column_square.data(), u, lds);
        if (saved)
          for (int64_t r = 0; r < tile_rows; ++r) std::copy_n(u + r * lds, cols, saved + (i + r) * m + j);

        T* part = columns ? partial.data() + 4 * tile * stride + j : nullptr;
        if (bounded) {
          std::copy_n(row_bound.data() + i, tile_rows, row_shift);
          if (columns) std::copy_n(column_bound.data() + j, cols, part);
        } else {
          kernels.maxima(mask, u, lds, row_shift, columns ? col_max.data() : nullptr);
          for (int64_t r = 0; r < tile_rows; ++r) row_shift[r] = softmax_shift(logits, row_shift[r]);
          for (int64_t c = 0; c < cols && columns; ++c) part[c] = softmax_shift(logits, col_max.data()[c]);
        }
        TileSums<T> sums = {logits.khi,
                            logits.klo,
                            logits.large,
                            row_shift,
                            part,
                            row_sum,
                            row_sum + kTileRows,
                            row_sum + 2 * kTileRows,
                            nullptr,
                            nullptr,
                            nullptr};
        if (columns)
          sums.col_sum = part + stride, sums.col_weighted = part + 2 * stride, sums.col_plain = part + 3 * stride;
        kernels.sums(mask, sums, u, lds);
        for (int64_t r = 0; r < tile_rows; ++r)
          rows[i + r].add_tile(logits, row_shift[r], row_sum[r], row_sum[kTileRows + r], row_sum[2 * kTileRows + r]);
      }
    });
    if (!columns) continue;
    run_tasks(ceil_div(m, kTileCols), [&](int64_t column_tile) {
      const int64_t begin = column_tile * kTileCols, end = std::min(m, begin + kTileCols);
      for (int64_t tile = 0; tile < ceil_div(height, walk.tile_rows); ++tile) {
        if (begin < walk.first_column(panel + tile * walk.tile_rows)) continue;
        const T* part = partial.data() + 4 * tile * stride;
        for (int64_t j = begin; j < end; ++j)
          columns[j].add_tile(logits, part[j], part[stride + j], part[2 * stride + j], part[3 * stride + j]);
      }
    });
  }
}

template <class T>
SoftmaxGradient<T>::SoftmaxGradient(const Logits<T>& logits, int64_t n)
    : shift(n + kPadding, std::numeric_limits<T>::infinity()),
      factor(n + kPadding),
      offset(n + kPadding),
      scale_(logits.scale),
      large_(logits.large) {
  // d logit / d (x . y) = scale; d(-scale |x - y|^2) / d (x . y) = 2 scale; of the distance -scale / u, divided later.
  switch (logits.similarity) {
    case Similarity::kDot:
      multiplier_ = logits.scale;
      break;
    case Similarity::kDistance:
      multiplier_ = -logits.scale;
      break;
    case Similarity::kSquaredDistance:
      multiplier_ = 2 * logits.scale;
      break;
  }
}

template <class T>
void SoftmaxGradient<T>::set(int64_t i, double similarity, double log_sum, double weight, double constant) {
  offset[i] = multiplier_ * constant;
  if (weight == 0) return;
  if (large_) {
    shift[i] = similarity;
    factor[i] = multiplier_ * weight * std::exp(-log_sum);
    return;
  }
  // An integral shift keeps exp2's argument exact; the rest of the normaliser goes into the factor.
  const double exponent = (scale_ * similarity + log_sum) * kLog2E;
  shift[i] = std::round(exponent);
  factor[i] = multiplier_ * weight * std::exp2(std::round(exponent) - exponent);
}

template <class T>
void add_gradients(const Block<T>& block, const Logits<T>& logits, const SoftmaxGradient<T>& rows,
                   const SoftmaxGradient<T>* columns, const T* saved, T* dx, T* dy) {
  const int64_t n = block.x.n, m = block.y.n, d = block.x.d;
  if (n == 0 || m == 0) return;
  if (block.self) dy = dx;
  const auto& kernels = best_kernels<T>();
  const bool distances = logits.similarity != Similarity::kDot;
  // Derivatives lie tile by tile, so that reading a tile down its columns stays within few pages.
  constexpr int64_t kTile = kTileRows * kTileCols;
  const int64_t column_tiles = ceil_div(m, kTileCols), stride = m + kPadding;
  // Without dy nothing outlives a tile, and one panel takes all rows.
  const Walk<T> walk(block, dy ? kPanelBytes / (column_tiles * kTileCols * int64_t(sizeof(T))) : n + kTileRows);
  const auto products = make_products<T>(
      block.x, block.y,
      {.scores = !saved, .product = dx != nullptr, .transposed = dy != nullptr, .cancelling = block.cancelling});
  const auto column_square = padded(block.y.square);
  const int64_t height_limit = std::min(walk.panel_rows, n), tiles = ceil_div(height_limit, walk.tile_rows);
  Buffer<T> derivatives(dy ? tiles * column_tiles * kTile : 0);
  // Sums of the derivatives over rows and columns: a distance's gradient is sum_j v_ij (y_j - x_i).
  std::vector<double> row_total(distances ? n : 0), column_total(distances && dy ? m : 0);
  std::vector<T> partial(distances && dy ? tiles * stride : 0);

  for (int64_t panel = 0; panel < n; panel += walk.panel_rows) {
    const int64_t height = std::min(walk.panel_rows, n - panel);
    products->set_panel(panel, height);
    run_tasks(ceil_div(height, walk.tile_rows), [&](int64_t tile) {
      const int64_t i = panel + tile * walk.tile_rows, tile_rows = std::min(walk.tile_rows, n - i);
      constexpr int64_t lds = kTileCols + kPadding;
      Buffer<T> scratch(kTileRows * lds), unkept(dy ? 0 : kTile), unused_columns(lds);
      T row_sum[kTileRows];
      int64_t excluded[kTileRows], lower[kTileRows];
      for (int64_t j = walk.first_column(i); j < m; j += kTileCols) {
        const int64_t cols = std::min(kTileCols, m - j);
        const TileMask mask = walk.mask(i, tile_rows, j, cols, excluded, lower);
        T* u = scratch.data();
        if (saved)
          for (int64_t r = 0; r < tile_rows; ++r) std::copy_n(saved + (i + r) * m + j, cols, u + r * lds);
        else
          similarities(block, logits.similarity, *products, panel, mask, i, j, column_square.data(), u, lds);

        T* v = dy ? derivatives.data() + (tile * column_tiles + j / kTileCols) * kTile : unkept.data();
        TileWeights<T> weights = {logits.khi,
                                  logits.klo,
                                  logits.large,
                                  rows.shift.data() + i,
                                  rows.factor.data() + i,
                                  rows.offset.data() + i,
                                  nullptr,
                                  nullptr,
                                  nullptr,
                                  logits.similarity == Similarity::kDistance,
                                  nullptr,
                                  nullptr};
        if (columns) {
          weights.col_shift = columns->shift.data() + j;
          weights.col_factor = columns->factor.data() + j;
          weights.col_offset = columns->offset.data() + j;
        }
        if (distances) {
          weights.row_sum = row_sum;
          weights.col_sum = dy ? partial.data() + tile * stride + j : unused_columns.data();
        }
        kernels.weights(mask, weights, u, lds, v, kTileCols);
        for (int64_t r = 0; r < tile_rows && distances; ++r) row_total[i + r] += row_sum[r];
        if (dx) products->add_product(tile_rows, j, cols, v, kTileCols, dx + i * d);
      }
    });
    if (!dy) continue;
    run_tasks(ceil_div(m, kTaskColumns), [&](int64_t task) {
      const int64_t begin = task * kTaskColumns, cols = std::min(kTaskColumns, m - begin);
      for (int64_t tile = 0; tile < ceil_div(height, walk.tile_rows); ++tile) {
        const int64_t i = tile * walk.tile_rows;
        if (begin < walk.first_column(panel + i)) continue;
        const T* v = derivatives.data() + (tile * column_tiles + begin / kTileCols) * kTile + begin % kTileCols;
        products->add_transposed(i, std::min(walk.tile_rows, height - i), cols, v, kTileCols, dy + begin * d);
        for (int64_t j = begin; j < begin + cols && distances; ++j) column_total[j] += partial[tile * stride + j];
      }
    });
  }
  if (!distances) return;
  const auto subtract = [&](const std::vector<double>& total, const Rows<T>& points, T* gradient) {
    run_tasks(ceil_div(points.n, kTileRows), [&](int64_t task) {
      for (int64_t i = task * kTileRows; i < std::min(points.n, (task + 1) * kTileRows); ++i)
        for (int64_t p = 0; p < d; ++p) gradient[i * d + p] -= T(total[i]) * points.row(i)[p];
    });
  };
  if (dx) subtract(row_total, block.x, dx);
  if (dy) subtract(column_total, block.y, dy);
}

template struct Logits<float>;
template struct Logits<double>;
template struct SoftmaxGradient<float>;
template struct SoftmaxGradient<double>;
template void add_sums(const Block<float>&, const Logits<float>&, SoftmaxSum*, SoftmaxSum*, float*);
template void add_sums(const Block<double>&, const Logits<double>&, SoftmaxSum*, SoftmaxSum*, double*);
template void add_gradients(const Block<float>&, const Logits<float>&, const SoftmaxGradient<float>&,
                            const SoftmaxGradient<float>*, const float*, float*, float*);
template void add_gradients(const Block<double>&, const Logits<double>&, const SoftmaxGradient<double>&,
                            const SoftmaxGradient<double>*, const double*, double*, double*);

}  // namespace cmx
