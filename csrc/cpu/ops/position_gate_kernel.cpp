// Gates per position on the CPU: a task owns 2048 positions of a sample and walks all their channels, a run of elements
// at a time, so that the positions' sums, maxima and slopes are its own and stay in the first-level cache.
//
// Why it is right: of equal channels the first keeps the peak, since only a larger value replaces it; a NaN, which
// comparisons drop, is taken from the sum. Elements that are not of type T are converted in a buffer of one run.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <limits>
#include <optional>
#include <tuple>

#include "common/checks.h"
#include "common/parallel.h"
#include "cpu/simd/element_runs.h"
#include "cpu/tensors/buffer.h"
#include "cpu/tiles/gates.h"

namespace cmx {
namespace {

using torch::headeronly::ScalarType;

constexpr int64_t kRun = 2048;  // positions of a task

// f(sample, first position, positions) for all runs of a (B, C, P) tensor.
template <class F>
void for_runs(const Tensor& x, const F& f) {
  const int64_t runs = ceil_div(x.size(2), kRun);
  run_tasks(x.size(0) * runs, [&](int64_t task) {
    const int64_t p = task % runs * kRun;
    f(task / runs, p, std::min(kRun, x.size(2) - p));
  });
}

template <class T>
Tensor new_maps(const Tensor& x, std::initializer_list<int64_t> size) {
  return torch::stable::new_empty(x, size, sizeof(T) == 8 ? ScalarType::Double : ScalarType::Float);
}

template <class T>
std::tuple<Tensor, Tensor> pool(const Tensor& x) {
  const int64_t batch = x.size(0), channels = x.size(1), positions = x.size(2);
  const Tensor pooled = new_maps<T>(x, {batch, 2, positions}),
               peak = torch::stable::new_empty(x, {batch, positions}, ScalarType::Int);
  const auto& kernels = best_gate_kernels<T>();
  const Elements in(x);
  for_runs(x, [&](int64_t b, int64_t p, int64_t n) {
    T buffer[kRun], sums[kRun] = {};
    T *highest = static_cast<T*>(pooled.data_ptr()) + 2 * b * positions + p, *means = highest + positions;
    int32_t* at = static_cast<int32_t*>(peak.data_ptr()) + b * positions + p;
    std::fill_n(highest, n, -std::numeric_limits<T>::infinity());
    std::fill_n(at, n, 0);
    for (int64_t c = 0; c < channels; ++c)
      kernels.pool_channel(read_run(in, (b * channels + c) * positions + p, n, buffer), n, c, sums, highest, at);
    for (int64_t i = 0; i < n; ++i) {
      means[i] = sums[i] / channels;
      if (sums[i] != sums[i]) highest[i] = sums[i];  // a NaN is no maximum of comparisons
    }
  });
  return {pooled, peak};
}

template <class T>
Tensor pool_backward(const Tensor& grad, const Tensor& peak, const Tensor& x) {
  const int64_t channels = x.size(1), positions = x.size(2);
  const Tensor dx = empty_in_workspace(x);
  const Elements result(dx);
  for_runs(x, [&](int64_t b, int64_t p, int64_t n) {
    T buffer[kRun], shares[kRun];
    const T *highest_grad = static_cast<const T*>(grad.data_ptr()) + 2 * b * positions + p,
            *mean_grad = highest_grad + positions;
    const int32_t* at = static_cast<const int32_t*>(peak.data_ptr()) + b * positions + p;
    for (int64_t i = 0; i < n; ++i) shares[i] = mean_grad[i] / channels;
    for (int64_t c = 0; c < channels; ++c) {
      const int64_t begin = (b * channels + c) * positions + p;
      T* to = run_to_write(result, begin, buffer);
      for (int64_t i = 0; i < n; ++i) to[i] = shares[i] + (at[i] == c ? highest_grad[i] : 0);
      write_run(result, begin, n, to);
    }
  });
  return dx;
}

template <class T>
Tensor gate(const Tensor& x, const Tensor& gates, const std::optional<Tensor>& residual) {
  const int64_t channels = x.size(1), positions = x.size(2);
  const Tensor out = empty_in_workspace(x);
  const auto& kernels = best_gate_kernels<T>();
  const Elements in(x), result(out);
  const std::optional<Elements> addend(residual);
  for_runs(x, [&](int64_t b, int64_t p, int64_t n) {
    T values[kRun], added[kRun], products[kRun];
    const T* factor = static_cast<const T*>(gates.data_ptr()) + b * positions + p;
    for (int64_t c = 0; c < channels; ++c) {
      const int64_t at = (b * channels + c) * positions + p;
      T* to = run_to_write(result, at, products);
      kernels.apply_map(read_run(in, at, n, values), factor, addend ? read_run(*addend, at, n, added) : nullptr, n, to);
      write_run(result, at, n, to);
    }
  });
  return out;
}

template <class T>
std::tuple<Tensor, Tensor, Tensor> gate_backward(const Tensor& grad, const Tensor& x, const Tensor& gates,
                                                 const std::optional<Tensor>& out) {
  const int64_t channels = x.size(1), positions = x.size(2);
  const Tensor dx = empty_in_workspace(x), dgate = torch::stable::empty_like(gates),
               dresidual = out ? empty_in_workspace(x) : torch::stable::new_empty(x, {0});
  const auto& kernels = best_gate_kernels<T>();
  const Elements upstream(grad), in(x), to_x(dx), to_residual(dresidual);
  const std::optional<Elements> output(out);
  for_runs(x, [&](int64_t b, int64_t p, int64_t n) {
    T grads[kRun], values[kRun], outputs[kRun], x_run[kRun], residual_run[kRun];
    const T* factor = static_cast<const T*>(gates.data_ptr()) + b * positions + p;
    T* slopes = static_cast<T*>(dgate.data_ptr()) + b * positions + p;
    std::fill_n(slopes, n, T(0));
    for (int64_t c = 0; c < channels; ++c) {
      const int64_t at = (b * channels + c) * positions + p;
      T *to = run_to_write(to_x, at, x_run), *passed = output ? run_to_write(to_residual, at, residual_run) : nullptr;
      kernels.gradient_map(read_run(upstream, at, n, grads), output ? read_run(*output, at, n, outputs) : nullptr,
                           read_run(in, at, n, values), factor, n, slopes, to, passed);
      write_run(to_x, at, n, to);
      if (output) write_run(to_residual, at, n, passed);
    }
  });
  return {dx, dgate, dresidual};
}

std::tuple<Tensor, Tensor> pool_channels_fwd(Tensor x) {
  return (is_double(x) ? pool<double> : pool<float>)(contiguous(x));
}

Tensor pool_channels_bwd(Tensor grad_pooled, Tensor peak, Tensor x) {
  return (is_double(x) ? pool_backward<double> : pool_backward<float>)(contiguous(grad_pooled), peak, contiguous(x));
}

Tensor position_gate_fwd(Tensor x, Tensor gates, std::optional<Tensor> residual) {
  return (is_double(x) ? gate<double> : gate<float>)(contiguous(x), contiguous(gates), contiguous_if_any(residual));
}

std::tuple<Tensor, Tensor, Tensor> position_gate_bwd(Tensor grad_out, Tensor x, Tensor gates,
                                                     std::optional<Tensor> out) {
  return (is_double(x) ? gate_backward<double> : gate_backward<float>)(contiguous(grad_out), contiguous(x),
                                                                       contiguous(gates), contiguous_if_any(out));
}

}  // namespace
}  // namespace cmx

STABLE_TORCH_LIBRARY_IMPL(cmx_fast, CPU, m) {
  m.impl("pool_channels_fwd", TORCH_BOX(&cmx::pool_channels_fwd));
  m.impl("pool_channels_bwd", TORCH_BOX(&cmx::pool_channels_bwd));
  m.impl("position_gate_fwd", TORCH_BOX(&cmx::position_gate_fwd));
  m.impl("position_gate_bwd", TORCH_BOX(&cmx::position_gate_bwd));
}
