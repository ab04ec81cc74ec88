#include "kernels.h"

namespace cmx {

template <class T>
const Kernels<T>& best_kernels() {
#if defined(__x86_64__)
  static const bool has_avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  static const bool has_avx512 = has_avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                                 __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  if (has_avx512) return avx512::tile_kernels<T>();
  if (has_avx2) return avx2::tile_kernels<T>();
#endif
  return baseline::tile_kernels<T>();
}

template const Kernels<float>& best_kernels<float>();
template const Kernels<double>& best_kernels<double>();

}  // namespace cmx
