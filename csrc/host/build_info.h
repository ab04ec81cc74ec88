#pragma once

#include <map>
#include <string>

namespace cmx_fast::host {

// The sources and tools of this build: compiler, flags, instruction sets, CUDA architectures, torch.
// Holds nothing that changes between two builds of the same sources on the same stack (no dates, no paths).
std::map<std::string, std::string> build_info();

// Which of the instruction sets that the kernels can use this processor and its operating system offer.
std::map<std::string, bool> cpu_features();

}  // namespace cmx_fast::host
