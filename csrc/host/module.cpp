// cmx_fast._host: what is not a tensor operator. pybind11, without torch, so that it answers when torch does not load.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "build_info.h"

PYBIND11_MODULE(_host, m) {
  m.doc() = "Build information and host-only helpers of cmx_fast.";
  m.def("build_info", &cmx_fast::host::build_info,
        "dict[str, str]: compiler, flags, isa, cuda, cuda_arch_list, torch, torch_abi_target of this build.");
  m.def("cpu_features", &cmx_fast::host::cpu_features,
        "dict[str, bool]: the instruction sets the kernels can use that this processor offers.");
}
