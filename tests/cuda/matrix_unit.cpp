// The emulator's matrix unit against the tables of the PTX manual, written out here as it has them: operands of
// mma.m16n8k16 are filled element by element, and matrices are read from rows that lie apart.
#include "cuda/matrix_unit.cuh"

#include <cstdio>

#include "cuda/elements.cuh"

namespace cmx {
alignas(16) float shared[emulator::kSharedFloats];

float a[16][16], b[16][8], c[16][8], d[16][8];
uint16_t matrices[4][8][8];
uint32_t plain[32][4], transposed[32][4];

template <class Element>
uint32_t packed(float lower, float upper) {
  const Element pair[2] = {rounded<Element>(lower), rounded<Element>(upper)};
  uint32_t word;
  std::memcpy(&word, pair, sizeof word);
  return word;
}

template <class Element>
void multiply() {
  const int group_id = threadIdx.x >> 2, in_group = threadIdx.x % 4;
  // a0 .. a7: row = groupID for a0, a1, a4, a5, else groupID + 8; column = 2 in_group + (i & 1), + 8 from a4 on.
  const auto of_a = [&](int i) {
    return a[i < 2 || (i >= 4 && i < 6) ? group_id : group_id + 8][in_group * 2 + (i & 1) + (i >= 4 ? 8 : 0)];
  };
  // b0 .. b3: row = 2 in_group + (i & 1), + 8 from b2 on; column = groupID.
  const auto of_b = [&](int i) { return b[in_group * 2 + (i & 1) + (i >= 2 ? 8 : 0)][group_id]; };
  uint32_t left[4];
  for (int i = 0; i < 4; ++i) left[i] = packed<Element>(of_a(2 * i), of_a(2 * i + 1));
  // c0 .. c3: row = groupID, + 8 from c2 on; column = 2 in_group + (i & 1).
  const auto row = [&](int i) { return i < 2 ? group_id : group_id + 8; };
  const auto column = [&](int i) { return in_group * 2 + (i & 1); };
  float sums[4];
  for (int i = 0; i < 4; ++i) sums[i] = c[row(i)][column(i)];
  multiply_add(Element(), sums, left, packed<Element>(of_b(0), of_b(1)), packed<Element>(of_b(2), of_b(3)));
  for (int i = 0; i < 4; ++i) d[row(i)][column(i)] = sums[i];
}

void load() {
  // In reverse and apart: nothing may depend on rows being neighbours.
  char* const rows = reinterpret_cast<char*>(shared);
  std::memcpy(rows + 48 * (31 - threadIdx.x), matrices[threadIdx.x / 8][threadIdx.x % 8], 16);
  __syncthreads();
  load_matrices(plain[threadIdx.x], rows + 48 * (31 - threadIdx.x));
  load_transposed(transposed[threadIdx.x], rows + 48 * (31 - threadIdx.x));
}

template <class Element>
int wrong_products() {
  for (int k = 0; k < 16; ++k) {
    for (int i = 0; i < 16; ++i) a[i][k] = (i * 7 + k * 5) % 11 - 5;
    for (int j = 0; j < 8; ++j) b[k][j] = (k * 3 + j * 13) % 17 - 8;
  }
  for (int i = 0; i < 16; ++i)
    for (int j = 0; j < 8; ++j) c[i][j] = i - 2 * j;
  emulator::Launch()(multiply<Element>, 1, 32, 0);
  int wrong = 0;
  for (int i = 0; i < 16; ++i)
    for (int j = 0; j < 8; ++j) {
      float expected = c[i][j];
      for (int k = 0; k < 16; ++k) expected += a[i][k] * b[k][j];
      wrong += d[i][j] != expected;
    }
  return wrong;
}

int wrong_loads() {
  for (int m = 0; m < 4; ++m)
    for (int i = 0; i < 64; ++i) matrices[m][i / 8][i % 8] = uint16_t(m * 64 + i);
  emulator::Launch()(load, 1, 32, 48 * 32 / 4);
  int wrong = 0;
  // Thread T holds of each matrix row T / 4, elements 2 (T % 4) and the next; transposed, the column and those rows.
  for (int thread = 0; thread < 32; ++thread)
    for (int m = 0; m < 4; ++m) {
      const int row = thread / 4, first = thread % 4 * 2;
      const auto pair = [](uint16_t lower, uint16_t upper) { return lower | uint32_t(upper) << 16; };
      wrong += plain[thread][m] != pair(matrices[m][row][first], matrices[m][row][first + 1]);
      wrong += transposed[thread][m] != pair(matrices[m][first][row], matrices[m][first + 1][row]);
    }
  return wrong;
}

}  // namespace cmx

int main() {
  std::printf("%d %d %d wrong\n", cmx::wrong_products<__nv_bfloat16>(), cmx::wrong_products<__half>(),
              cmx::wrong_loads());
}
