// Tables of the best instruction set at run time: one per group of kernels, all by the same order of preference.
#include "cpu/simd/kernels.h"

#include "cpu/products/column_maxima.h"
#include "cpu/products/search.h"
#include "cpu/simd/instruction_set.h"
#include "cpu/tiles/frames.h"
#include "cpu/tiles/gates.h"
#include "cpu/tiles/planes.h"
#include "cpu/tiles/sigmoid_tiles.h"
#include "cpu/tiles/softmax_tiles.h"
#include "cpu/tiles/spectra.h"

namespace cmx {

template <class T>
const Kernels<T>& best_kernels() {
#if defined(__x86_64__)
  if (instruction_set() >= InstructionSet::kAvx512) return avx512::tile_kernels<T>();
  if (instruction_set() >= InstructionSet::kAvx2) return avx2::tile_kernels<T>();
#endif
  return baseline::tile_kernels<T>();
}

template <class T>
const SearchKernels<T>& best_search_kernels() {
#if defined(__x86_64__)
  if (instruction_set() >= InstructionSet::kAvx512) return avx512::search_kernels<T>();
  if (instruction_set() >= InstructionSet::kAvx2) return avx2::search_kernels<T>();
#endif
  return baseline::search_kernels<T>();
}

template <class T>
const MaximaKernels<T>& best_maxima_kernels() {
#if defined(__x86_64__)
  if (instruction_set() >= InstructionSet::kAvx512) return avx512::maxima_kernels<T>();
  if (instruction_set() >= InstructionSet::kAvx2) return avx2::maxima_kernels<T>();
#endif
  return baseline::maxima_kernels<T>();
}

template <class T>
const PlaneKernels<T>& best_plane_kernels() {
#if defined(__x86_64__)
  if (instruction_set() >= InstructionSet::kAvx512) return avx512::plane_kernels<T>();
  if (instruction_set() >= InstructionSet::kAvx2) return avx2::plane_kernels<T>();
#endif
  return baseline::plane_kernels<T>();
}

template <class T>
const SoftmaxKernels<T>& best_softmax_kernels() {
#if defined(__x86_64__)
  if (instruction_set() >= InstructionSet::kAvx512) return avx512::softmax_kernels<T>();
  if (instruction_set() >= InstructionSet::kAvx2) return avx2::softmax_kernels<T>();
#endif
  return baseline::softmax_kernels<T>();
}

template <class T>
const SigmoidKernels<T>& best_sigmoid_kernels() {
#if defined(__x86_64__)
  if (instruction_set() >= InstructionSet::kAvx512) return avx512::sigmoid_kernels<T>();
  if (instruction_set() >= InstructionSet::kAvx2) return avx2::sigmoid_kernels<T>();
#endif
  return baseline::sigmoid_kernels<T>();
}

template <class T>
const GateKernels<T>& best_gate_kernels() {
#if defined(__x86_64__)
  if (instruction_set() >= InstructionSet::kAvx512) return avx512::gate_kernels<T>();
  if (instruction_set() >= InstructionSet::kAvx2) return avx2::gate_kernels<T>();
#endif
  return baseline::gate_kernels<T>();
}

const SpectrumKernels& best_spectrum_kernels() {
#if defined(__x86_64__)
  if (instruction_set() >= InstructionSet::kAvx512) return avx512::spectrum_kernels();
  if (instruction_set() >= InstructionSet::kAvx2) return avx2::spectrum_kernels();
#endif
  return baseline::spectrum_kernels();
}

const FrameKernels& best_frame_kernels() {
#if defined(__x86_64__)
  if (instruction_set() >= InstructionSet::kAvx512) return avx512::frame_kernels();
  if (instruction_set() >= InstructionSet::kAvx2) return avx2::frame_kernels();
#endif
  return baseline::frame_kernels();
}

template const Kernels<float>& best_kernels<float>();
template const Kernels<double>& best_kernels<double>();
template const SearchKernels<float>& best_search_kernels<float>();
template const SearchKernels<double>& best_search_kernels<double>();
template const MaximaKernels<float>& best_maxima_kernels<float>();
template const MaximaKernels<double>& best_maxima_kernels<double>();
template const PlaneKernels<float>& best_plane_kernels<float>();
template const PlaneKernels<double>& best_plane_kernels<double>();
template const SoftmaxKernels<float>& best_softmax_kernels<float>();
template const SoftmaxKernels<double>& best_softmax_kernels<double>();
template const SigmoidKernels<float>& best_sigmoid_kernels<float>();
template const SigmoidKernels<double>& best_sigmoid_kernels<double>();
template const GateKernels<float>& best_gate_kernels<float>();
template const GateKernels<double>& best_gate_kernels<double>();

}  // namespace cmx
