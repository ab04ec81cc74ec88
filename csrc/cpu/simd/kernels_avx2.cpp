// See kernels_avx512.cpp for the order of these lines.
#if defined(__x86_64__)
#pragma GCC target("avx2,fma")
#define CMX_VECTOR_BYTES 32
#define CMX_NAMESPACE avx2
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
