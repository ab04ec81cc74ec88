// A 16 x 16 block of float32 in AVX-512 registers. Included under the including file's target pragma.
#pragma once

#include <immintrin.h>

namespace cmx {
namespace {

inline __m512 unpack_pairs_low(__m512 a, __m512 b) {
  return _mm512_castpd_ps(_mm512_unpacklo_pd(_mm512_castps_pd(a), _mm512_castps_pd(b)));
}

inline __m512 unpack_pairs_high(__m512 a, __m512 b) {
  return _mm512_castpd_ps(_mm512_unpackhi_pd(_mm512_castps_pd(a), _mm512_castps_pd(b)));
}

inline void transpose(__m512 (&r)[16]) {
  __m512 t[16];
  for (int i = 0; i < 16; i += 2) {
    t[i] = _mm512_unpacklo_ps(r[i], r[i + 1]);
    t[i + 1] = _mm512_unpackhi_ps(r[i], r[i + 1]);
  }
  for (int i = 0; i < 16; i += 4) {
    r[i] = unpack_pairs_low(t[i], t[i + 2]);
    r[i + 1] = unpack_pairs_high(t[i], t[i + 2]);
    r[i + 2] = unpack_pairs_low(t[i + 1], t[i + 3]);
    r[i + 3] = unpack_pairs_high(t[i + 1], t[i + 3]);
  }
  for (int i = 0; i < 16; ++i) t[i] = r[i];
  for (int c = 0; c < 4; ++c) {
    const __m512 even = _mm512_shuffle_f32x4(t[c], t[4 + c], 0x88), odd = _mm512_shuffle_f32x4(t[c], t[4 + c], 0xdd);
    const __m512 even2 = _mm512_shuffle_f32x4(t[8 + c], t[12 + c], 0x88);
    const __m512 odd2 = _mm512_shuffle_f32x4(t[8 + c], t[12 + c], 0xdd);
    r[c] = _mm512_shuffle_f32x4(even, even2, 0x88);
    r[4 + c] = _mm512_shuffle_f32x4(odd, odd2, 0x88);
    r[8 + c] = _mm512_shuffle_f32x4(even, even2, 0xdd);
    r[12 + c] = _mm512_shuffle_f32x4(odd, odd2, 0xdd);
  }
}

}  // namespace
}  // namespace cmx
