// Where a CUDA kernel is launched: on the device of a tensor and that device's current stream.
#pragma once

#include <cuda_runtime.h>
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/util/Exception.h>

#include <cstdint>
#include <limits>

// Weak: a PyTorch without CUDA has none, and must load this library all the same.
extern "C" __attribute__((weak)) AOTITorchError aoti_torch_get_current_cuda_stream(int32_t device, void** stream);

namespace cmx {

class Launch {
 public:
  explicit Launch(const torch::stable::Tensor& tensor) : guard_(tensor.get_device_index()) {
    STD_TORCH_CHECK(aoti_torch_get_current_cuda_stream, "cmx_fast: this PyTorch was built without CUDA");
    void* stream = nullptr;
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(tensor.get_device_index(), &stream));
    stream_ = static_cast<cudaStream_t>(stream);
  }

  // Blocks that the device runs at a time.
  template <class Kernel>
  int64_t resident(Kernel kernel, int threads, int shared_floats) const {
    allow(kernel, shared_floats);
    int device = 0, processors = 0, blocks = 0;
    check(cudaGetDevice(&device));
    check(cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, device));
    check(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&blocks, kernel, threads, shared_floats * sizeof(float)));
    STD_TORCH_CHECK(blocks > 0, "cmx_fast: a CUDA kernel does not fit this GPU");
    return int64_t(processors) * blocks;
  }

  template <class Kernel, class... Arguments>
  void operator()(Kernel kernel, int64_t blocks, int threads, int shared_floats, Arguments... arguments) const {
    STD_TORCH_CHECK(blocks <= std::numeric_limits<int32_t>::max(), "cmx_fast: the tensor is too large for one launch, ",
                    blocks, " blocks");
    allow(kernel, shared_floats);
    kernel<<<unsigned(blocks), unsigned(threads), shared_floats * sizeof(float), stream_>>>(arguments...);
    check(cudaGetLastError());
  }

 private:
  static void check(cudaError_t error) {
    STD_TORCH_CHECK(error == cudaSuccess, "cmx_fast: a CUDA kernel was not launched: ", cudaGetErrorString(error));
  }

  // More shared memory than every kernel may have is asked for.
  template <class Kernel>
  static void allow(Kernel kernel, int shared_floats) {
    constexpr int kCommon = 48 << 10;
    const int bytes = shared_floats * int(sizeof(float));
    if (bytes > kCommon) check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes));
  }

  torch::stable::accelerator::DeviceGuard guard_;
  cudaStream_t stream_;
};

}  // namespace cmx
