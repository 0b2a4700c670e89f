// General matrix product for training: any transposition, float32 or bfloat16 operands.
//
// Unlike matmul.h, which streams stored weights for a few rows, this packs its right operand into
// panels and multiplies outer products of registers, which many rows repay. The order of every sum
// depends on k alone.
#pragma once

#include "cpu/kernels/kernels.h"

namespace unifluid::cpu::UNIFLUID_ISA {

// A matrix or the transpose of one: element (i, j) is data[i * row + j * column]. `rounded`: the
// elements are bfloat16.
struct View {
  const float* data;
  int64_t row, column;
  bool rounded = false;
};

UNIFLUID_INLINE View transposed(View v) { return {v.data, v.column, v.row, v.rounded}; }
// The elements of a view that is rounded.
UNIFLUID_INLINE const BFloat16* rounded_data(const View& v) {
  return reinterpret_cast<const BFloat16*>(v.data);
}

// Small products in the calling thread, whose right operand may serve several of them. `pairs`: the
// operands are rounded to bfloat16, which only processors do that multiply pairs of those
// (`has_pairs`). One of each view's steps is 1; packed operands and `room` are aligned to 64.

// Floats of b [k, n] once packed, and of the room that a product needs besides.
int64_t packed_size(int64_t k, int64_t n, bool pairs);
int64_t multiply_room(bool pairs);

void pack(View b, int64_t k, int64_t n, bool pairs, float* out);

// out[m, n] = (accumulate ? out : 0) + a[m, k] b[k, n], with float32 sums.
void multiply_packed(View a, const float* b, int64_t m, int64_t n, int64_t k, bool accumulate,
                     bool pairs, float* out, int64_t out_stride, float* room);

}  // namespace unifluid::cpu::UNIFLUID_ISA
