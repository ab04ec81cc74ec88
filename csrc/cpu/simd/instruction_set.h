// The best instruction set that this processor and its operating system offer, asked once.
#pragma once

namespace cmx {

// Each includes those before it.
enum class InstructionSet { kBaseline, kAvx2, kAvx512, kAvx512Bf16, kAmx };

// The best there is. ATEN_CPU_CAPABILITY, by which PyTorch's own kernels are held back ("default", "avx2", "avx512"),
// holds these back too, and takes "avx512_bf16" besides, so that one machine can test the kernels of others.
InstructionSet instruction_set();

}  // namespace cmx
