// See kernels_avx512.cpp for the order of these lines.
#if defined(__x86_64__)
#pragma GCC target("avx2,fma")
#define CMX_VECTOR_BYTES 32
#define CMX_NAMESPACE avx2
#include "frame_kernels.h"
#include "gate_kernels.h"
#include "plane_kernels.h"
#include "search_kernels.h"
#include "softmax_kernels.h"
#include "spectrum_kernels.h"
#include "vector_kernels.h"
#endif
