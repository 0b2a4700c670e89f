// The innermost loop of gemm.cpp: a tile of the result in registers.
#pragma once

#include "cpu/kernels/bf16_pairs.h"

namespace unifluid::cpu::UNIFLUID_ISA {

// Accumulators enough to hide the latency of multiply-adds, few enough to leave registers for a
// step's vectors of B and one element of A.
inline constexpr int kTileVectors = 2;
inline constexpr int kTileRows = kRegisters >= 32 ? 12 : 6;
// Columns of a panel of B.
inline constexpr int64_t kPanel = kTileVectors * kLanes;

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
