// The tile kernels in the vectors of simd.h. Included once per instruction set, in a namespace of its own
// (CMX_NAMESPACE), because the same source must exist in several compilations of one library.
//
// Products: a micro-kernel owns kMicroRows x (two vectors) of the result in registers and walks the summed dimension; b
// comes from a packed panel, which stays in the first-level cache while all rows go over it. Sums are in chains of at
// most kChain, added to each other in T. Edges are made in a buffer and copied, so no kernel reads or writes beyond a
// row's padding.
#pragma once

#include "cpu/simd/kernels.h"
#include "cpu/simd/simd.h"

namespace cmx::CMX_NAMESPACE {
namespace {

// Rows of a micro-kernel's block: its accumulators (two vectors a row) and operands fill the registers.
inline constexpr int kMicroRows = CMX_VECTOR_BYTES == 64 ? 12 : CMX_VECTOR_BYTES == 32 ? 6 : 4;
template <class T>
inline constexpr int kPanel = 2 * kLanes<T>;
// Products are summed in chains of at most this length: a panel of b then stays in the first-level cache. Scores, whose
// error an exponential magnifies, in shorter ones: rounding grows with a chain's length.
inline constexpr int64_t kChain = 256, kScoreChain = 128;

// c (R, kPanel) (+)= a (R, k) . b (k, kPanel). a is row-major, or column-major when `transposed`.
template <class T, int R, bool transposed>
inline void micro(int64_t k, const T* a, int64_t lda, const T* b, T* c, int64_t ldc, bool accumulate) {
  Vec<T> acc[R][2] = {};
  // A base pointer every three rows: the other two are one scaled index away.
  const T* base[(R + 2) / 3];
  for (int g = 0; g < (R + 2) / 3; ++g) base[g] = transposed ? a + 3 * g : a + 3 * g * lda;
  for (int64_t p = 0; p < k; ++p) {
    const Vec<T> b0 = load(b), b1 = load(b + kLanes<T>);
    b += kPanel<T>;
#pragma GCC unroll 16
    for (int i = 0; i < R; ++i) {
      const Vec<T> x = broadcast<T>(transposed ? base[i / 3][i % 3] : base[i / 3][(i % 3) * lda]);
      acc[i][0] += x * b0;
      acc[i][1] += x * b1;
    }
#pragma GCC unroll 16
    for (int g = 0; g < (R + 2) / 3; ++g) base[g] += transposed ? lda : 1;
  }
  for (int i = 0; i < R; ++i, c += ldc) {
    store(c, accumulate ? load(c) + acc[i][0] : acc[i][0]);
    store(c + kLanes<T>, accumulate ? load(c + kLanes<T>) + acc[i][1] : acc[i][1]);
  }
}

template <class T, int R, bool transposed>
inline void micro_rows(int64_t rows, int64_t k, const T* a, int64_t lda, const T* b, T* c, int64_t ldc, bool acc) {
  if (rows == R) return micro<T, R, transposed>(k, a, lda, b, c, ldc, acc);
  if constexpr (R > 1) micro_rows<T, R - 1, transposed>(rows, k, a, lda, b, c, ldc, acc);
}

// c (m, n) (+)= a . packed, packed in panels [ceil(n / kPanel)][stride][kPanel] of which k rows are read.
template <class T, bool transposed>
void product(int64_t m, int64_t n, int64_t k, const T* a, int64_t lda, const T* packed, int64_t stride, T* c,
             int64_t ldc, bool accumulate, bool padded, int64_t longest = kChain) {
  constexpr int64_t panel = kPanel<T>;
  T edge[kMicroRows * panel];
  const int64_t chains = (k + longest - 1) / longest;
  const int64_t chain = chains ? (k + chains - 1) / chains : 0;
  for (int64_t p = 0; p < k; p += chain) {
    const int64_t length = chain < k - p ? chain : k - p;
    for (int64_t j = 0; j < n; j += panel) {
      const T* b = packed + j * stride + p * panel;
      const int64_t cols = n - j < panel ? n - j : panel;
      for (int64_t i = 0; i < m; i += kMicroRows) {
        const int64_t rows = m - i < kMicroRows ? m - i : kMicroRows;
        const T* ai = transposed ? a + p * lda + i : a + i * lda + p;
        T* ci = c + i * ldc + j;
        const bool add = accumulate || p > 0;
        if (padded || cols == panel) {
          micro_rows<T, kMicroRows, transposed>(rows, length, ai, lda, b, ci, ldc, add);
          continue;
        }
        micro_rows<T, kMicroRows, transposed>(rows, length, ai, lda, b, edge, panel, false);
        for (int64_t r = 0; r < rows; ++r)
          for (int64_t q = 0; q < cols; ++q) ci[r * ldc + q] = (add ? ci[r * ldc + q] : 0) + edge[r * panel + q];
      }
    }
  }
}

template <class T>
void pack_columns(const T* y, int64_t n, int64_t d, T* packed) {
  constexpr int64_t panel = kPanel<T>;
  for (int64_t j = 0; j < n; j += panel, packed += d * panel) {
    const int64_t cols = n - j < panel ? n - j : panel;
    for (int64_t p = 0; p < d; ++p) {
      for (int64_t q = 0; q < cols; ++q) packed[p * panel + q] = y[(j + q) * d + p];
      for (int64_t q = cols; q < panel; ++q) packed[p * panel + q] = 0;
    }
  }
}

template <class T>
void pack_rows(const T* y, int64_t n, int64_t d, int64_t stride, T* packed) {
  constexpr int64_t panel = kPanel<T>;
  for (int64_t j = 0; j < d; j += panel, packed += stride * panel) {
    const int64_t cols = d - j < panel ? d - j : panel;
    for (int64_t p = 0; p < n; ++p) {
      std::memcpy(packed + p * panel, y + p * d + j, cols * sizeof(T));
      for (int64_t q = cols; q < panel; ++q) packed[p * panel + q] = 0;
    }
  }
}

template <class T>
void scores(int64_t m, int64_t n, int64_t d, const T* x, const T* packed, T* s, int64_t lds) {
  if (d == 0) {
    for (int64_t i = 0; i < m; ++i) std::memset(s + i * lds, 0, n * sizeof(T));
    return;
  }
  product<T, false>(m, n, d, x, d, packed, d, s, lds, false, true, kScoreChain);
}

template <class T>
void add_product(int64_t m, int64_t n, int64_t d, const T* v, int64_t ldv, const T* packed, int64_t stride, T* c) {
  product<T, false>(m, d, n, v, ldv, packed, stride, c, d, true, false);
}

template <class T>
void add_transposed(int64_t m, int64_t n, int64_t d, const T* v, int64_t ldv, const T* packed, int64_t stride, T* c) {
  product<T, true>(m, d, n, v, ldv, packed, stride, c, d, true, false);
}

template <class T>
double dot(const T* a, const T* b, int64_t d) {
  // As many chains as the compiler's vectors want: double additions may not be reordered otherwise.
  constexpr int chains = 4 * CMX_VECTOR_BYTES / sizeof(double);
  double sums[chains] = {}, total = 0;
  int64_t p = 0;
  for (; p + chains <= d; p += chains)
    for (int q = 0; q < chains; ++q) sums[q] += double(a[p + q]) * double(b[p + q]);
  for (; p < d; ++p) total += double(a[p]) * double(b[p]);
  // In halves: one after the other costs as many latencies as there are chains.
  for (int width = chains / 2; width; width /= 2)
    for (int q = 0; q < width; ++q) sums[q] += sums[q + width];
  return total + sums[0];
}

template <class T>
inline int64_t whole_vectors(int64_t n) {
  return (n + kLanes<T> - 1) / kLanes<T> * kLanes<T>;
}

// Runs body(column, keep) over the vectors of row i; keep is all ones in the lanes of the entries that count.
template <class T, class Body>
inline void for_columns(const TileMask& mask, int64_t i, const Body& body) {
  constexpr int64_t lanes = kLanes<T>;
  const int64_t excluded = mask.excluded ? mask.excluded[i] : -1;
  const int64_t lower = mask.lower ? mask.lower[i] : -1;
  // Vectors wholly at or below `lower` still run, masked out: outputs must be written for every column.
  for (int64_t j = 0; j < mask.cols; j += lanes) {
    Int<T> keep = ~Int<T>{};
    if (j + lanes > mask.cols || j <= lower || (j <= excluded && excluded < j + lanes)) {
      const Int<T> column = iota<T>() + typename Simd<T>::Bits(j);
      const auto at = [](int64_t x) { return typename Simd<T>::Bits(x) - Int<T>{}; };
      keep = (column > at(lower)) & (column < at(mask.cols)) & (column != at(excluded));
    }
    body(j, keep);
  }
}

template <class T>
void distance(const TileMask& mask, bool squared, const T* row_square, const T* col_square, T* s, int64_t lds) {
  constexpr int64_t lanes = kLanes<T>;
  // Below the rounding of the products a distance is noise; it counts as the same point.
  constexpr T rounding = sizeof(T) == 4 ? T(4.8e-7) : T(8.9e-16);
  for (int64_t i = 0; i < mask.rows; ++i, s += lds) {
    for (int64_t j = 0; j < mask.cols; j += lanes) {
      const Vec<T> total = load(col_square + j) + row_square[i];
      const Vec<T> square = total - 2 * load(s + j);
      // "not below" keeps NaN.
      Vec<T> u = square < total * rounding ? Vec<T>{} : -square;
      if (!squared)
        for (int64_t q = 0; q < lanes; ++q) u[q] = -__builtin_sqrt(-u[q]);
      store(s + j, u);
    }
  }
}

template <class T>
void maxima(const TileMask& mask, const T* u, int64_t ldu, T* row_max, T* col_max) {
  constexpr T lowest = -__builtin_inf();
  if (col_max)
    for (int64_t j = 0; j < whole_vectors<T>(mask.cols); ++j) col_max[j] = lowest;
  for (int64_t i = 0; i < mask.rows; ++i, u += ldu) {
    Vec<T> best = broadcast<T>(lowest);
    for_columns<T>(mask, i, [&](int64_t j, Int<T> keep) {
      const Vec<T> x = keep ? load(u + j) : broadcast<T>(lowest);
      best = x > best ? x : best;
      if (col_max) store(col_max + j, x > load(col_max + j) ? x : load(col_max + j));
    });
    row_max[i] = lowest;
    for (int q = 0; q < kLanes<T>; ++q) row_max[i] = best[q] > row_max[i] ? best[q] : row_max[i];
  }
}

// exp2(u * k - shift) of one entry for its row and for its column, in either form that TileSums describes.
template <class T, bool large>
struct Exponentials {
  Vec<T> u, e, n;
  T khi, klo;

  Exponentials(Vec<T> u, Int<T> keep, T khi, T klo) : u(u), khi(khi), klo(klo) {
    if (large) return;
    exp2_parts<T>(u, khi, klo, e, n);
    // Not e = 0: the power that a masked entry is far below a shift of could be infinite.
    n = keep ? n : broadcast<T>(-__builtin_inf());
  }
  Vec<T> shifted(Vec<T> shift, Int<T> keep) const {
    if (!large) return scale_by_power<T>(e, n - shift);
    // Products that were computed in another order may lie above the shift by their rounding.
    const Vec<T> x = u - shift, below = x > 0 ? Vec<T>{} : x;
    return keep ? exp2_below<T>(below, khi, klo) : Vec<T>{};
  }
};

template <class T, bool columns, bool large>
void sums_of(const TileMask& mask, const TileSums<T>& out, const T* u, int64_t ldu) {
  if (columns) {
    const int64_t size = whole_vectors<T>(mask.cols) * sizeof(T);
    std::memset(out.col_sum, 0, size);
    std::memset(out.col_weighted, 0, size);
    std::memset(out.col_plain, 0, size);
  }
  for (int64_t i = 0; i < mask.rows; ++i, u += ldu) {
    Vec<T> sum{}, weighted{}, plain{};
    const Vec<T> shift = broadcast<T>(out.row_shift[i]);
    for_columns<T>(mask, i, [&](int64_t j, Int<T> keep) {
      const Vec<T> x = keep ? load(u + j) : Vec<T>{};
      const Exponentials<T, large> exponentials(x, keep, out.khi, out.klo);
      const auto measured = [&](Vec<T> from) { return large ? (keep ? x - from : Vec<T>{}) : x; };
      const Vec<T> row = exponentials.shifted(shift, keep);
      sum += row;
      weighted += row * measured(shift);
      plain += x;
      if (columns) {
        const Vec<T> top = load(out.col_shift + j), col = exponentials.shifted(top, keep);
        store(out.col_sum + j, load(out.col_sum + j) + col);
        store(out.col_weighted + j, load(out.col_weighted + j) + col * measured(top));
        store(out.col_plain + j, load(out.col_plain + j) + x);
      }
    });
    out.row_sum[i] = horizontal_sum<T>(sum);
    out.row_weighted[i] = horizontal_sum<T>(weighted);
    out.row_plain[i] = horizontal_sum<T>(plain);
  }
}

template <class T>
void sums(const TileMask& mask, const TileSums<T>& out, const T* u, int64_t ldu) {
  if (out.large)
    out.col_sum ? sums_of<T, true, true>(mask, out, u, ldu) : sums_of<T, false, true>(mask, out, u, ldu);
  else
    out.col_sum ? sums_of<T, true, false>(mask, out, u, ldu) : sums_of<T, false, false>(mask, out, u, ldu);
}

template <class T, bool large, bool columns, bool distances>
void weights_of(const TileMask& mask, const TileWeights<T>& in, const T* u, int64_t ldu, T* v, int64_t ldv) {
  if (distances) std::memset(in.col_sum, 0, whole_vectors<T>(mask.cols) * sizeof(T));
  constexpr Int<T> all = ~Int<T>{};  // v is masked as a whole
  for (int64_t i = 0; i < mask.rows; ++i, u += ldu, v += ldv) {
    const Vec<T> shift = broadcast<T>(in.row_shift[i]);
    Vec<T> sum{};
    for_columns<T>(mask, i, [&](int64_t j, Int<T> keep) {
      const Vec<T> x = keep ? load(u + j) : Vec<T>{};
      const Exponentials<T, large> exponentials(x, all, in.khi, in.klo);
      Vec<T> g = exponentials.shifted(shift, all) * in.row_factor[i] - in.row_offset[i];
      if (columns) {
        const Vec<T> col = exponentials.shifted(load(in.col_shift + j), all);
        g += col * load(in.col_factor + j) - load(in.col_offset + j);
      }
      if (distances && in.divide) g = x != 0 ? g / x : Vec<T>{};
      g = keep ? g : Vec<T>{};
      if (distances) {
        sum += g;
        store(in.col_sum + j, load(in.col_sum + j) + g);
      }
      store(v + j, g);
    });
    if (distances) in.row_sum[i] = horizontal_sum<T>(sum);
  }
}

template <class T, bool large>
void weights_in_form(const TileMask& mask, const TileWeights<T>& in, const T* u, int64_t ldu, T* v, int64_t ldv) {
  if (in.row_sum)
    in.col_shift ? weights_of<T, large, true, true>(mask, in, u, ldu, v, ldv)
                 : weights_of<T, large, false, true>(mask, in, u, ldu, v, ldv);
  else
    in.col_shift ? weights_of<T, large, true, false>(mask, in, u, ldu, v, ldv)
                 : weights_of<T, large, false, false>(mask, in, u, ldu, v, ldv);
}

template <class T>
void weights(const TileMask& mask, const TileWeights<T>& in, const T* u, int64_t ldu, T* v, int64_t ldv) {
  in.large ? weights_in_form<T, true>(mask, in, u, ldu, v, ldv) : weights_in_form<T, false>(mask, in, u, ldu, v, ldv);
}

}  // namespace

template <class T>
const Kernels<T>& tile_kernels() {
  static constexpr Kernels<T> table = {kPanel<T>,      pack_columns<T>,   scores<T>, pack_rows<T>,
                                       add_product<T>, add_transposed<T>, dot<T>,    distance<T>,
                                       maxima<T>,      sums<T>,           weights<T>};
  return table;
}

template const Kernels<float>& tile_kernels<float>();
template const Kernels<double>& tile_kernels<double>();

}  // namespace cmx::CMX_NAMESPACE
