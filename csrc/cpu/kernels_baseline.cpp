// What every x86-64 (SSE2) and every aarch64 (NEON) can run.
#define CMX_VECTOR_BYTES 16
#define CMX_NAMESPACE baseline
#include "frame_kernels.h"
#include "gate_kernels.h"
#include "plane_kernels.h"
#include "search_kernels.h"
#include "softmax_kernels.h"
#include "spectrum_kernels.h"
#include "vector_kernels.h"
