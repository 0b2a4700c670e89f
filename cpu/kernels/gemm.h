// General matrix product for training: any transposition, float32 or bfloat16 operands.
//
// Unlike matmul.h, which streams stored weights for a few rows, this packs its right operand into
// panels and multiplies outer products of registers, which many rows repay. The order of every sum
// depends on k alone.
#pragma once

#include "cpu/kernels/kernels.h"

namespace unifluid::cpu::UNIFLUID_ISA {

// A matrix or the transpose of one: element (i, j) is data[i * row + j * column].
struct View {
  const float* data;
  int64_t row, column;
};

UNIFLUID_INLINE View transposed(View v) { return {v.data, v.column, v.row}; }

// Bytes of scratch that `small_gemm` needs.
size_t small_gemm_bytes(int64_t n, int64_t k);

// out[m, n] = (accumulate ? out : 0) + a[m, k] b[k, n] in float32, in the calling thread. One of
// each view's steps is 1. `scratch` is aligned to 64.
void small_gemm(View a, View b, int64_t m, int64_t n, int64_t k, bool accumulate, float* out,
                int64_t out_stride, void* scratch);

}  // namespace unifluid::cpu::UNIFLUID_ISA
