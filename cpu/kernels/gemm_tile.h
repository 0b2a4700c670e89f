// The innermost loop of gemm.cpp: a tile of the result in registers.
#pragma once

#include "cpu/simd.h"

namespace unifluid::cpu::UNIFLUID_ISA {

// Accumulators enough to hide the latency of multiply-adds, few enough to leave registers for a
// step's vectors of B and one element of A.
inline constexpr int kTileVectors = 2;
inline constexpr int kTileRows = kRegisters >= 32 ? 12 : 6;
// Columns of a panel of B.
inline constexpr int64_t kPanel = kTileVectors * kLanes;

#if UNIFLUID_SIMD_AVX512
UNIFLUID_INLINE bool has_pairs() { return __builtin_cpu_supports("avx512bf16"); }
// c plus the two products of each lane's pairs of bfloat16. In assembly, since the compiler would
// have to be told that every processor with AVX-512 has it, which is not so.
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
#else
UNIFLUID_INLINE bool has_pairs() { return false; }
UNIFLUID_INLINE Vec fma_pairs(Vec a, Vec b, Vec c) { return fma(a, b, c); }
UNIFLUID_INLINE Vec round_neighbours(Vec a, Vec) { return a; }
UNIFLUID_INLINE Vec round_across(Vec a, Vec) { return a; }
#endif

// out[i, :columns] = (add_to ? out : 0) + bias + sum over s of a[i * a_row + s * a_column] *
// panel[s, :] for R rows. With `pairs`, elements of a and of the panel are pairs of bfloat16.
//
// Every loop over the accumulators is unrolled: with an index that is not a constant GCC keeps the
// array in memory, and moves all of it to registers before the loop over k and back after it.
template <bool pairs, int R>
static inline void gemm_tile(const float* a, int64_t a_row, int64_t a_column, const float* panel,
                             int64_t steps, float* out, int64_t out_stride, int64_t columns,
                             bool add_to, const float* bias) {
  static_assert(R <= 12 && kTileVectors == 2, "the loops below are unrolled so many times");
  Vec acc[R][kTileVectors];
#pragma GCC unroll 12
  for (int i = 0; i < R; ++i)
#pragma GCC unroll 2
    for (int v = 0; v < kTileVectors; ++v) acc[i][v] = zero();
  for (int64_t s = 0; s < steps; ++s) {
    Vec b[kTileVectors];
#pragma GCC unroll 2
    for (int v = 0; v < kTileVectors; ++v) b[v] = load(panel + s * kPanel + v * kLanes);
    const float* at = a + s * a_column;
#pragma GCC unroll 12
    for (int i = 0; i < R; ++i) {
      const Vec x = set1(at[i * a_row]);
#pragma GCC unroll 2
      for (int v = 0; v < kTileVectors; ++v)
        acc[i][v] = pairs ? fma_pairs(x, b[v], acc[i][v]) : fma(x, b[v], acc[i][v]);
    }
  }
  if (columns >= kPanel) {
#pragma GCC unroll 12
    for (int i = 0; i < R; ++i) {
      float* to = out + i * out_stride;
#pragma GCC unroll 2
      for (int v = 0; v < kTileVectors; ++v) {
        Vec value = acc[i][v];
        if (bias) value = add(load(bias + v * kLanes), value);
        if (add_to) value = add(load(to + v * kLanes), value);
        store(to + v * kLanes, value);
      }
    }
    return;
  }
#pragma GCC unroll 12
  for (int i = 0; i < R; ++i) {
    float* to = out + i * out_stride;
#pragma GCC unroll 2
    for (int v = 0; v < kTileVectors; ++v) {
      const int64_t rest = columns - v * kLanes;
      if (rest > 0) {
        const int n = rest < kLanes ? static_cast<int>(rest) : kLanes;
        Vec value = acc[i][v];
        if (bias) value = add(load_n(bias + v * kLanes, n), value);
        if (add_to) value = add(load_n(to + v * kLanes, n), value);
        store_n(to + v * kLanes, value, n);
      }
    }
  }
}

}  // namespace unifluid::cpu::UNIFLUID_ISA
