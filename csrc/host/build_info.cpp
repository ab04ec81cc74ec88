#include "build_info.h"

namespace cmx_fast::host {

std::map<std::string, std::string> build_info() {
  return {
#if defined(__clang__)
      {"compiler", "clang " __clang_version__},
#else
      {"compiler", "g++ " __VERSION__},
#endif
      {"flags", CMX_CXX_FLAGS},
      {"isa", CMX_ISA},
      {"cuda", CMX_CUDA},
      {"cuda_arch_list", CMX_CUDA_ARCH_LIST},
      {"torch", CMX_TORCH_VERSION},
      {"torch_abi_target", CMX_TORCH_ABI_TARGET},
  };
}

}  // namespace cmx_fast::host
