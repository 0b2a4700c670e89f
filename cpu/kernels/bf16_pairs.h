// Products of pairs of bfloat16 with float32 sums (AVX512-BF16), which only some of the processors
// with AVX-512 have. In assembly, since the compiler would have to be told that all of them do.
#pragma once

#include "cpu/simd.h"

namespace unifluid::cpu::UNIFLUID_ISA {

#if UNIFLUID_SIMD_AVX512

UNIFLUID_INLINE bool has_pairs() { return __builtin_cpu_supports("avx512bf16"); }

// c plus the two products of each lane's pairs of bfloat16.
UNIFLUID_INLINE Vec fma_pairs(Vec a, Vec b, Vec c) {
  asm("vdpbf16ps %2, %1, %0" : "+v"(c) : "v"(a), "v"(b));
  return c;
}

// Rounded to bfloat16, ties to even; what is too small for a normal number becomes 0, as which the
// products above would take it anyway.
// Neighbours in pairs: of the 32 floats of a and then b.
UNIFLUID_INLINE Vec round_neighbours(Vec a, Vec b) {
  Vec pairs;
  asm("vcvtne2ps2bf16 %1, %2, %0" : "=v"(pairs) : "v"(a), "v"(b));
  return pairs;
}
// a[i] with b[i].
UNIFLUID_INLINE Vec round_across(Vec a, Vec b) {
  alignas(64) static constexpr uint16_t kInterleaved[32] = {
      0, 16, 1, 17, 2,  18, 3,  19, 4,  20, 5,  21, 6,  22, 7,  23,
      8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31};
  return _mm512_castsi512_ps(_mm512_permutexvar_epi16(_mm512_load_si512(kInterleaved),
                                                      _mm512_castps_si512(round_neighbours(a, b))));
}

// The first n of a's lanes, rounded in the same way.
UNIFLUID_INLINE void store_rounded_n(BFloat16* p, Vec a, int n) {
  __m256i rounded;
  asm("vcvtneps2bf16 %1, %0" : "=v"(rounded) : "v"(a));
  _mm256_mask_storeu_epi16(p, first_lanes(n), rounded);
}
// Stored numbers: low[i] with high[i], or with 0 where there is no `high`. The first n.
UNIFLUID_INLINE Vec join_n(const BFloat16* low, const BFloat16* high, int n) {
  const __mmask16 lanes = first_lanes(n);
  const __m512i lower = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(lanes, low));
  if (!high) return _mm512_castsi512_ps(lower);
  const __m512i upper = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(lanes, high));
  return _mm512_castsi512_ps(_mm512_or_si512(lower, _mm512_slli_epi32(upper, 16)));
}

// Stored neighbours as pairs: 32 of them, or the first n and zeros.
UNIFLUID_INLINE Vec load_pairs(const BFloat16* p) {
  return _mm512_castsi512_ps(_mm512_loadu_si512(p));
}
UNIFLUID_INLINE Vec load_pairs_n(const BFloat16* p, int n) {
  const auto lanes = static_cast<__mmask32>((uint64_t{1} << n) - 1);
  return _mm512_castsi512_ps(_mm512_maskz_loadu_epi16(lanes, p));
}

#else

// The rest is never called: it lets gemm.cpp, which asks `has_pairs` first, compile everywhere.
UNIFLUID_INLINE bool has_pairs() { return false; }
UNIFLUID_INLINE Vec fma_pairs(Vec a, Vec b, Vec c) { return fma(a, b, c); }
UNIFLUID_INLINE Vec round_neighbours(Vec a, Vec) { return a; }
UNIFLUID_INLINE Vec round_across(Vec a, Vec) { return a; }
UNIFLUID_INLINE void store_rounded_n(BFloat16*, Vec, int) {}
UNIFLUID_INLINE Vec join_n(const BFloat16*, const BFloat16*, int) { return zero(); }

#endif

}  // namespace unifluid::cpu::UNIFLUID_ISA
