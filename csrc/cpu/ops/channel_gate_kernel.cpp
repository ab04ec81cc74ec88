// Gates per channel on the CPU, a few samples at a time: between their pooling and their gating, and between the slopes
// and the gradients, they stay in the cache, so memory is read once.
//
// Algorithm: per group of samples, pool every plane, run the small network for the whole group, gate every plane;
// backward, the slope by each gate, the network backward, the gradients. Tile and owner: a plane is the positions of
// one channel of one sample, walked in runs of 4096 that are converted in a buffer where they are not of type T. Where
// there are fewer groups than threads a plane is a task, else a group is; a plane's sums are one task's either way.
//
// Why it is right: a run's sum is of type T, in four chains, and the runs are added in double. The peak is the first
// position that equals the maximum; a NaN, which comparisons drop, is found by the sum. Group sizes do not depend on
// the number of threads, so neither do the results.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <optional>
#include <tuple>

#include "common/checks.h"
#include "common/parallel.h"
#include "cpu/simd/element_runs.h"
#include "cpu/simd/kernels.h"
#include "cpu/tensors/buffer.h"
#include "cpu/tiles/gates.h"

namespace cmx {
namespace {

using torch::headeronly::ScalarType;

constexpr int64_t kRun = 4096;                   // positions converted at a time
constexpr int64_t kGroupElements = 1024 * 1024;  // of the samples that one pass of the small network serves
constexpr int64_t kMostSamples = 8;

struct Sizes {
  int64_t batch, channels, positions, hidden, pools;  // pools: 2 with the maximum, else 1
  int64_t samples() const {                           // in a group; no function of the number of threads
    return std::clamp<int64_t>(kGroupElements / std::max<int64_t>(1, channels * positions), 1, kMostSamples);
  }
  int64_t plane(int64_t sample, int64_t channel) const { return (sample * channels + channel) * positions; }
};

// one(first, count, planes) for every group of samples; planes(f) runs f(sample, channel) for all planes of the group,
// on all threads where the groups are too few for them.
template <class One>
void for_groups(const Sizes& sizes, const One& one) {
  const int64_t size = sizes.samples(), groups = ceil_div(sizes.batch, size);
  const bool inside = groups < int64_t(torch::stable::get_num_threads());
  const auto group = [&](int64_t g) {
    const int64_t first = g * size, count = std::min(size, sizes.batch - first);
    one(first, count, [&](const auto& f) {
      const auto plane = [&](int64_t i) { f(first + i / sizes.channels, i % sizes.channels); };
      if (inside) return run_tasks(count * sizes.channels, plane);
      for (int64_t i = 0; i < count * sizes.channels; ++i) plane(i);
    });
  };
  if (!inside) return run_tasks(groups, group);
  for (int64_t g = 0; g < groups; ++g) group(g);
}

template <class T>
T* data(const Tensor& tensor) {
  return static_cast<T*>(tensor.data_ptr());
}

// The first of a plane's positions with this value; for a NaN, the first NaN.
template <class T>
int64_t find(const Elements& x, int64_t plane, int64_t n, T value) {
  T buffer[kRun];
  for (int64_t p = 0; p < n; p += kRun) {
    const int64_t length = std::min(kRun, n - p);
    const T* run = read_run(x, plane + p, length, buffer);
    for (int64_t i = 0; i < length; ++i)
      if (run[i] == value || (value != value && run[i] != run[i])) return p + i;
  }
  return 0;
}

template <class T>
struct Forward {
  const Sizes sizes;
  const Elements x, out;
  const std::optional<Elements> residual;
  T *pooled, *hidden, *gate;
  int64_t* peak;
  const T *hidden_bias, *gate_bias;
  const Kernels<T>& products = best_kernels<T>();
  const GateKernels<T>& gates = best_gate_kernels<T>();
  Buffer<T> hidden_weight, gate_weight;

  void pack(const T* to_hidden, const T* to_gate) {
    const auto [_, c, p, h, k] = sizes;
    hidden_weight.resize(round_up(h, products.panel) * c);
    products.pack_columns(to_hidden, h, c, hidden_weight.data());
    gate_weight.resize(round_up(c, products.panel) * h);
    products.pack_columns(to_gate, c, h, gate_weight.data());
  }

  void pool(int64_t b, int64_t c) const {
    T buffer[kRun], highest = -std::numeric_limits<T>::infinity(), run_highest;
    double sum = 0;
    for (int64_t p = 0; p < sizes.positions; p += kRun) {
      const int64_t n = std::min(kRun, sizes.positions - p);
      sum += gates.pool(read_run(x, sizes.plane(b, c) + p, n, buffer), n, sizes.pools > 1 ? &run_highest : nullptr);
      if (sizes.pools > 1) highest = std::max(highest, run_highest);
    }
    T* to = pooled + b * sizes.pools * sizes.channels + c;
    *to = sum / sizes.positions;
    if (sizes.pools == 1) return;
    if (sum != sum) highest = std::numeric_limits<T>::quiet_NaN();
    to[sizes.channels] = highest;
    peak[b * sizes.channels + c] = find(x, sizes.plane(b, c), sizes.positions, highest);
  }

  // Of `count` samples: gate = sigmoid(W2 sum_k relu(W1 pooled_k + b1) + pools b2).
  void decide(int64_t first, int64_t count) const {
    const auto [_, c, p, h, k] = sizes;
    const int64_t wide = round_up(std::max(h, c), products.panel);
    Buffer<T> s(count * k * wide), together(count * h);
    products.scores(count * k, h, c, pooled + first * k * c, hidden_weight.data(), s.data(), wide);
    T* kept = hidden + first * k * h;
    std::fill_n(together.data(), count * h, T(0));
    for (int64_t row = 0; row < count * k; ++row)
      for (int64_t j = 0; j < h; ++j) {
        const T value = s.data()[row * wide + j] + hidden_bias[j];
        kept[row * h + j] = value < 0 ? 0 : value;
        together.data()[row / k * h + j] += kept[row * h + j];
      }
    products.scores(count, c, h, together.data(), gate_weight.data(), s.data(), wide);
    T* group_gates = gate + first * c;
    for (int64_t b = 0; b < count; ++b)
      for (int64_t j = 0; j < c; ++j)
        group_gates[b * c + j] = 1 / (1 + std::exp(-(s.data()[b * wide + j] + T(k) * gate_bias[j])));
  }

  void apply(int64_t b, int64_t c) const {
    T in[kRun], added[kRun], result[kRun];
    const T factor = gate[b * sizes.channels + c];
    for (int64_t p = 0; p < sizes.positions; p += kRun) {
      const int64_t n = std::min(kRun, sizes.positions - p), at = sizes.plane(b, c) + p;
      T* to = run_to_write(out, at, result);
      gates.apply(read_run(x, at, n, in), factor, residual ? read_run(*residual, at, n, added) : nullptr, n, to);
      write_run(out, at, n, to);
    }
  }
};

template <class T>
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> run_forward(const Tensor& x, const std::optional<Tensor>& residual,
                                                               const Tensor& hidden_weight, const Tensor& hidden_bias,
                                                               const Tensor& gate_weight, const Tensor& gate_bias,
                                                               bool maximum) {
  const Sizes sizes{x.size(0), x.size(1), x.size(2), hidden_weight.size(0), maximum ? 2 : 1};
  const auto [b, c, p, h, k] = sizes;
  const Tensor out = empty_in_workspace(x), pooled = torch::stable::new_empty(hidden_weight, {b, k, c}),
               hidden = torch::stable::new_empty(hidden_weight, {b, k, h}),
               gate = torch::stable::new_empty(hidden_weight, {b, c}),
               peak = torch::stable::new_empty(hidden_weight, {b, maximum ? c : 0}, ScalarType::Long);
  Forward<T> pass{sizes,
                  x,
                  out,
                  residual,
                  data<T>(pooled),
                  data<T>(hidden),
                  data<T>(gate),
                  data<int64_t>(peak),
                  data<T>(hidden_bias),
                  data<T>(gate_bias)};
  pass.pack(data<T>(hidden_weight), data<T>(gate_weight));
  for_groups(sizes, [&](int64_t first, int64_t count, const auto& planes) {
    planes([&](int64_t b, int64_t c) { pass.pool(b, c); });
    pass.decide(first, count);
    planes([&](int64_t b, int64_t c) { pass.apply(b, c); });
  });
  return {out, pooled, hidden, gate, peak};
}

template <class T>
struct Backward {
  const Sizes sizes;
  const Elements grad, x, dx, dresidual;
  const std::optional<Elements> out;
  const T *hidden, *gate;
  const int64_t* peak;
  T *dhidden, *dlogits;
  const Kernels<T>& products = best_kernels<T>();
  const GateKernels<T>& gates = best_gate_kernels<T>();
  Buffer<T> hidden_weight, gate_weight;

  void pack(const T* to_hidden, const T* to_gate) {
    const auto [_, c, p, h, k] = sizes;
    hidden_weight.resize(h * round_up(c, products.panel));
    products.pack_rows(to_hidden, h, c, h, hidden_weight.data());
    gate_weight.resize(c * round_up(h, products.panel));
    products.pack_rows(to_gate, c, h, c, gate_weight.data());
  }

  void slope(int64_t b, int64_t c) const {
    T grads[kRun], values[kRun], outputs[kRun];
    double sum = 0;
    for (int64_t p = 0; p < sizes.positions; p += kRun) {
      const int64_t n = std::min(kRun, sizes.positions - p), at = sizes.plane(b, c) + p;
      sum += gates.slope(read_run(grad, at, n, grads), out ? read_run(*out, at, n, outputs) : nullptr,
                         read_run(x, at, n, values), n);
    }
    const T g = gate[b * sizes.channels + c];
    dlogits[b * sizes.channels + c] = T(sum) * g * (1 - g);
  }

  // Of `count` samples the gradients of the hidden layer's inputs, and of what was pooled: (count, pools, channels).
  void through_network(int64_t first, int64_t count, T* dpooled) const {
    const auto [_, c, p, h, k] = sizes;
    Buffer<T> together(count * h);
    std::fill_n(together.data(), count * h, T(0));
    products.add_product(count, c, h, dlogits + first * c, c, gate_weight.data(), c, together.data());
    const T* kept = hidden + first * k * h;
    T* to = dhidden + first * k * h;
    for (int64_t row = 0; row < count * k; ++row)
      for (int64_t j = 0; j < h; ++j) to[row * h + j] = kept[row * h + j] <= 0 ? 0 : together.data()[row / k * h + j];
    std::fill_n(dpooled, count * k * c, T(0));
    products.add_product(count * k, h, c, to, h, hidden_weight.data(), h, dpooled);
  }

  void gradient(int64_t b, int64_t c, const T* dpooled) const {
    T grads[kRun], outputs[kRun], x_run[kRun], residual_run[kRun];
    const T factor = gate[b * sizes.channels + c], offset = dpooled[c] / sizes.positions;
    const int64_t top = sizes.pools > 1 ? peak[b * sizes.channels + c] : -1;
    for (int64_t p = 0; p < sizes.positions; p += kRun) {
      const int64_t n = std::min(kRun, sizes.positions - p), at = sizes.plane(b, c) + p;
      T *to = run_to_write(dx, at, x_run), *passed = out ? run_to_write(dresidual, at, residual_run) : nullptr;
      gates.gradient(read_run(grad, at, n, grads), out ? read_run(*out, at, n, outputs) : nullptr, factor, offset, n,
                     to, passed);
      if (p <= top && top < p + n) to[top - p] += dpooled[sizes.channels + c];
      write_run(dx, at, n, to);
      if (out) write_run(dresidual, at, n, passed);
    }
  }
};

template <class T>
std::tuple<Tensor, Tensor, Tensor, Tensor> run_backward(const Tensor& grad, const Tensor& x,
                                                        const std::optional<Tensor>& out, const Tensor& hidden_weight,
                                                        const Tensor& gate_weight, const Tensor& hidden,
                                                        const Tensor& gate, const Tensor& peak) {
  const Sizes sizes{x.size(0), x.size(1), x.size(2), hidden_weight.size(0), hidden.size(1)};
  const Tensor dx = empty_in_workspace(x), dresidual = out ? empty_in_workspace(x) : torch::stable::new_empty(x, {0}),
               dhidden = torch::stable::empty_like(hidden), dlogits = torch::stable::empty_like(gate);
  Backward<T> pass{sizes,
                   grad,
                   x,
                   dx,
                   dresidual,
                   out,
                   data<T>(hidden),
                   data<T>(gate),
                   data<int64_t>(peak),
                   data<T>(dhidden),
                   data<T>(dlogits)};
  pass.pack(data<T>(hidden_weight), data<T>(gate_weight));
  for_groups(sizes, [&](int64_t first, int64_t count, const auto& planes) {
    Buffer<T> dpooled(count * sizes.pools * sizes.channels);
    planes([&](int64_t b, int64_t c) { pass.slope(b, c); });
    pass.through_network(first, count, dpooled.data());
    planes([&](int64_t b, int64_t c) {
      pass.gradient(b, c, dpooled.data() + (b - first) * sizes.pools * sizes.channels);
    });
  });
  return {dx, dresidual, dhidden, dlogits};
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> channel_gate_fwd(Tensor x, std::optional<Tensor> residual,
                                                                    Tensor hidden_weight, Tensor hidden_bias,
                                                                    Tensor gate_weight, Tensor gate_bias,
                                                                    bool maximum) {
  return (is_double(x) ? run_forward<double> : run_forward<float>)(contiguous(x), contiguous_if_any(residual),
                                                                   contiguous(hidden_weight), contiguous(hidden_bias),
                                                                   contiguous(gate_weight), contiguous(gate_bias),
                                                                   maximum);
}

std::tuple<Tensor, Tensor, Tensor, Tensor> channel_gate_bwd(Tensor grad_out, Tensor x, std::optional<Tensor> out,
                                                            Tensor hidden_weight, Tensor gate_weight, Tensor hidden,
                                                            Tensor gate, Tensor peak) {
  return (is_double(x) ? run_backward<double> : run_backward<float>)(contiguous(grad_out), contiguous(x),
                                                                     contiguous_if_any(out), contiguous(hidden_weight),
                                                                     contiguous(gate_weight), hidden, gate, peak);
}

}  // namespace
}  // namespace cmx

STABLE_TORCH_LIBRARY_IMPL(cmx_fast, CPU, m) {
  m.impl("channel_gate_fwd", TORCH_BOX(&cmx::channel_gate_fwd));
  m.impl("channel_gate_bwd", TORCH_BOX(&cmx::channel_gate_bwd));
}
