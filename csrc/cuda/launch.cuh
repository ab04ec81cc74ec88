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

  template <class Kernel, class... Arguments>
  void operator()(Kernel kernel, int64_t blocks, int threads, int shared_floats, Arguments... arguments) const {
    STD_TORCH_CHECK(blocks <= std::numeric_limits<int32_t>::max(), "cmx_fast: the tensor is too large for one launch, ",
                    blocks, " blocks");
    kernel<<<unsigned(blocks), unsigned(threads), shared_floats * sizeof(float), stream_>>>(arguments...);
    const cudaError_t error = cudaGetLastError();
    STD_TORCH_CHECK(error == cudaSuccess, "cmx_fast: a CUDA kernel was not launched: ", cudaGetErrorString(error));
  }

 private:
  torch::stable::accelerator::DeviceGuard guard_;
  cudaStream_t stream_;
};

}  // namespace cmx
