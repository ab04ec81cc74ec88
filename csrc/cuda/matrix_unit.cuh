// Products of 16 x 16 by 16 x 8 that a warp makes at once, and the loads of what they take from shared memory. Included
// as "cuda/matrix_unit.cuh": the tests' emulator has a file of that name before this one in the include path.
//
// A register holds two neighbours of a row. Of a lane with group = lane / 4 and pair = lane % 4 * 2 they are, of the
// left factor: row group, columns pair and pair + 1; row group + 8, the same columns; then both rows at columns + 8. Of
// the right factor, column group: rows pair and pair + 1; the same + 8. Of the sums: row group, columns pair and
// pair + 1; row group + 8, the same columns.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>

namespace cmx {

__device__ inline void multiply_add(__nv_bfloat16, float (&sums)[4], const uint32_t (&left)[4], uint32_t upper,
                                    uint32_t lower) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])
      : "r"(left[0]), "r"(left[1]), "r"(left[2]), "r"(left[3]), "r"(upper), "r"(lower));
}
__device__ inline void multiply_add(__half, float (&sums)[4], const uint32_t (&left)[4], uint32_t upper,
                                    uint32_t lower) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])
      : "r"(left[0]), "r"(left[1]), "r"(left[2]), "r"(left[3]), "r"(upper), "r"(lower));
}

// Four matrices of 8 x 8: lane i points to the 16 aligned bytes of row i % 8 of matrix i / 8. Register m gets row
// lane / 4, columns lane % 4 * 2 and the next, of matrix m.
__device__ inline void load_matrices(uint32_t (&registers)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(registers[0]), "=r"(registers[1]), "=r"(registers[2]), "=r"(registers[3])
               : "r"(uint32_t(__cvta_generic_to_shared(row)))
               : "memory");
}
// The same of the matrices' transposes.
__device__ inline void load_transposed(uint32_t (&registers)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(registers[0]), "=r"(registers[1]), "=r"(registers[2]), "=r"(registers[3])
               : "r"(uint32_t(__cvta_generic_to_shared(row)))
               : "memory");
}

}  // namespace cmx
