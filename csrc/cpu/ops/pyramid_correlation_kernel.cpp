// Pyramid correlation filtering on the CPU.
//
// Algorithm: one pass over the features gives every position's product with the filter and, for cosines, the squares of
// the window sums of every level; what follows works on maps without channels. A window's mean product is the mean of
// its positions' products, so only its square needs the channels together. The backward pass makes the window sums
// again beside the gradient: to a position `filter_factors` of the filter and `window_factors` of the sum of each
// window around it.
//
// Tile and owner: a task owns up to 128 channels of some whole frames of a sample (cpu/tiles/feature_planes.h), whose
// maps stay in the first-level cache, and walks its channels; forward it sums over them into maps of its own, which are
// added in the order of the tasks. Backward it writes its channels' gradient, and one product per channel and block of
// frames, added in the order of the blocks. Windows lie within a frame, so no task needs another's positions.
//
// Why it is right: products are summed in double, eight channels at a time in T; squares, which are positive, in T over
// 128 channels and then in double. A vector no longer than 1e-12 has an inverse norm of 0, and with it a cosine and a
// gradient of 0. Memory: 8 bytes per position and, with cosines, one T per window for each task.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <cmath>
#include <string>
#include <tuple>
#include <vector>

#include "common/checks.h"
#include "common/parallel.h"
#include "cpu/simd/elements.h"
#include "cpu/tensors/buffer.h"
#include "cpu/tensors/rows.h"
#include "cpu/tiles/feature_planes.h"
#include "cpu/tiles/planes.h"
#include "cpu/tiles/pyramid.h"

namespace cmx {
namespace {

// Inverse norm of the mean of `count` vectors from the square of their sum; 0 where the norm is too small.
inline double inverse_norm(double square, double count) {
  const double norm = std::sqrt(square) / count;
  return norm <= kSmallestNorm ? 0 : 1 / norm;
}

// Makes every window's mean product with the filter, or its cosine and inverse norm, each (B, cells).
template <class T>
struct Response {
  const Planes<T>& planes;
  const T* filters;
  double* values;
  T *cosines, *inverse_norms;  // null for plain products

  void run() const {
    int64_t windows = 0;
    for (int64_t level = 0; level < planes.pyramid.levels() && cosines; ++level)
      windows += planes.frames(0, level).positions();
    Sums sums(planes.frames(0, 0).positions(), windows, planes.tasks());
    run_tasks(planes.tasks(), [&](int64_t task) { accumulate(task, sums); });
    run_tasks(planes.batch * planes.blocks, [&](int64_t task) { finish(task, sums); });
  }

 private:
  // Each task's sums over its channels: products (positions), squares of the window sums of every level (windows).
  struct Sums {
    int64_t positions, windows;
    Buffer<double> products;
    Buffer<T> squares;
    Sums(int64_t positions, int64_t windows, int64_t tasks)
        : positions(positions), windows(windows), products(tasks * positions), squares(tasks * windows) {}
  };

  // Task (sample, block, group): sums over the group's channels.
  void accumulate(int64_t task, Sums& sums) const {
    const int64_t group = task % planes.groups, block = task / planes.groups % planes.blocks;
    const int64_t b = task / planes.groups / planes.blocks, n = planes.frames(block, 0).positions();
    Windows<T> windows(planes);
    double* const products = sums.products.data() + task * sums.positions;
    T* const squares = cosines ? sums.squares.data() + task * sums.windows : nullptr;
    std::fill_n(products, sums.positions, 0.0);
    if (squares) std::fill_n(squares, sums.windows, T(0));
    const int64_t end = std::min(planes.channels, (group + 1) * Planes<T>::kChannelsPerTask);
    for (int64_t c = group * Planes<T>::kChannelsPerTask; c < end; c += Planes<T>::kMostLoaded) {
      const int64_t count = std::min(Planes<T>::kMostLoaded, end - c);
      int64_t stride;
      const T* x = planes.load(b, c, count, block, windows.loaded, &stride);
      planes.kernels.correlate(x, count, stride, n, filters + b * planes.channels + c, products, squares);
      for (int64_t i = 0; i < count && squares; ++i) add_window_squares(x + i * stride, block, windows, squares);
    }
  }

  void add_window_squares(const T* x, int64_t block, Windows<T>& windows, T* squares) const {
    for (int64_t level = 1; level < planes.pyramid.levels(); ++level) {
      const Frames finer = planes.frames(block, level - 1);
      T* const sums = windows.levels[level].data();
      planes.kernels.window_sums(x, finer, windows.row_pairs.data(), sums);
      squares += finer.positions();
      planes.kernels.add_squares(sums, finer.halved().positions(), squares);
      x = sums;
    }
  }

  // Task (sample, block): from the groups' sums to the values of all levels.
  void finish(int64_t task, const Sums& sums) const {
    const int64_t block = task % planes.blocks, b = task / planes.blocks, first = task * planes.groups;
    const T* filter = filters + b * planes.channels;
    const double filter_inverse = inverse_norm(dot(filter, filter, planes.channels), 1);
    std::vector<double> products(sums.positions), window_squares(sums.windows), row_pairs;
    for (int64_t group = 0; group < planes.groups; ++group) {
      for (int64_t i = 0; i < sums.positions; ++i)
        products[i] += sums.products.data()[(first + group) * sums.positions + i];
      for (int64_t i = 0; i < sums.windows; ++i)
        window_squares[i] += sums.squares.data()[(first + group) * sums.windows + i];
    }
    const double* squares = window_squares.data();
    for (int64_t level = 0; level < planes.pyramid.levels(); ++level) {
      const Frames frames = planes.frames(block, level);
      if (level > 0) {
        const Frames finer = planes.frames(block, level - 1);
        std::vector<double> coarser(frames.positions());
        row_pairs.resize(finer.row_pairs().positions());
        best_plane_kernels<double>().window_sums(products.data(), finer, row_pairs.data(), coarser.data());
        products = std::move(coarser);
      }
      const double* counts = planes.pyramid.counts(level);
      const int64_t begin = b * planes.pyramid.cells() + planes.begin(block, level);
      for (int64_t q = 0; q < frames.positions(); ++q) {
        const double count = counts[q % (frames.h * frames.w)];
        values[begin + q] = products[q] / count;
        if (!cosines) continue;
        const double inverse = inverse_norm(squares[q], count);
        values[begin + q] *= inverse * filter_inverse;
        cosines[begin + q] = T(values[begin + q]);
        inverse_norms[begin + q] = T(inverse);
      }
      squares += frames.positions();
    }
  }
};

inline void softmax(double* map, int64_t n) {
  double top = -INFINITY, sum = 0;
  for (int64_t p = 0; p < n; ++p) top = map[p] > top ? map[p] : top;
  for (int64_t p = 0; p < n; ++p) sum += map[p] = std::exp(map[p] - top);
  for (int64_t p = 0; p < n; ++p) map[p] /= sum;
}

template <class T>
std::tuple<Tensor, Tensor, Tensor> run_forward(const Tensor& features, const Tensor& filters, int64_t levels,
                                               const std::string& norm) {
  const Planes<T> planes(features, levels);
  const bool cosine = norm == "cosine";
  const Pyramid& pyramid = planes.pyramid;
  const int64_t batch = planes.batch, cells = pyramid.cells(), n = pyramid.positions();
  Tensor map = torch::stable::new_empty(filters, {batch, features.size(2), features.size(3), features.size(4)});
  Tensor cosines = torch::stable::new_empty(filters, {batch, cosine ? cells : 0});
  Tensor inverse_norms = torch::stable::new_empty(filters, {batch, cosine ? cells : 0});
  Buffer<double> values(batch * cells);
  Response<T>{planes, static_cast<const T*>(filters.data_ptr()), values.data(),
              cosine ? static_cast<T*>(cosines.data_ptr()) : nullptr,
              cosine ? static_cast<T*>(inverse_norms.data_ptr()) : nullptr}
      .run();
  run_tasks(batch, [&](int64_t b) {
    std::vector<double> response(n);
    pyramid.enlarge(values.data() + b * cells, response.data());
    if (norm == "softmax") softmax(response.data(), n);
    T* const out = static_cast<T*>(map.data_ptr()) + b * n;
    for (int64_t p = 0; p < n; ++p) out[p] = T(cosine ? (1 + response[p]) / 2 : response[p]);
  });
  return {map, cosines, inverse_norms};
}

// The map's gradient, brought to the features' side: `filter_factors`, each position's multiple of the filter, and
// `window_factors`, each window's multiple of its own sum. The features' gradient follows from these channel by
// channel.
//
// With g the gradient by a window's cosine c = <f, m> / (|f| |m|) of its mean m over n positions, the derivative by m
// is (f / |f| - c m / |m|) / |m|: filter_factors takes g / (n |f| |m|), window_factors -g c / (n |m|)^2 for the
// window's sum n m. The derivative by f likewise loses c f / |f|^2: radial is the sum of g c / |f|^2.
template <class T>
struct MapGradient {
  Buffer<T> filter_factors, window_factors;  // (B, positions), (B, cells) or empty
  std::vector<double> radial;                // (B,) multiple of the filter that its gradient loses

  MapGradient(const Planes<T>& planes, const Tensor& grad_map, const Tensor& filters, const Tensor& map,
              const Tensor& cosines, const Tensor& inverse_norms, const std::string& norm)
      : filter_factors(planes.batch * planes.pyramid.positions()),
        window_factors(norm == "cosine" ? planes.batch * planes.pyramid.cells() : 0),
        radial(planes.batch) {
    const Pyramid& pyramid = planes.pyramid;
    const int64_t n = pyramid.positions(), cells = pyramid.cells();
    run_tasks(planes.batch, [&](int64_t b) {
      std::vector<double> upstream(n), cell_gradients(cells);
      const T* grad = static_cast<const T*>(grad_map.data_ptr()) + b * n;
      const T* values = static_cast<const T*>(map.data_ptr()) + b * n;
      double mean = 0;
      if (norm == "softmax")
        for (int64_t p = 0; p < n; ++p) mean += double(values[p]) * grad[p];
      for (int64_t p = 0; p < n; ++p)
        upstream[p] = norm == "cosine" ? grad[p] / 2.0 : norm == "softmax" ? values[p] * (grad[p] - mean) : grad[p];
      pyramid.gather(upstream.data(), cell_gradients.data());
      double filter_inverse = 1;
      if (window_factors.size()) {
        const T* filter = static_cast<const T*>(filters.data_ptr()) + b * planes.channels;
        filter_inverse = inverse_norm(dot(filter, filter, planes.channels), 1);
        radial[b] = split(pyramid, static_cast<const T*>(cosines.data_ptr()) + b * cells,
                          static_cast<const T*>(inverse_norms.data_ptr()) + b * cells, cell_gradients.data(),
                          window_factors.data() + b * cells) *
                    filter_inverse * filter_inverse;
      }
      sum_levels(pyramid, filter_inverse, cell_gradients.data(), filter_factors.data() + b * n);
    });
  }

 private:
  // From the gradient by a window's cosine to that by its product, in place, and by its own mean, per position of it.
  static double split(const Pyramid& pyramid, const T* cosines, const T* inverse_norms, double* cell_gradients,
                      T* window_factors) {
    double radial = 0;
    for (int64_t level = 0; level < pyramid.levels(); ++level) {
      const Frames frames = pyramid.frames(level);
      for (int64_t q = 0, i = pyramid.offset(level); q < frames.positions(); ++q, ++i) {
        const double count = pyramid.counts(level)[q % (frames.h * frames.w)];
        radial += cell_gradients[i] * cosines[i];
        // The pass multiplies sums over the window, not means: the count once more.
        window_factors[i] = T(-cell_gradients[i] * cosines[i] * inverse_norms[i] * inverse_norms[i] / (count * count));
        cell_gradients[i] *= inverse_norms[i];
      }
    }
    return radial;
  }

  // Every position's share of its windows' gradients.
  static void sum_levels(const Pyramid& pyramid, double factor, const double* cell_gradients, T* filter_factors) {
    const Frames all = pyramid.frames(0);
    for (int64_t p = 0; p < all.positions(); ++p) {
      double sum = 0;
      for (int64_t level = 0; level < pyramid.levels(); ++level) {
        const Frames frames = pyramid.frames(level);
        const int64_t i = p / all.w % all.h >> level, j = p % all.w >> level;
        const int64_t q = (p / all.w / all.h * frames.h + i) * frames.w + j;
        sum += cell_gradients[pyramid.offset(level) + q] / pyramid.counts(level)[i * frames.w + j];
      }
      filter_factors[p] = T(factor * sum);
    }
  }
};

template <class T>
std::tuple<Tensor, Tensor> run_backward(const Tensor& grad_map, const Tensor& features, const Tensor& filters,
                                        const Tensor& map, const Tensor& cosines, const Tensor& inverse_norms,
                                        int64_t levels, const std::string& norm) {
  const Planes<T> planes(features, levels);
  const MapGradient<T> map_gradient(planes, grad_map, filters, map, cosines, inverse_norms, norm);
  const int64_t channels = planes.channels, blocks = planes.blocks;
  const Tensor dfeatures = empty_in_workspace(features), dfilters = torch::stable::empty_like(filters);
  const T* filter = static_cast<const T*>(filters.data_ptr());
  void* const gradients = dfeatures.data_ptr();
  T* const filter_gradients = static_cast<T*>(dfilters.data_ptr());
  Buffer<T> products(planes.batch * blocks * channels);
  run_tasks(planes.tasks(), [&](int64_t task) {
    const int64_t group = task % planes.groups, block = task / planes.groups % blocks;
    const int64_t b = task / planes.groups / blocks;
    const Frames frames = planes.frames(block, 0);
    Windows<T> windows(planes);
    Buffer<T> rounded;
    const T* filter_factors =
        map_gradient.filter_factors.data() + b * planes.pyramid.positions() + planes.begin(block, 0);
    const T* window_factors =
        map_gradient.window_factors.size() ? map_gradient.window_factors.data() + b * planes.pyramid.cells() : nullptr;
    const int64_t end = std::min(channels, (group + 1) * Planes<T>::kChannelsPerTask);
    for (int64_t c = group * Planes<T>::kChannelsPerTask; c < end; ++c) {
      int64_t stride;
      const T* x = planes.load(b, c, 1, block, windows.loaded, &stride);
      const T* spread_windows = nullptr;
      if (window_factors && levels > 1) {
        const T* finer = x;
        for (int64_t level = 1; level < levels; ++level) {
          T* const sums = windows.levels[level].data();
          planes.kernels.window_sums(finer, planes.frames(block, level - 1), windows.row_pairs.data(), sums);
          finer = sums;
        }
        for (int64_t level = levels - 1; level > 0; --level) {
          T* const sums = windows.levels[level].data();
          planes.kernels.scale(sums, window_factors + planes.begin(block, level), spread_windows,
                               planes.frames(block, level), sums);
          planes.kernels.spread(sums, planes.frames(block, level - 1), windows.row_pairs.data());
          spread_windows = windows.row_pairs.data();
        }
      }
      with_elements(planes.type, gradients, [&](auto* elements) {
        using Element = std::remove_pointer_t<decltype(elements)>;
        elements += planes.offset(b, c, block);
        T* gradient;
        if constexpr (std::is_same_v<Element, T>)
          gradient = elements;
        else
          rounded.resize(frames.positions()), gradient = rounded.data();
        products.data()[(b * blocks + block) * channels + c] = planes.kernels.gradient(
            x, filter[b * channels + c], filter_factors,
            window_factors ? window_factors + planes.begin(block, 0) : nullptr, spread_windows, frames, gradient);
        if constexpr (!std::is_same_v<Element, T>)
          for (int64_t p = 0; p < frames.positions(); ++p) elements[p] = static_cast<Element>(gradient[p]);
      });
    }
  });
  for (int64_t b = 0; b < planes.batch; ++b)
    for (int64_t c = 0; c < channels; ++c) {
      double sum = 0;
      for (int64_t block = 0; block < blocks; ++block) sum += products.data()[(b * blocks + block) * channels + c];
      filter_gradients[b * channels + c] = T(sum - map_gradient.radial[b] * filter[b * channels + c]);
    }
  return {dfeatures, dfilters};
}

std::tuple<Tensor, Tensor, Tensor> pyramid_correlation_fwd(Tensor features, Tensor filters, int64_t levels,
                                                           std::string norm) {
  return (is_double(filters) ? run_forward<double> : run_forward<float>)(features, contiguous(filters), levels, norm);
}

std::tuple<Tensor, Tensor> pyramid_correlation_bwd(Tensor grad_map, Tensor features, Tensor filters, Tensor map,
                                                   Tensor cosines, Tensor inverse_norms, int64_t levels,
                                                   std::string norm) {
  return (is_double(filters) ? run_backward<double> : run_backward<float>)(contiguous(grad_map), features,
                                                                           contiguous(filters), map, cosines,
                                                                           inverse_norms, levels, norm);
}

template <class T>
Tensor squared_differences(const Tensor& map, const Tensor& prediction) {
  const int64_t batch = map.size(0), n = batch ? map.numel() / batch : 0;
  Tensor losses = torch::stable::new_empty(map, {batch});
  with_elements(prediction, [&](auto* predicted) {
    for (int64_t b = 0; b < batch; ++b) {
      T* const values = static_cast<T*>(map.data_ptr()) + b * n;
      double sum = 0;
      for (int64_t p = 0; p < n; ++p) {
        values[p] -= static_cast<T>(predicted[b * n + p]);
        sum += double(values[p]) * values[p];
      }
      static_cast<T*>(losses.data_ptr())[b] = T(sum);
    }
  });
  return losses;
}

std::tuple<Tensor, Tensor, Tensor, Tensor> attention_consistency_fwd(Tensor features, Tensor filters, Tensor prediction,
                                                                     int64_t levels, std::string norm) {
  // The map becomes the difference in place.
  auto [map, cosines, inverse_norms] = pyramid_correlation_fwd(features, filters, levels, norm);
  const Tensor losses =
      (is_double(map) ? squared_differences<double> : squared_differences<float>)(map, contiguous(prediction));
  return {losses, map, cosines, inverse_norms};
}

}  // namespace
}  // namespace cmx

STABLE_TORCH_LIBRARY_IMPL(cmx_fast, CPU, m) {
  m.impl("pyramid_correlation_fwd", TORCH_BOX(&cmx::pyramid_correlation_fwd));
  m.impl("pyramid_correlation_bwd", TORCH_BOX(&cmx::pyramid_correlation_bwd));
  m.impl("attention_consistency_fwd", TORCH_BOX(&cmx::attention_consistency_fwd));
}
