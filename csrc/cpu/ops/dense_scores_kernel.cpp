// Dense scores on the CPU: every place of an item against every token of another, of which only a maximum stays.
//
// Forward: the real tokens of a group of key items are packed side by side as columns, some 1024 of them. A task owns
// one query item and one group: it walks the item's real tokens a tile of rows at a time, each head apart, and keeps of
// every column the largest product and its place (cpu/products/column_maxima.h). From those it makes the scores of its
// pairs, which nobody else writes. A group that has been packed serves all query items; as many are packed at a time as
// fit kPackedBytes. Masked tokens are left out before any product, so they cost nothing and nothing in them shows.
//
// Backward: a maximum hands its gradient to one place, so there is nothing to multiply but one pair of rows per column,
// 1 / P of the forward product. Two passes over the places: a task that owns some query items adds the key rows that
// chose their tokens, then a task that owns some key items adds the query rows that its tokens chose, both in the
// items' order. Nothing is shared between tasks of a pass. Places that were not kept are found again, a few query items
// at a time.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <cstdint>
#include <limits>
#include <optional>
#include <string>
#include <tuple>
#include <vector>

#include "common/checks.h"
#include "common/parallel.h"
#include "cpu/products/column_maxima.h"
#include "cpu/simd/elements.h"
#include "cpu/simd/kernels.h"
#include "cpu/tensors/buffer.h"
#include "cpu/tensors/rows.h"
#include "cpu/tiles/feature_tiles.h"

namespace cmx {
namespace {

constexpr int64_t kGroupTokens = 1024;      // columns of a task
constexpr int64_t kPackedBytes = 32 << 20;  // packed columns at a time
constexpr int64_t kRowBytes = 128 << 10;    // of a tile of rows: they stay in the second-level cache
constexpr int64_t kOwned = 2;               // items whose gradient a task sums: one read of the others serves them all
constexpr int64_t kPlaceBytes = 16 << 20;   // places found again at a time

enum class Pool { kMean, kSum, kMax };

Pool parse_pool(const std::string& pool) {
  if (pool == "mean") return Pool::kMean;
  if (pool == "sum") return Pool::kSum;
  STD_TORCH_CHECK(pool == "max", "pool must be mean, sum or max, got ", pool);
  return Pool::kMax;
}

// One side's items (items, tokens, d) and which of their tokens are real.
template <class T>
struct Side {
  FeatureTiles<T> tiles;  // a tile is an item
  int64_t items, tokens, d;
  std::vector<int32_t> real;   // numbers of the real tokens, item after item; empty without a mask
  std::vector<int64_t> begin;  // where an item's begin; one more at the end

  Side(const Tensor& x, const std::optional<Tensor>& mask, bool normalize)
      : tiles(x, normalize ? Normalize::kBounded : Normalize::kNo, std::max<int64_t>(1, x.size(1))),
        items(x.size(0)),
        tokens(x.size(1)),
        d(x.size(2)),
        begin(items + 1) {
    const bool* flags = mask ? static_cast<const bool*>(mask->data_ptr()) : nullptr;
    for (int64_t i = 0; i < items; ++i) {
      begin[i + 1] = begin[i] + tokens;
      if (!flags) continue;
      for (int64_t t = 0; t < tokens; ++t)
        if (flags[i * tokens + t]) real.push_back(int32_t(t));
      begin[i + 1] = int64_t(real.size());
    }
  }
  int64_t count(int64_t item) const { return begin[item + 1] - begin[item]; }
  int64_t token(int64_t item, int64_t index) const { return real.empty() ? index : real[begin[item] + index]; }

  // The real tokens' rows: where they lie if they do so side by side, else in one of the buffers.
  TileRows<T> load(int64_t item, Buffer<T>& converted, Buffer<T>& gathered) const {
    const TileRows<T> rows = tiles.load(item, converted);
    if (count(item) == tokens) return rows;
    gathered.resize(std::max<int64_t>(1, tokens * d));
    for (int64_t i = 0; i < count(item); ++i) std::copy_n(rows.row(token(item, i)), d, gathered.data() + i * d);
    return {gathered.data(), d};
  }
};

// Places (query items, key items, tokens) in the smallest integers that hold them.
class Places {
 public:
  Places(void* data, int64_t width) : data_(data), width_(width) {}
  explicit Places(const Tensor& tensor) : Places(tensor.data_ptr(), int64_t(tensor.element_size())) {}
  static int64_t width_for(int64_t places) { return places <= 256 ? 1 : places <= 32768 ? 2 : 4; }

  int64_t operator[](int64_t i) const {
    if (width_ == 1) return static_cast<const uint8_t*>(data_)[i];
    if (width_ == 2) return static_cast<const int16_t*>(data_)[i];
    return static_cast<const int32_t*>(data_)[i];
  }
  void set(int64_t i, int64_t place) const {
    if (width_ == 1)
      static_cast<uint8_t*>(data_)[i] = uint8_t(place);
    else if (width_ == 2)
      static_cast<int16_t*>(data_)[i] = int16_t(place);
    else
      static_cast<int32_t*>(data_)[i] = int32_t(place);
  }

 private:
  void* data_;
  int64_t width_;
};

// What a forward pass writes of its query items; null or none: unwanted.
template <class T>
struct Outputs {
  T* scores = nullptr;           // (query items, key items)
  std::optional<Places> places;  // (query items, key items, tokens), or one per pair for the maximum over tokens
  int32_t* token = nullptr;      // (query items, key items), of the maximum over tokens
};

struct Group {
  int64_t first, last;  // key items
  int64_t offset;       // of its packed columns
};

// The scores of one pair from its columns' maxima.
template <class T>
void finish_pair(const Side<T>& query, const Side<T>& key, Pool pool, int64_t heads, int64_t b, int64_t m,
                 const T* best, const Place<T>* place, int64_t pair, const Outputs<T>& out) {
  const int64_t count = key.count(m), real = query.count(b);
  const auto place_at = [&](int64_t j) {
    return real ? query.token(b, place[j] / heads) * heads + place[j] % heads : int64_t(0);
  };
  int64_t top = 0;
  double total = 0;
  for (int64_t j = 0; j < count; ++j) {
    if (pool != Pool::kMax)
      total += best[j];
    else if (!(best[j] <= best[top]) && best[top] == best[top])
      top = j;
  }
  if (out.scores) {
    // A pair without a token on either side has no maximum.
    const double score = pool == Pool::kMax    ? double(count ? best[top] : T(0))
                         : pool == Pool::kMean ? total / double(count)
                                               : total;
    out.scores[pair] = real && count ? T(score) : std::numeric_limits<T>::quiet_NaN();
  }
  if (pool == Pool::kMax) {
    if (out.token) out.token[pair] = count ? int32_t(key.token(m, top)) : 0;
    if (out.places) out.places->set(pair, count ? place_at(top) : 0);
  } else if (out.places) {
    for (int64_t t = 0; count < key.tokens && t < key.tokens; ++t) out.places->set(pair * key.tokens + t, 0);
    for (int64_t j = 0; j < count; ++j) out.places->set(pair * key.tokens + key.token(m, j), place_at(j));
  }
}

// Query items [begin, end) against all key items; outputs count from `begin`.
template <class T>
void forward(const Side<T>& query, const Side<T>& key, Pool pool, int64_t heads, int64_t begin, int64_t end,
             const Outputs<T>& out) {
  const auto& kernels = best_kernels<T>();
  const auto& maxima = best_maxima_kernels<T>();
  const int64_t d = query.d, panel = kernels.panel;
  const int64_t most_columns = std::max<int64_t>(1, kPackedBytes / (std::max<int64_t>(1, d) * int64_t(sizeof(T))));
  const int64_t tile_rows = std::max<int64_t>(12, kRowBytes / (std::max<int64_t>(1, d) * int64_t(sizeof(T))) / 12 * 12);
  Buffer<T> packed;
  for (int64_t next = 0; next < key.items;) {
    std::vector<Group> groups;
    int64_t columns = 0;
    while (next < key.items && (groups.empty() || columns < most_columns)) {
      Group group{next, next, columns};
      int64_t tokens = 0;
      do tokens += key.count(group.last++);
      while (group.last < key.items && tokens + key.count(group.last) <= kGroupTokens);
      next = group.last, columns += round_up(tokens, panel);
      groups.push_back(group);
    }
    if (packed.size() < columns * d) packed.resize(columns * d);
    const auto width = [&](const Group& group) { return key.begin[group.last] - key.begin[group.first]; };
    run_tasks(int64_t(groups.size()), [&](int64_t task) {
      const Group& group = groups[task];
      Buffer<T> rows(std::max<int64_t>(1, width(group) * d)), converted, gathered;
      T* row = rows.data();
      for (int64_t m = group.first; m < group.last; ++m) {
        const TileRows<T> item = key.load(m, converted, gathered);
        for (int64_t i = 0; i < key.count(m); ++i, row += d) std::copy_n(item.row(i), d, row);
      }
      kernels.pack_columns(rows.data(), width(group), d, packed.data() + group.offset * d);
    });
    run_tasks((end - begin) * int64_t(groups.size()), [&](int64_t task) {
      const int64_t b = begin + task / int64_t(groups.size());
      const Group& group = groups[task % int64_t(groups.size())];
      Buffer<T> converted, gathered, best(round_up(width(group), panel) + 1);
      Buffer<Place<T>> place(round_up(width(group), panel) + 1);
      std::fill_n(best.data(), best.size(), -std::numeric_limits<T>::infinity());
      std::fill_n(place.data(), place.size(), Place<T>(0));
      const TileRows<T> rows = query.load(b, converted, gathered);
      for (int64_t i = 0; i < query.count(b); i += tile_rows)
        maxima.column_maxima({rows.row(i), std::min(tile_rows, query.count(b) - i), rows.stride, i,
                              packed.data() + group.offset * d, width(group), heads, d / heads, best.data(),
                              place.data()});
      for (int64_t m = group.first; m < group.last; ++m) {
        const int64_t column = key.begin[m] - key.begin[group.first], pair = (b - begin) * key.items + m;
        finish_pair(query, key, pool, heads, b, m, best.data() + column, place.data() + column, pair, out);
      }
    });
  }
}

// All rows of one side in T: where they lie if they can be read there, else a copy.
template <class T>
class AllRows {
 public:
  AllRows(const Side<T>& side, bool normalize) : rows_(side.items), tokens_(side.tokens), d_(side.d) {
    const bool in_place = side.tiles.in_place();
    if (!in_place) copy_.resize(std::max<int64_t>(1, side.items * tokens_ * d_));
    if (normalize) inverse_norm_.resize(side.items * tokens_);
    run_tasks(side.items, [&](int64_t i) {
      Buffer<T> buffer;
      rows_[i] = side.tiles.load(i, buffer, normalize ? inverse_norm_.data() + i * tokens_ : nullptr);
      if (in_place) return;
      T* own = copy_.data() + i * tokens_ * d_;
      std::copy_n(rows_[i].data, tokens_ * d_, own);
      rows_[i] = {own, d_};
    });
  }
  const T* row(int64_t item, int64_t token) const { return rows_[item].row(token); }
  T inverse_norm(int64_t item, int64_t token) const { return inverse_norm_[item * tokens_ + token]; }
  bool normalized() const { return !inverse_norm_.empty(); }

 private:
  std::vector<TileRows<T>> rows_;
  Buffer<T> copy_;
  std::vector<T> inverse_norm_;
  int64_t tokens_, d_;
};

// Where the gradient of one side is summed: the tensor itself if that holds rows of T, else a buffer.
template <class T>
class SideGradient {
 public:
  SideGradient(const Tensor& tensor, const Side<T>& side) : tensor_(tensor), side_(side) {
    in_place_ = tensor.scalar_type() == (sizeof(T) == 4 ? ScalarType::Float : ScalarType::Double) &&
                (tensor.stride(2) == 1 || side.d < 2);
    if (!in_place_) buffer_.resize(std::max<int64_t>(1, side.items * side.tokens * side.d));
    data_ = in_place_ ? static_cast<T*>(tensor.data_ptr()) : buffer_.data();
    item_stride_ = in_place_ ? tensor.stride(0) : side.tokens * side.d;
    token_stride_ = in_place_ ? tensor.stride(1) : side.d;
  }
  T* row(int64_t item, int64_t token) const { return data_ + item * item_stride_ + token * token_stride_; }
  void clear(int64_t item) {
    for (int64_t t = 0; t < side_.tokens; ++t) std::fill_n(row(item, t), side_.d, T(0));
  }
  void finish(int64_t item, const AllRows<T>& rows) {
    // Of masked tokens the gradient is 0, whatever their norm.
    for (int64_t i = 0; rows.normalized() && i < side_.count(item); ++i) {
      const int64_t t = side_.token(item, i);
      undo_normalization(rows.row(item, t), rows.inverse_norm(item, t), side_.d, row(item, t));
    }
    if (!in_place_) side_.tiles.store(item, row(item, 0), tensor_);
  }

 private:
  const Tensor tensor_;
  const Side<T>& side_;
  Buffer<T> buffer_;
  T* data_;
  int64_t item_stride_, token_stride_;
  bool in_place_;
};

template <class T>
std::tuple<Tensor, Tensor, Tensor> run_forward(const Tensor& query, const Tensor& key,
                                               const std::optional<Tensor>& query_mask,
                                               const std::optional<Tensor>& key_mask, Pool pool, int64_t heads,
                                               bool normalize, bool keep) {
  const Side<T> q(query, query_mask, normalize), k(key, key_mask, normalize);
  const bool maximum = pool == Pool::kMax;
  const int64_t width = Places::width_for(q.tokens * heads);
  const ScalarType wide = sizeof(T) == 8 ? ScalarType::Double : ScalarType::Float,
                   narrow = width == 1   ? ScalarType::Byte
                            : width == 2 ? ScalarType::Short
                                         : ScalarType::Int;
  const Tensor scores = torch::stable::new_empty(query, {q.items, k.items}, wide),
               place = keep ? torch::stable::new_empty(query, {q.items, k.items, maximum ? 1 : k.tokens}, narrow)
                            : torch::stable::new_empty(query, {0}, ScalarType::Int),
               token = keep && maximum ? torch::stable::new_empty(query, {q.items, k.items}, ScalarType::Int)
                                       : torch::stable::new_empty(query, {0}, ScalarType::Int);
  Outputs<T> out;
  out.scores = static_cast<T*>(scores.data_ptr());
  if (keep) out.places = Places(place);
  if (keep && maximum) out.token = static_cast<int32_t*>(token.data_ptr());
  forward(q, k, pool, heads, 0, q.items, out);
  return {scores, place, token};
}

template <class T>
std::tuple<Tensor, Tensor> run_backward(const Tensor& grad, const Tensor& query, const Tensor& key,
                                        const std::optional<Tensor>& query_mask, const std::optional<Tensor>& key_mask,
                                        const Tensor& place, const Tensor& token, Pool pool, int64_t heads,
                                        bool normalize, bool need_query, bool need_key) {
  const Side<T> q(query, query_mask, normalize), k(key, key_mask, normalize);
  const Tensor dquery = need_query ? torch::stable::empty_like(query) : torch::stable::new_empty(query, {0}),
               dkey = need_key ? torch::stable::empty_like(key) : torch::stable::new_empty(key, {0});
  const auto& maxima = best_maxima_kernels<T>();
  const AllRows<T> query_rows(q, normalize), key_rows(k, normalize);
  std::optional<SideGradient<T>> dq, dk;
  if (need_query) dq.emplace(dquery, q);
  if (need_key) dk.emplace(dkey, k);
  if (dq) run_tasks(q.items, [&](int64_t b) { dq->clear(b); });
  if (dk) run_tasks(k.items, [&](int64_t m) { dk->clear(m); });

  const bool maximum = pool == Pool::kMax, kept = place.numel() > 0;
  const int64_t per_pair = maximum ? 1 : k.tokens, width = Places::width_for(q.tokens * heads), part = q.d / heads;
  const int64_t per_query = std::max<int64_t>(1, k.items * per_pair * width);
  const int64_t panel = kept ? q.items : std::clamp<int64_t>(kPlaceBytes / per_query, 1, std::max<int64_t>(1, q.items));
  Buffer<uint8_t> memory(kept ? 1 : panel * per_query);
  Buffer<int32_t> tokens(kept || !maximum ? 1 : panel * k.items);
  const T* slopes = static_cast<const T*>(grad.data_ptr());
  for (int64_t begin = 0; begin < q.items; begin += panel) {
    const int64_t end = std::min(q.items, begin + panel);
    Outputs<T> found{nullptr, Places(memory.data(), width), maximum ? tokens.data() : nullptr};
    if (kept)
      found = {nullptr, Places(place), maximum ? static_cast<int32_t*>(token.data_ptr()) : nullptr};
    else
      forward(q, k, pool, heads, begin, end, found);
    // Calls add(query token, head, key token, slope) for every maximum of a pair.
    const auto for_maxima = [&](int64_t b, int64_t m, const auto& add) {
      if (q.count(b) == 0 || k.count(m) == 0) return;
      const int64_t pair = (b - begin) * k.items + m;
      const T slope = slopes[b * k.items + m], share = pool == Pool::kMean ? slope / T(k.count(m)) : slope;
      const auto visit = [&](int64_t t, int64_t at) {
        heads == 1 ? add(at, 0, t, share) : add(at / heads, at % heads * part, t, share);
      };
      if (maximum) return visit(found.token[pair], (*found.places)[pair]);
      for (int64_t i = 0; i < k.count(m); ++i) {
        const int64_t t = k.token(m, i);
        visit(t, (*found.places)[pair * k.tokens + t]);
      }
    };
    if (dq)
      run_tasks(ceil_div(end - begin, kOwned), [&](int64_t task) {
        const int64_t first = begin + task * kOwned, last = std::min(end, first + kOwned);
        for (int64_t m = 0; m < k.items; ++m)
          for (int64_t b = first; b < last; ++b)
            for_maxima(b, m, [&](int64_t p, int64_t feature, int64_t t, T slope) {
              maxima.add_scaled(slope, key_rows.row(m, t) + feature, part, dq->row(b, p) + feature);
            });
      });
    if (dk)
      run_tasks(ceil_div(k.items, kOwned), [&](int64_t task) {
        const int64_t first = task * kOwned, last = std::min(k.items, first + kOwned);
        for (int64_t b = begin; b < end; ++b)
          for (int64_t m = first; m < last; ++m)
            for_maxima(b, m, [&](int64_t p, int64_t feature, int64_t t, T slope) {
              maxima.add_scaled(slope, query_rows.row(b, p) + feature, part, dk->row(m, t) + feature);
            });
      });
  }
  if (dq) run_tasks(q.items, [&](int64_t b) { dq->finish(b, query_rows); });
  if (dk) run_tasks(k.items, [&](int64_t m) { dk->finish(m, key_rows); });
  return {dquery, dkey};
}

void check(const Tensor& query, const Tensor& key, int64_t heads) {
  STD_TORCH_CHECK(query.dim() == 3 && key.dim() == 3 && query.size(2) == key.size(2),
                  "query must be (B, P, D) and key (M, T, D)");
  STD_TORCH_CHECK(heads > 0 && query.size(2) % heads == 0, "heads must divide ", query.size(2), ", got ", heads);
  // A 32-bit number holds a place while it is being looked for.
  STD_TORCH_CHECK(query.size(1) <= (int64_t(1) << 31) / heads - 64, "too many tokens per item: ", query.size(1));
}

std::tuple<Tensor, Tensor, Tensor> dense_scores_fwd(Tensor query, Tensor key, std::optional<Tensor> query_mask,
                                                    std::optional<Tensor> key_mask, std::string pool, int64_t heads,
                                                    bool normalize, bool keep) {
  check(query, key, heads);
  return (is_double(query) ? run_forward<double> : run_forward<float>)(query, key, contiguous_if_any(query_mask),
                                                                       contiguous_if_any(key_mask), parse_pool(pool),
                                                                       heads, normalize, keep);
}

std::tuple<Tensor, Tensor> dense_scores_bwd(Tensor grad_scores, Tensor query, Tensor key,
                                            std::optional<Tensor> query_mask, std::optional<Tensor> key_mask,
                                            Tensor place, Tensor token, std::string pool, int64_t heads, bool normalize,
                                            bool need_query, bool need_key) {
  check(query, key, heads);
  return (is_double(query) ? run_backward<double>
                           : run_backward<float>)(torch::stable::contiguous(grad_scores), query, key,
                                                  contiguous_if_any(query_mask), contiguous_if_any(key_mask), place,
                                                  token, parse_pool(pool), heads, normalize, need_query, need_key);
}

}  // namespace
}  // namespace cmx

STABLE_TORCH_LIBRARY_IMPL(cmx_fast, CPU, m) {
  m.impl("dense_scores_fwd", TORCH_BOX(&cmx::dense_scores_fwd));
  m.impl("dense_scores_bwd", TORCH_BOX(&cmx::dense_scores_bwd));
}
