// The target is set before every include: nothing here may be compiled for an older processor, and no template of the
// standard library is used, so no shared inline function is compiled for a newer one.
#if defined(__x86_64__)
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")
#define CMX_VECTOR_BYTES 64
#define CMX_NAMESPACE avx512
#include "cpu/products/column_maxima_kernels.h"
#include "cpu/products/search_kernels.h"
#include "cpu/simd/vector_kernels.h"
#include "cpu/tiles/frame_kernels.h"
#include "cpu/tiles/gate_kernels.h"
#include "cpu/tiles/plane_kernels.h"
#include "cpu/tiles/sigmoid_kernels.h"
#include "cpu/tiles/softmax_kernels.h"
#include "cpu/tiles/spectrum_kernels.h"
#endif
