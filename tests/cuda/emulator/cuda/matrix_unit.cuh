// The emulator's own of csrc/cuda/matrix_unit.cuh, with the layouts of the PTX manual (m16n8k16, ldmatrix).
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "../emulator.h"

namespace cmx {

inline float number(__nv_bfloat16 x) { return __bfloat162float(x); }
inline float number(__half x) { return __half2float(x); }

// As matrix units round their sums.
inline float toward_zero(double x) {
  const float nearest = float(x);
  return std::fabs(nearest) > std::fabs(x) ? std::nextafter(nearest, 0.f) : nearest;
}

template <class Element>
void multiply_add(Element, float (&sums)[4], const uint32_t (&left)[4], uint32_t upper, uint32_t lower) {
  // As float32: a lane reads what others have unpacked.
  struct Factors {
    float left[4][2], right[2][2];
  } mine;
  const auto unpack = [](uint32_t pair, float (&to)[2]) {
    Element elements[2];
    std::memcpy(elements, &pair, sizeof pair);
    to[0] = number(elements[0]);
    to[1] = number(elements[1]);
  };
  for (int i = 0; i < 4; ++i) unpack(left[i], mine.left[i]);
  unpack(upper, mine.right[0]);
  unpack(lower, mine.right[1]);
  const auto of = emulator::block().share(mine);
  const int lane = threadIdx.x % emulator::kLanes;
  for (int i = 0; i < 4; ++i) {
    const int row = lane / 4, lower_rows = i / 2, column = lane % 4 * 2 + i % 2;
    double sum = sums[i];
    for (int k = 0; k < 16; ++k)
      sum += double(of[row * 4 + k % 8 / 2]->left[k / 8 * 2 + lower_rows][k % 2]) *
             of[column * 4 + k % 8 / 2]->right[k / 8][k % 2];
    sums[i] = toward_zero(sum);
  }
}

// The rows of all lanes.
inline std::array<const char* const*, emulator::kLanes> rows_from(const void* row) {
  if (reinterpret_cast<uintptr_t>(row) % 16) emulator::block().fail("an unaligned row of a matrix");
  return emulator::block().share(static_cast<const char*>(row));
}

inline void load_matrices(uint32_t (&registers)[4], const void* row) {
  const auto rows = rows_from(row);
  const int lane = threadIdx.x % emulator::kLanes;
  for (int m = 0; m < 4; ++m) std::memcpy(&registers[m], *rows[m * 8 + lane / 4] + lane % 4 * 4, 4);
}
inline void load_transposed(uint32_t (&registers)[4], const void* row) {
  const auto rows = rows_from(row);
  const int lane = threadIdx.x % emulator::kLanes;
  for (int m = 0; m < 4; ++m)
    for (int i = 0; i < 2; ++i)
      std::memcpy(reinterpret_cast<char*>(&registers[m]) + 2 * i, *rows[m * 8 + lane % 4 * 2 + i] + lane / 4 * 2, 2);
}

}  // namespace cmx
