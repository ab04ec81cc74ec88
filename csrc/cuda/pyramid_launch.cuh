// The launches of a pyramid correlation and their shapes: which patch fits the features' layout, and how many threads
// share a patch or a channel. `launch(kernel, blocks, threads, floats of shared memory, arguments...)` starts a kernel.
// No shape depends on the batch where a sum's order would, so a sample has the same bits in any batch.
#pragma once

#include <algorithm>
#include <bit>

#include "pyramid_correlation.cuh"
#include "pyramid_maps.cuh"

namespace cmx {

constexpr int kVectorBytes = 16;
constexpr int kLineBytes = 128;
constexpr int kMostPositions = 16;  // of a patch
constexpr int64_t kManyBlocks = 512;

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
inline int round_up_to_power_of_two(int64_t n) { return int(std::bit_ceil(uint64_t(n))); }

// Calls f with the patch that fits the features' layout. Where a gradient is written it is laid out like them.
template <class Element, int LEVELS, class F>
void with_layout(const Problem<Element>& problem, const Element* gradient, const Strides& out, const F& f) {
  const auto aligned = [&](int64_t Strides::* along, int n) {
    return problem.strides.aligned(problem.features, problem.strides.*along, n, sizeof(Element)) &&
           (!gradient || out.aligned(gradient, out.*along, n, sizeof(Element)));
  };
  constexpr int kVector = kVectorBytes / int(sizeof(Element));
  constexpr int kRun = kVector << (LEVELS - 1) > kMostPositions ? kMostPositions >> (LEVELS - 1) : kVector;
  if (problem.strides.c == 1) {
    const bool filters_aligned = reinterpret_cast<uintptr_t>(problem.filters) % kVectorBytes == 0;
    if (problem.channels % kVector == 0 && filters_aligned && aligned(&Strides::c, kVector))
      return f(Patch<Element, LEVELS, true, kVector>());
    return f(Patch<Element, LEVELS, true, 1>());
  }
  const auto in_runs = [&](int n) { return problem.pyramid.width % n == 0 && aligned(&Strides::w, n); };
  if (in_runs(kRun)) return f(Patch<Element, LEVELS, false, kRun>());
  // Frames of 14 or 28 positions a side: a warp then still reads a whole cache line at a time.
  if constexpr (sizeof(Element) == 2)
    if (in_runs(2)) return f(Patch<Element, LEVELS, false, 2>());
  return f(Patch<Element, LEVELS, false, 1>());
}

template <class Element, class F>
void with_patch(const Problem<Element>& problem, const Element* gradient, const Strides& out, const F& f) {
  if (problem.pyramid.levels == 1) return with_layout<Element, 1>(problem, gradient, out, f);
  if (problem.pyramid.levels == 2) return with_layout<Element, 2>(problem, gradient, out, f);
  return with_layout<Element, 3>(problem, gradient, out, f);
}

// Without inverse_norms the values are mean products.
template <class Launch, class Element>
void correlate(const Launch& launch, const Problem<Element>& problem, float* values, float* inverse_norms) {
  with_patch(problem, static_cast<const Element*>(nullptr), problem.strides, [&](auto of_layout) {
    using P = decltype(of_layout);
    // Not by the batch: a sum has the same order in any. Channels first, neighbours fill a cache line.
    const int64_t wanted = P::kChannelsLast ? ceil_div(problem.channels, P::kStep) : P::per_sample(problem.pyramid);
    const int most = P::kChannelsLast ? kWarp : std::min<int>(kWarp, kLineBytes / sizeof(typename P::Vector));
    const int width = std::min(round_up_to_power_of_two(wanted), most);
    const int patches = P::kChannelsLast ? kThreads / width : width;
    const int blocks = int(ceil_div(P::per_sample(problem.pyramid), patches));
    const int floats = Response<P>::kCount * patches * (P::kChannelsLast ? 1 : kWarps);
    launch(correlate_kernel<P>, int64_t(problem.batch) * blocks, kThreads, floats, problem, values, inverse_norms,
           blocks, width);
  });
}

template <class Launch>
void make_map(const Launch& launch, const float* values, const float* prediction, float* map, float* losses,
              const Pyramid& pyramid, int batch, Norm norm) {
  const bool whole = prediction || norm == Norm::kSoftmax;
  const int threads = whole ? int(ceil_div(std::min(pyramid.positions(), kMapThreads), kWarp)) * kWarp : kThreads;
  const int blocks = whole ? 1 : int(ceil_div(pyramid.positions(), threads));
  launch(map_kernel, int64_t(batch) * blocks, threads, threads / kWarp, values, prediction, map, losses, pyramid, norm,
         blocks);
}

// Blocks that share a sample's windows, each with a part of the radial sum.
inline int window_blocks(const Pyramid& pyramid) { return int(ceil_div(pyramid.cells(), kThreads)); }

template <class Launch, class Element>
void window_gradients(const Launch& launch, const Problem<Element>& problem, const float* gradient, const float* map,
                      const float* cosines, const float* inverse_norms, Norm norm, float* filter_factors,
                      float* window_factors, float* radial) {
  const int blocks = window_blocks(problem.pyramid);
  launch(window_gradients_kernel, int64_t(problem.batch) * blocks, kThreads, kWarps, gradient, map, problem.filters,
         cosines, inverse_norms, filter_factors, window_factors, radial, problem.pyramid, problem.channels, norm,
         blocks);
}

template <class Launch, class Element>
void feature_gradients(const Launch& launch, const Problem<Element>& problem, const float* filter_factors,
                       const float* window_factors, const float* radial, Element* dfeatures, const Strides& out,
                       float* dfilters) {
  with_patch(problem, static_cast<const Element*>(dfeatures), out, [&](auto of_layout) {
    using P = decltype(of_layout);
    const int64_t steps = ceil_div(problem.channels, P::kStep);
    // Channels last, 128 bytes or 32 channels are neighbours: few, so that there are blocks enough.
    const int64_t wanted = P::kChannelsLast ? steps : P::per_sample(problem.pyramid);
    const int width = std::min(round_up_to_power_of_two(wanted), P::kChannelsLast && P::kStep > 1 ? 8 : kWarp);
    const int groups = P::kChannelsLast ? width : kThreads / width;
    int repeats = P::kChannelsLast ? 1 : kMostRepeats;
    while (repeats > 1 && problem.batch * ceil_div(steps, groups * repeats) < kManyBlocks) repeats /= 2;
    const int blocks = int(ceil_div(steps, groups * repeats));
    const int floats = P::kChannelsLast ? kWarps * P::kStep * width : kWarps;
    launch(gradient_kernel<P>, int64_t(problem.batch) * blocks, kThreads, floats, problem, filter_factors,
           window_factors, radial, window_blocks(problem.pyramid), dfeatures, out, dfilters, blocks, width, repeats);
  });
}

}  // namespace cmx
