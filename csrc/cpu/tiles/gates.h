// Passes over n positions of one channel that gates ask of one instruction set. A null residual, or a null out, means a
// gate alone; with one, relu(. + residual) follows the gate, and nothing passes back where out <= 0.
#pragma once

#include <cstdint>

namespace cmx {

template <class T>
struct GateKernels {
  // The sum, and with `highest` their maximum, -infinity where n is 0.
  T (*pool)(const T* x, int64_t n, T* highest);
  // x * gate
  void (*apply)(const T* x, T gate, const T* residual, int64_t n, T* out);
  // The sum of what passes back, times x.
  T (*slope)(const T* grad, const T* out, const T* x, int64_t n);
  // dx = what passes back * gate + offset; dresidual = what passes back, unless null.
  void (*gradient)(const T* grad, const T* out, T gate, T offset, int64_t n, T* dx, T* dresidual);

  // The same with a gate per position. sums += x; highest, at: the largest channel's value and number.
  void (*pool_channel)(const T* x, int64_t n, int32_t channel, T* sums, T* highest, int32_t* at);
  void (*apply_map)(const T* x, const T* gate, const T* residual, int64_t n, T* out);
  // slopes += what passes back * x
  void (*gradient_map)(const T* grad, const T* out, const T* x, const T* gate, int64_t n, T* slopes, T* dx,
                       T* dresidual);
};

namespace baseline {
template <class T>
const GateKernels<T>& gate_kernels();
}
namespace avx2 {
template <class T>
const GateKernels<T>& gate_kernels();
}
namespace avx512 {
template <class T>
const GateKernels<T>& gate_kernels();
}
template <class T>
const GateKernels<T>& best_gate_kernels();

}  // namespace cmx
