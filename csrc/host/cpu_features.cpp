#include "build_info.h"

#if defined(__x86_64__)
#include <cpuid.h>
#endif
#if defined(__linux__) && defined(__aarch64__)
#include <sys/auxv.h>
#endif

namespace cmx_fast::host {

#if defined(__x86_64__)

namespace {

// The register states that the operating system saves on a context switch (XCR0). Without its bit an instruction set
// that the processor has still faults.
unsigned long long saved_states() {
  unsigned low = 0, high = 0;
  __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return (static_cast<unsigned long long>(high) << 32) | low;
}

struct Registers {
  unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
};

Registers leaf(unsigned number, unsigned sub = 0) {
  Registers r;
  __get_cpuid_count(number, sub, &r.eax, &r.ebx, &r.ecx, &r.edx);
  return r;
}

bool bit(unsigned value, int index) { return (value >> index) & 1u; }

}  // namespace

std::map<std::string, bool> cpu_features() {
  constexpr unsigned long long kAvxState = 0x6, kAvx512State = 0xe6, kAmxState = 0x60000;
  const Registers one = leaf(1), seven = leaf(7), seven_one = leaf(7, 1);
  const unsigned long long state = bit(one.ecx, 27) ? saved_states() : 0;
  const bool avx = (state & kAvxState) == kAvxState, avx512 = (state & kAvx512State) == kAvx512State;
  const bool amx = (state & kAmxState) == kAmxState;
  return {
      {"avx2", avx && bit(seven.ebx, 5)},        {"fma", avx && bit(one.ecx, 12)},
      {"avx512f", avx512 && bit(seven.ebx, 16)}, {"avx512_bf16", avx512 && bit(seven_one.eax, 5)},
      {"amx_bf16", amx && bit(seven.edx, 22)},
  };
}

#elif defined(__linux__) && defined(__aarch64__)

std::map<std::string, bool> cpu_features() {
  constexpr unsigned long kAsimd = 1ul << 1, kSve = 1ul << 22, kBf16 = 1ul << 14;  // HWCAP, HWCAP, HWCAP2
  return {
      {"neon", (getauxval(AT_HWCAP) & kAsimd) != 0},
      {"sve", (getauxval(AT_HWCAP) & kSve) != 0},
      {"bf16", (getauxval(AT_HWCAP2) & kBf16) != 0},
  };
}

#else

std::map<std::string, bool> cpu_features() { return {}; }

#endif

}  // namespace cmx_fast::host
