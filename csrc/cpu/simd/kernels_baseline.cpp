// Kernels that every x86-64 (SSE2) and every aarch64 (NEON) can run.
#define CMX_VECTOR_BYTES 16
#define CMX_NAMESPACE baseline
#include "cpu/products/column_maxima_kernels.h"
#include "cpu/products/search_kernels.h"
#include "cpu/simd/vector_kernels.h"
#include "cpu/tiles/frame_kernels.h"
#include "cpu/tiles/gate_kernels.h"
#include "cpu/tiles/plane_kernels.h"
#include "cpu/tiles/sigmoid_kernels.h"
#include "cpu/tiles/softmax_kernels.h"
#include "cpu/tiles/spectrum_kernels.h"
