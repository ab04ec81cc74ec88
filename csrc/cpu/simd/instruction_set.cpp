// AVX-512 counts only with all of F, BW, DQ and VL, its bfloat16 dot products (CPUID leaf 7.1) on top of these, and AMX
// only where Linux grants a process the state of its tiles.
#include "cpu/simd/instruction_set.h"

#include <algorithm>
#include <cstdlib>
#include <string_view>

#if defined(__x86_64__)
#include <cpuid.h>
#endif
#if defined(__x86_64__) && defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace cmx {
namespace {

#if defined(__x86_64__)
bool may_use_tiles() {
#if defined(__linux__)
  unsigned a, b, c, d;
  if (!__get_cpuid_count(7, 0, &a, &b, &c, &d) || !(d >> 22 & 1) || !(d >> 24 & 1)) return false;
  // A process has to ask for the tiles' state before its first use.
  constexpr int kRequestPermission = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
#else
  return false;
#endif
}

InstructionSet supported() {
  unsigned a, b, c, d;
  if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma")) return InstructionSet::kBaseline;
  if (!__builtin_cpu_supports("avx512f") || !__builtin_cpu_supports("avx512bw") ||
      !__builtin_cpu_supports("avx512dq") || !__builtin_cpu_supports("avx512vl"))
    return InstructionSet::kAvx2;
  if (!__get_cpuid_count(7, 1, &a, &b, &c, &d) || !(a >> 5 & 1)) return InstructionSet::kAvx512;
  return may_use_tiles() ? InstructionSet::kAmx : InstructionSet::kAvx512Bf16;
}
#else
InstructionSet supported() { return InstructionSet::kBaseline; }
#endif

InstructionSet limit() {
  const char* value = std::getenv("ATEN_CPU_CAPABILITY");
  const std::string_view name = value ? value : "";
  if (name == "default") return InstructionSet::kBaseline;
  if (name == "avx2") return InstructionSet::kAvx2;
  if (name == "avx512") return InstructionSet::kAvx512;
  if (name == "avx512_bf16") return InstructionSet::kAvx512Bf16;
  return InstructionSet::kAmx;
}

}  // namespace

InstructionSet instruction_set() {
  static const InstructionSet best = std::min(supported(), limit());
  return best;
}

}  // namespace cmx
