// The passes over the features of pyramid correlation: each reads them once.
//
// Tile and owner: a thread holds a patch (pyramid_patch.cuh), whole windows of the coarsest level in one or several
// channels, in registers. Forward, a block owns neighbouring patches of a sample in all channels: its threads share the
// channels of a patch and their sums meet in shared memory (reductions.cuh). Backward, a block owns some channels of a
// sample at all positions: it writes their gradient, and their entry of the filter's gradient is whole in it.
//
// Why it is right: a window's sums never leave the thread that has all of its positions; sums are float32, in an order
// that depends on the shapes alone, and nothing is atomic. Positions outside the frame load 0, are not counted and not
// written. The formulas are those of csrc/cpu/ops/pyramid_correlation_kernel.cpp.
#pragma once

#include "pyramid_patch.cuh"

namespace cmx {

// A thread's sums over its channels: each position's product with the filter, the square of every level's window sums,
// and the filter's square.
template <class P>
struct Response {
  static constexpr int kSquares = P::kPositions;
  static constexpr int kFilter = kSquares + P::kCells;
  static constexpr int kCount = kFilter + 1;

  float sums[kCount] = {};

  __device__ void add(const float (&x)[P::kPositions], float filter) {
#pragma unroll
    for (int i = 0; i < P::kPositions; ++i) sums[i] += x[i] * filter;
    sums[kFilter] += filter * filter;
    add_squares(x, kSquares);
    if constexpr (P::kLevels > 1) {
      float windows[P::kPositions / 4];
      P::pool(x, P::kColumns, windows);
      add_squares(windows, kSquares + P::kPositions);
      if constexpr (P::kLevels > 2) {
        float larger[P::kPositions / 16];
        P::pool(windows, P::kColumns / 2, larger);
        add_squares(larger, kSquares + P::kPositions + P::kPositions / 4);
      }
    }
  }

 private:
  template <int COUNT>
  __device__ void add_squares(const float (&x)[COUNT], int begin) {
#pragma unroll
    for (int i = 0; i < COUNT; ++i) sums[begin + i] += x[i] * x[i];
  }
};

// The kernels are compiled for one block per multiprocessor at least: left alone, the assembler spills a few registers
// to fit one block more.

// Each window's mean product with the filter, or with inverse_norms its cosine; both (B, cells). A block takes
// neighbouring patches of a sample in all channels.
template <class P>
__global__ void __launch_bounds__(kThreads, 1)
    correlate_kernel(const Problem<typename P::Element> problem, float* __restrict__ values,
                     float* __restrict__ inverse_norms, int blocks, int width) {
  extern __shared__ float shared[];
  const Pyramid& pyramid = problem.pyramid;
  const Lanes<P> lanes(width);
  const int64_t b = blockIdx.x / blocks;
  const int first = blockIdx.x % blocks * lanes.patches, patches = P::per_sample(pyramid);
  Response<P> response;
  if (first + lanes.patch < patches) {
    const typename P::Place place(pyramid, first + lanes.patch);
    const auto* const x = problem.features + b * problem.strides.b + place.offset(problem.strides);
    const float* const filter = problem.filters + b * problem.channels;
    // Some 8 loads on their way at a time.
#pragma unroll(P::kChunks >= 8 ? 1 : P::kChunks >= 4 ? 2 : 4)
    for (int c = lanes.group * P::kStep; c < problem.channels; c += lanes.groups * P::kStep) {
      P patch;
      patch.load(x + c * problem.strides.c, problem.strides, place);
      float filter_values[P::kStep], values[P::kPositions];
      P::load_filter(filter + c, filter_values);
#pragma unroll
      for (int i = 0; i < P::kStep; ++i) {
        patch.unpack(i, values);
        response.add(values, filter_values[i]);
      }
    }
  }
  // shared[i * lanes.patches + patch]: the i-th sum over all channels.
  if constexpr (P::kChannelsLast) {
#pragma unroll
    for (int i = 0; i < Response<P>::kCount; ++i) {
      const float sum = sum_neighbours(response.sums[i], width);
      if (lanes.group == 0) shared[i * lanes.patches + lanes.patch] = sum;
    }
    __syncthreads();
  } else {
    sum_across(response.sums, width, shared);
  }
  const auto sum = [&](int i, int patch) { return shared[i * lanes.patches + patch]; };
  int square = Response<P>::kSquares;
  for (int level = 0; level < P::kLevels; ++level) {
    const int windows = P::kPositions >> 2 * level, wide = P::kColumns >> level;
    for (int item = threadIdx.x; item < windows * lanes.patches; item += kThreads) {
      const int i = item / lanes.patches, patch = item % lanes.patches;
      if (first + patch >= patches) continue;
      const typename P::Place place(pyramid, first + patch);
      const int cell = place.cell(pyramid, level, i);
      if (cell < 0) continue;
      const int y = i / wide << level, x = i % wide << level;
      const int rows = min(1 << level, place.rows - y), columns = min(1 << level, place.columns - x);
      float value = 0;
      for (int p = 0; p < rows * columns; ++p) value += sum((y + p / columns) * P::kColumns + x + p % columns, patch);
      value /= rows * columns;
      if (inverse_norms) {
        const float inverse = inverse_length(sqrtf(sum(square + i, patch)) / (rows * columns));
        value *= inverse * inverse_length(sqrtf(sum(Response<P>::kFilter, patch)));
        inverse_norms[b * pyramid.cells() + cell] = inverse;
      }
      values[b * pyramid.cells() + cell] = value;
    }
    square += windows;
  }
}

// The gradient of the maps at a patch, the same in every channel: a position gets `filter_factors` of the filter and,
// with cosines, `window_factors` of the sum of each window around it.
template <class P>
struct PatchGradient {
  float filter_factors[P::kPositions], window_factors[P::kCells];

  __device__ PatchGradient(const Pyramid& pyramid, const typename P::Place& place, const float* filter_cells,
                           const float* window_cells) {
    const auto read = [&](const float* cells, int level, int i) {
      const int cell = place.cell(pyramid, level, i);
      return cells && cell >= 0 ? cells[cell] : 0.f;
    };
#pragma unroll
    for (int i = 0; i < P::kPositions; ++i) {
      filter_factors[i] = read(filter_cells, 0, i);
      window_factors[i] = read(window_cells, 0, i);
    }
    if constexpr (P::kLevels > 1) read_level<1, P::kPositions>(read, filter_cells, window_cells);
    if constexpr (P::kLevels > 2) read_level<2, P::kPositions + P::kPositions / 4>(read, filter_cells, window_cells);
  }

  // From x to its gradient, in place.
  __device__ void apply(float (&x)[P::kPositions], float filter, bool with_own) const {
    float gradient[P::kPositions];
#pragma unroll
    for (int i = 0; i < P::kPositions; ++i) gradient[i] = filter_factors[i] * filter;
    if (with_own) {
#pragma unroll
      for (int i = 0; i < P::kPositions; ++i) gradient[i] += window_factors[i] * x[i];
      if constexpr (P::kLevels > 1) {
        float windows[P::kPositions / 4];
        P::pool(x, P::kColumns, windows);
        if constexpr (P::kLevels > 2) {
          float larger[P::kPositions / 16];
          P::pool(windows, P::kColumns / 2, larger);
#pragma unroll
          for (int i = 0; i < P::kPositions / 4; ++i) {
            const int window = parent(i, P::kColumns / 2);
            windows[i] = window_factors[P::kPositions + i] * windows[i] +
                         window_factors[P::kPositions + P::kPositions / 4 + window] * larger[window];
          }
        } else {
#pragma unroll
          for (int i = 0; i < P::kPositions / 4; ++i) windows[i] *= window_factors[P::kPositions + i];
        }
#pragma unroll
        for (int i = 0; i < P::kPositions; ++i) gradient[i] += windows[parent(i, P::kColumns)];
      }
    }
#pragma unroll
    for (int i = 0; i < P::kPositions; ++i) x[i] = gradient[i];
  }

 private:
  // The window of 2 x 2 that the i-th of what is `wide` columns wide lies in.
  __device__ static constexpr int parent(int i, int wide) { return i / wide / 2 * (wide / 2) + i % wide / 2; }

  template <int LEVEL, int BEGIN, class Read>
  __device__ void read_level(const Read& read, const float* filter_cells, const float* window_cells) {
    constexpr int kWide = P::kColumns >> LEVEL;
#pragma unroll
    for (int i = 0; i < (P::kPositions >> 2 * LEVEL); ++i) {
      window_factors[BEGIN + i] = read(window_cells, LEVEL, i);
      const float value = read(filter_cells, LEVEL, i);
#pragma unroll
      for (int p = 0; p < P::kPositions; ++p)
        if ((p / P::kColumns >> LEVEL) * kWide + (p % P::kColumns >> LEVEL) == i) filter_factors[p] += value;
    }
  }
};

constexpr int kMostRepeats = 4;  // channels of a patch that a thread takes one after the other, channels first

// Both gradients. A block takes all positions of a sample in `repeats` times as many channels as it has groups, so that
// the filter's gradient is whole in it. `radial` (B, radial_parts) adds up to the multiple of the filter that its
// gradient loses; without `window_factors` (B, cells) it is not read.
template <class P>
__global__ void __launch_bounds__(kThreads, 1)
    gradient_kernel(const Problem<typename P::Element> problem, const float* __restrict__ filter_factors,
                    const float* __restrict__ window_factors, const float* __restrict__ radial, int radial_parts,
                    typename P::Element* __restrict__ dfeatures, const Strides out, float* __restrict__ dfilters,
                    int blocks, int width, int repeats) {
  extern __shared__ float shared[];
  constexpr int kRepeats = P::kChannelsLast ? 1 : kMostRepeats;
  const Pyramid& pyramid = problem.pyramid;
  const Lanes<P> lanes(width);
  const int64_t b = blockIdx.x / blocks;
  const int first = blockIdx.x % blocks * repeats * lanes.groups;
  const auto channel = [&](int repeat) { return (first + repeat * lanes.groups + lanes.group) * P::kStep; };
  const float* const filter = problem.filters + b * problem.channels;
  float filter_values[kRepeats][P::kStep] = {}, products[kRepeats * P::kStep] = {};
#pragma unroll
  for (int repeat = 0; repeat < kRepeats; ++repeat)
    if (repeat < repeats && channel(repeat) < problem.channels)
      P::load_filter(filter + channel(repeat), filter_values[repeat]);
  for (int patch_index = lanes.patch; patch_index < P::per_sample(pyramid); patch_index += lanes.patches) {
    const typename P::Place place(pyramid, patch_index);
    const PatchGradient<P> patch_gradient(pyramid, place, filter_factors + b * pyramid.cells(),
                                          window_factors ? window_factors + b * pyramid.cells() : nullptr);
    const auto* const x = problem.features + b * problem.strides.b + place.offset(problem.strides);
    auto* const dx = dfeatures + b * out.b + place.offset(out);
#pragma unroll
    for (int repeat = 0; repeat < kRepeats; ++repeat) {
      const int64_t c = channel(repeat);
      if (repeat >= repeats || c >= problem.channels) break;
      P patch;
      patch.load(x + c * problem.strides.c, problem.strides, place);
#pragma unroll
      for (int i = 0; i < P::kStep; ++i) {
        float values[P::kPositions];
        patch.unpack(i, values);
#pragma unroll
        for (int p = 0; p < P::kPositions; ++p)
          products[repeat * P::kStep + i] += values[p] * patch_gradient.filter_factors[p];
        patch_gradient.apply(values, filter_values[repeat][i], window_factors != nullptr);
        patch.pack(i, values);
      }
      patch.store(dx + c * out.c, out, place);
    }
  }
  float lost = 0;
  if (window_factors) {
    for (int i = threadIdx.x; i < radial_parts; i += kThreads) lost += radial[b * radial_parts + i];
    lost = sum_block(lost, shared);
  }
  if constexpr (P::kChannelsLast) {
    sum_across(products, width, shared);
    for (int item = threadIdx.x; item < P::kStep * width; item += kThreads) {
      const int c = (first + item / P::kStep) * P::kStep + item % P::kStep;
      if (c < problem.channels)
        dfilters[b * problem.channels + c] =
            shared[item % P::kStep * width + item / P::kStep] - (window_factors ? lost * filter[c] : 0.f);
    }
  } else {
#pragma unroll
    for (int repeat = 0; repeat < kRepeats; ++repeat) {
      const float sum = sum_neighbours(products[repeat], width);
      const int c = channel(repeat);
      if (lanes.patch == 0 && repeat < repeats && c < problem.channels)
        dfilters[b * problem.channels + c] = sum - (window_factors ? lost * filter_values[repeat][0] : 0.f);
    }
  }
}

}  // namespace cmx
