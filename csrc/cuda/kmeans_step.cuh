// The pass over the vectors of a k-means step: labels, exact distances and sums from one read.
//
// Tile and owner: a block of 4 warps (up to 32 centroids) or 8 (up to 64) goes through tiles of 64 vectors, (width, 64)
// in shared memory, while the next tiles are on their way (kStages). Per tile, with a barrier between the steps:
//
//   score    a warp owns 32 vectors and 16 centroids: their products on the matrix unit, the best of the 16 per vector
//   measure  a warp owns a share of the channels: each vector's label, the best over the groups of centroids, and its
//            squared distance from differences over those channels
//   settle   nearly never: the labels of vectors that float32 does not hold, from differences in double
//   add      a warp owns a share of the channels of all vectors and centroids: products of the tile with the one-hot
//            labels, added to sums in its registers; it counts 8 clusters' vectors, and the last warp writes the labels
//
// and every `length` tiles the block flushes its sums into a row of partials, which combine_kernel adds in double.
//
// Why it is right: scores are products with centroids split into kParts numbers of the vectors' type, exact but for the
// float32 sums and the last part's rounding. A score that has overflowed counts as the highest, so that measure sees
// it. Ties go to the lowest index at every step. The matrix unit truncates what it accumulates, so it sums one tile
// alone, and tiles are added by ordinary additions, at most 4096 vectors of them in float32. No label is out of range:
// it is that of a centroid below `clusters`, since those beyond the last are never the best. Nothing is atomic.
#pragma once

#include "cuda/matrix_unit.cuh"
#include "kmeans_centroids.cuh"
#include "kmeans_vectors.cuh"
#include "kmeans_wide.cuh"

namespace cmx {

constexpr int kStages = 3;
constexpr int kMostTiles = 4096 / kTile;  // that are added in float32; float64 adds their sums
constexpr uint32_t kNobody = 0x1000;      // the label of a position beyond the sample's last vector
constexpr int kFactorParts = 3;           // numbers of bfloat16 that add up to a float32 number

// How a step sees the vectors: as they are, or (unit) divided by their norms, by at least 1e-12 or (strict) by the norm
// itself, which makes NaN of a zero vector.
struct Metric {
  bool unit, strict;
};

// Columns of a row of partials: of each cluster its sum of vectors and then its count or weight; last the inertia.
__host__ __device__ inline int columns_of(int clusters, int width) { return clusters * (width + 1) + 1; }

// A block for up to CLUSTERS centroids. Warps find the nearest of 16 centroids to 32 vectors; for the sums each has a
// share of the channels, of all vectors and centroids. SCALED: vectors have norms or weights.
template <class E, int CLUSTERS, bool SCALED>
class Step {
 public:
  using Element = E;
  static constexpr int kClusters = CLUSTERS;
  static constexpr int kGroups = CLUSTERS / 16;
  static constexpr int kStepWarps = 2 * kGroups;
  static constexpr int kStepThreads = kStepWarps * kWarp;
  static constexpr int kRuns = CLUSTERS / 8;  // of 8 clusters each
  static_assert(kRuns == kStepWarps, "a warp counts the vectors of 8 clusters");
  static constexpr int kChannelTiles = kMostWidth / kDepth / kStepWarps;  // a warp's

  static constexpr int floats(int width) {
    return kStages * width * kPitch / 2 + width * CLUSTERS + 2 * kGroups * kTile + kStepWarps * kTile + kTile / 2 +
           (SCALED ? 2 * kTile + kFactorParts * kTile / 2 : 0);
  }

  __device__ Step(const Vectors<Element>& x, const Centroids& centroids, int clusters, const float* weight,
                  Metric metric, float* shared)
      : x_(x),
        clusters_(clusters),
        weight_(weight),
        metric_(metric),
        part_scale_(*centroids.scale),
        at_once_(x.vector()),
        tiles_(reinterpret_cast<Element*>(shared)),
        values_(shared + kStages * x.width * kPitch / 2),
        scores_(values_ + x.width * CLUSTERS),
        nearest_(reinterpret_cast<int*>(scores_ + kGroups * kTile)),
        distances_(scores_ + 2 * kGroups * kTile),
        labels_(reinterpret_cast<uint32_t*>(distances_ + kStepWarps * kTile)),
        scales_(distances_ + kStepWarps * kTile + kTile / 2),
        weights_(scales_ + kTile),
        factors_(reinterpret_cast<uint32_t*>(weights_ + kTile)) {
    const int steps = x.width / kDepth;
    const auto* const parts = reinterpret_cast<const Chunk<uint32_t, 4>*>(centroids.parts);
#pragma unroll
    for (int step = 0; step < kMostWidth / kDepth; ++step)
#pragma unroll
      for (int part = 0; part < kParts<Element>; ++part)
        if (step < steps)
          parts_[step][part] = parts[((group_of_clusters() * steps + step) * kParts<Element> + part) * kWarp + lane_];
#pragma unroll
    for (int i = 0; i < 4; ++i)
      halves_[i] = centroids.halves[group_of_clusters() * 16 + i / 2 * 8 + lane_ % 4 * 2 + i % 2];
    for (int i = threadIdx.x; i < x.width * CLUSTERS; i += kStepThreads) values_[i] = centroids.values[i];
  }

  // Starts to bring a tile to its place.
  __device__ void fetch(const Place& place, int stage) const { x_.fetch(place, tile_at(stage), at_once_); }

  // The best of the warp's 16 centroids for its 32 vectors.
  __device__ void score(const Place& place, int stage) {
    const Element* const row =
        tile_at(stage) + (lane_ % 8 + lane_ / 16 * 8) * kPitch + half_of_tile() * 32 + lane_ / 8 % 2 * 8;
    if (SCALED && weight_ && warp_ == 0)  // on their way until they are needed
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const int p = 2 * lane_ + i;
        weight_pair_[i] = p < x_.inside_of(place) ? weight_[x_.index_of(place) + p] : 0.f;
      }
    float sums[2][2][4] = {}, squares[2][2] = {};
    // With nothing to ask in between, loads go ahead of products; of scaled ones they would spill.
    if (!SCALED && x_.width == kMostWidth)
      multiply<true>(row, sums, squares);
    else
      multiply<false>(row, sums, squares);
    // Of four vectors, that this quad of lanes has alone.
    float best[2][2], scale[2][2];
    int label[2][2];
#pragma unroll
    for (int m = 0; m < 2; ++m)
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        scale[m][r] = 1;
        if (SCALED && metric_.unit) {
          const float norm = sqrtf(sum_neighbours(squares[m][r], 4));
          scale[m][r] = 1 / (metric_.strict ? norm : fmaxf(norm, 1e-12f));
        }
        best[m][r] = -INFINITY;
        label[m][r] = 0;
#pragma unroll
        for (int i = 0; i < 4; ++i) {  // in the order of the centroids: of equals the first stays
          float value = sums[m][i / 2][2 * r + i % 2] * (part_scale_ * scale[m][r]) - halves_[i];
          // One that has overflowed is the highest, for `measure` to see; never one beyond the last.
          if (!(value > -INFINITY) && halves_[i] != INFINITY) value = INFINITY;
          const bool better = value > best[m][r];
          best[m][r] = better ? value : best[m][r];
          label[m][r] = better ? group_of_clusters() * 16 + i / 2 * 8 + lane_ % 4 * 2 + i % 2 : label[m][r];
        }
      }
    // Each lane of a quad keeps one of them.
    const bool second = lane_ & 1, lower = lane_ & 2;
    float top[2];
    int first[2];
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      top[r] = second ? best[1][r] : best[0][r];
      first[r] = second ? label[1][r] : label[0][r];
      keep_better(top[r], first[r], __shfl_xor_sync(kAllLanes, second ? best[0][r] : best[1][r], 1),
                  __shfl_xor_sync(kAllLanes, second ? label[0][r] : label[1][r], 1));
    }
    float winner = lower ? top[1] : top[0];
    int nearest = lower ? first[1] : first[0];
    keep_better(winner, nearest, __shfl_xor_sync(kAllLanes, lower ? top[0] : top[1], 2),
                __shfl_xor_sync(kAllLanes, lower ? first[0] : first[1], 2));
    const int p = half_of_tile() * 32 + (second ? 16 : 0) + (lower ? 8 : 0) + lane_ / 4;
    scores_[group_of_clusters() * kTile + p] = winner;
    nearest_[group_of_clusters() * kTile + p] = nearest;
    if (SCALED && group_of_clusters() == 0)
      scales_[p] = second ? (lower ? scale[1][1] : scale[1][0]) : (lower ? scale[0][1] : scale[0][0]);
  }

  // Two vectors' labels, and their squared distances over the warp's channels. Whether `settle` has to look at them:
  // where a score, a norm or a square has overflowed, or the squares have no digits left.
  __device__ bool measure(const Place& place, int stage) {
    int label[2];
    float best[2], scale[2] = {1, 1}, sums[2] = {}, largest[2] = {};
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int p = 2 * lane_ + i;
      best[i] = scores_[p];
      label[i] = nearest_[p];
#pragma unroll
      for (int group = 1; group < kGroups; ++group)
        if (scores_[group * kTile + p] > best[i]) {
          best[i] = scores_[group * kTile + p];
          label[i] = nearest_[group * kTile + p];
        }
      if (SCALED) scale[i] = scales_[p];
    }
    const auto* const pairs = reinterpret_cast<const Chunk<Element, 2>*>(tile_at(stage)) + lane_;
#pragma unroll 8
    for (int d = warp_; d < x_.width; d += kStepWarps) {
      const Chunk<Element, 2> pair = pairs[d * kPitch / 2];
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const float difference = to_float(pair.element[i]) * scale[i] - values_[d * CLUSTERS + label[i]];
        sums[i] += difference * difference;
        largest[i] = fmaxf(largest[i], fabsf(difference));
      }
    }
    reinterpret_cast<Chunk<float, 2>*>(distances_ + warp_ * kTile)[lane_] = {sums[0], sums[1]};
    if (warp_ == 0) publish(place, label, scale);
    const int inside = x_.inside_of(place);
    return (2 * lane_ < inside && !held(best[0], scale[0], sums[0], largest[0], x_.width)) ||
           (2 * lane_ + 1 < inside && !held(best[1], scale[1], sums[1], largest[1], x_.width));
  }

  // Again the labels and distances of the vectors that need it, from the differences in double; one warp's work.
  __device__ void settle(const Place& place, int stage) {
    if (warp_ != 0) return;
    int label[2];
    float scale[2] = {1, 1};
    for (int i = 0; i < 2; ++i) {
      const int p = 2 * lane_ + i;
      label[i] = labels_[lane_] >> 16 * i & 0xffff;
      if (SCALED) scale[i] = scales_[p];
      if (p >= x_.inside_of(place)) continue;
      const WideSearch<Element> search{tile_at(stage) + p, values_, x_.width, clusters_, CLUSTERS};
      float best = -INFINITY, distance = 0;
      for (int group = 0; group < kGroups; ++group) best = fmaxf(best, scores_[group * kTile + p]);
      for (int warp = 0; warp < kStepWarps; ++warp) distance += distances_[warp * kTile + p];
      if (held(best, scale[i], distance, search.largest_difference(scale[i], label[i]), x_.width)) continue;
      const double wide = SCALED && metric_.unit ? search.scale(metric_.strict) : 1;
      scale[i] = float(wide);
      distances_[p] = search.nearest(wide, label[i]);
      for (int warp = 1; warp < kStepWarps; ++warp) distances_[warp * kTile + p] = 0;
    }
    publish(place, label, scale);
  }

  // Adds the tile to the sums; one warp also writes the labels and adds up the distances.
  __device__ void add(const Place& place, int stage, int64_t* labels) {
    if (warp_ == kStepWarps - 1) {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const int p = 2 * lane_ + i;
        if (p >= x_.inside_of(place)) continue;
        float distance = 0;
        for (int warp = 0; warp < kStepWarps; ++warp) distance += distances_[warp * kTile + p];
        inertia_ += SCALED ? distance * weights_[p] : distance;
        labels[x_.index_of(place) + p] = labels_[lane_] >> 16 * i & 0xffff;
      }
    }
    const Element* const row = tile_at(stage) + lane_ % 16 * kPitch + lane_ / 16 * 8;
    // Of the tile alone: the matrix unit rounds toward zero, which would add up over many tiles.
    float sums[kChannelTiles][kRuns][4] = {};
#pragma unroll
    for (int step = 0; step < kTile / kDepth; ++step) {
      const int pair = step * kDepth / 2 + lane_ % 4;
      uint32_t channels[kChannelTiles][4] = {};
#pragma unroll
      for (int i = 0; i < kChannelTiles; ++i)
        if (channel_of(i) < x_.width) load_matrices(channels[i], row + channel_of(i) * kPitch + step * kDepth);
#pragma unroll
      for (int run = 0; run < kRuns; ++run) {
        // A pair of 2, 0x4000 in both types, for vectors of the cluster: the difference of two labels is less.
        const uint32_t cluster = (run * 8 + lane_ / 4) * 0x10001u;
        const uint32_t upper = (0x40004000u - (labels_[pair] ^ cluster)) & 0x40004000u;
        const uint32_t lower = (0x40004000u - (labels_[pair + 4] ^ cluster)) & 0x40004000u;
        if (run == warp_) count(upper, lower, 2 * pair);
        if constexpr (!SCALED) {
#pragma unroll
          for (int i = 0; i < kChannelTiles; ++i) multiply_add(Element(), sums[i][run], channels[i], upper, lower);
        } else {
          const uint32_t upper_mask = (upper >> 14) * 0xffff, lower_mask = (lower >> 14) * 0xffff;
#pragma unroll
          for (int part = 0; part < kFactorParts; ++part) {
            const uint32_t* const factors = factors_ + part * kTile / 2 + pair;
#pragma unroll
            for (int i = 0; i < kChannelTiles; ++i)
              add_scaled(Element(), sums[i][run], channels[i], factors[0] & upper_mask, factors[4] & lower_mask);
          }
        }
      }
    }
#pragma unroll
    for (int i = 0; i < kChannelTiles; ++i)
#pragma unroll
      for (int run = 0; run < kRuns; ++run)
#pragma unroll
        for (int j = 0; j < 4; ++j) sums_[i][run][j] += sums[i][run][j];
  }

  // Writes what has been added, (columns,), and begins anew.
  __device__ void flush(float* out, int clusters) {
    const int stride = x_.width + 1;
#pragma unroll
    for (int i = 0; i < kChannelTiles; ++i)
#pragma unroll
      for (int run = 0; run < kRuns; ++run)
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          const int cluster = run * 8 + lane_ % 4 * 2 + j % 2, d = channel_of(i) + lane_ / 4 + j / 2 * 8;
          if (cluster < clusters && d < x_.width) out[cluster * stride + d] = sums_[i][run][j] * (SCALED ? 1.f : 0.5f);
          sums_[i][run][j] = 0;
        }
    float counted = SCALED && weight_ ? weighed_ : float((counted_ & 0xffff) + (counted_ >> 16));
    counted = sum_neighbours(counted, 4);
    const int cluster = warp_ * 8 + lane_ / 4;
    if (lane_ % 4 == 0 && cluster < clusters) out[cluster * stride + x_.width] = counted;
    if (warp_ == kStepWarps - 1) {
      const float inertia = sum_neighbours(inertia_, kWarp);
      if (lane_ == 0) out[clusters * stride] = inertia;
    }
    counted_ = 0;
    weighed_ = inertia_ = 0;
  }

 private:
  __device__ int group_of_clusters() const { return warp_ % kGroups; }
  __device__ int half_of_tile() const { return warp_ / kGroups; }
  __device__ int channel_of(int i) const { return (warp_ + i * kStepWarps) * kDepth; }
  __device__ Element* tile_at(int stage) const { return tiles_ + stage * x_.width * kPitch; }

  // Products of the warp's 32 vectors with its 16 centroids, and the vectors' squares if they may be needed. ALL: the
  // vectors have as many channels as there can be.
  template <bool ALL>
  __device__ void multiply(const Element* row, float (&sums)[2][2][4], float (&squares)[2][2]) const {
#pragma unroll
    for (int step = 0; step < kMostWidth / kDepth; ++step) {
      if (!ALL && step * kDepth >= x_.width) return;
      uint32_t vectors[2][4];
#pragma unroll
      for (int m = 0; m < 2; ++m) load_transposed(vectors[m], row + step * kDepth * kPitch + m * 16);
      // The sums one after the other: none waits for itself.
#pragma unroll
      for (int part = 0; part < kParts<Element>; ++part)
#pragma unroll
        for (int m = 0; m < 2; ++m)
#pragma unroll
          for (int n = 0; n < 2; ++n)
            multiply_add(Element(), sums[m][n], vectors[m], parts_[step][part].element[2 * n],
                         parts_[step][part].element[2 * n + 1]);
      if constexpr (SCALED)
#pragma unroll
        for (int i = 0; i < 8; ++i) {
          const auto pair = same_bits<Chunk<Element, 2>>(vectors[i / 4][i % 4]);
          const float one = to_float(pair.element[0]), other = to_float(pair.element[1]);
          squares[i / 4][i % 2] += one * one + other * other;
        }
    }
  }

  // Two vectors' labels, and what they are multiplied by, for the sums; the first warp's.
  __device__ void publish(const Place& place, const int (&label)[2], const float (&scale)[2]) {
    const bool inside[2] = {2 * lane_ < x_.inside_of(place), 2 * lane_ + 1 < x_.inside_of(place)};
    labels_[lane_] = (inside[0] ? label[0] : kNobody) | (inside[1] ? label[1] : kNobody) << 16;
    if constexpr (SCALED) {
      float rest[2];
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const float weight = weight_ ? weight_pair_[i] : 1.f;
        weights_[2 * lane_ + i] = weight;
        rest[i] = scale[i] * weight;
      }
#pragma unroll
      for (int part = 0; part < kFactorParts; ++part) {
        const auto one = rounded<__nv_bfloat16>(rest[0]), other = rounded<__nv_bfloat16>(rest[1]);
        factors_[part * kTile / 2 + lane_] = pair_of(one, other);
        rest[0] -= to_float(one);
        rest[1] -= to_float(other);
      }
    }
  }

  __device__ static void keep_better(float& best, int& label, float other, int others_label) {
    if (other > best || (other == best && others_label < label)) {
      best = other;
      label = others_label;
    }
  }

  __device__ void count(uint32_t upper, uint32_t lower, int p) {
    if (SCALED && weight_) {
      const uint32_t members[4] = {upper & 0xffff, upper >> 16, lower & 0xffff, lower >> 16};
#pragma unroll
      for (int i = 0; i < 4; ++i) weighed_ += members[i] ? weights_[p + i / 2 * 8 + i % 2] : 0.f;
    } else {
      counted_ += (upper + lower) >> 14;
    }
  }

  // Of float16 both halves of its digits: its own type has too few exponents for the factors.
  __device__ static void add_scaled(__nv_bfloat16 type, float (&sums)[4], const uint32_t (&channels)[4], uint32_t upper,
                                    uint32_t lower) {
    multiply_add(type, sums, channels, upper, lower);
  }
  __device__ static void add_scaled(__half, float (&sums)[4], const uint32_t (&channels)[4], uint32_t upper,
                                    uint32_t lower) {
    uint32_t high[4], low[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const auto pair = same_bits<Chunk<__half, 2>>(channels[i]);
      const float one = to_float(pair.element[0]), other = to_float(pair.element[1]);
      const auto high_one = rounded<__nv_bfloat16>(one), high_other = rounded<__nv_bfloat16>(other);
      high[i] = pair_of(high_one, high_other);
      low[i] = pair_of(rounded<__nv_bfloat16>(one - to_float(high_one)),
                       rounded<__nv_bfloat16>(other - to_float(high_other)));
    }
    multiply_add(__nv_bfloat16(), sums, high, upper, lower);
    multiply_add(__nv_bfloat16(), sums, low, upper, lower);
  }

  const Vectors<Element>& x_;
  const int clusters_;
  const float* const weight_;
  const Metric metric_;
  const float part_scale_;
  const int at_once_;
  const int lane_ = threadIdx.x % kWarp, warp_ = threadIdx.x / kWarp;

  Element* const tiles_;     // (stages, width, kPitch)
  float* const values_;      // (width, CLUSTERS)
  float* const scores_;      // (groups, kTile)
  int* const nearest_;       // (groups, kTile)
  float* const distances_;   // (warps, kTile)
  uint32_t* const labels_;   // (kTile / 2,) pairs of neighbours
  float* const scales_;      // (kTile,)
  float* const weights_;     // (kTile,)
  uint32_t* const factors_;  // (kFactorParts, kTile / 2) pairs of neighbours

  Chunk<uint32_t, 4> parts_[kMostWidth / kDepth][kParts<Element>];
  float halves_[4];
  float weight_pair_[2] = {};
  float sums_[kChannelTiles][kRuns][4] = {};
  uint32_t counted_ = 0;  // of even and of odd positions
  float weighed_ = 0, inertia_ = 0;
};

}  // namespace cmx
