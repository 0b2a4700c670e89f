// Tensor cores: mma.sync m16n8k16 with bf16 operands and float accumulators, and ldmatrix.
//
// Fragments (PTX ISA, "Matrix fragments for mma.m16n8k16"); g = lane / 4, t = lane % 4:
//   A [16, 16]: x[0] = (g, 2t..2t+1), x[1] = (g + 8, 2t..), x[2] = (g, 2t + 8..), x[3] = (g + 8, 2t
//   + 8..) B [16, 8]:  x[0] = rows 2t..2t+1 of column g, x[1] = rows 2t + 8.. of column g C [16,
//   8]:  x[0], x[1] = (g, 2t..2t+1), x[2], x[3] = (g + 8, 2t..2t+1)
#pragma once

#include "cuda/device/shared.h"

namespace unifluid::cuda {

struct FragmentA {
  uint32_t x[4];
};
struct FragmentB {
  uint32_t x[2];
};
struct FragmentC {
  float x[4];
};

// c += a b. All lanes of the warp together.
UNIFLUID_DEVICE void mma(FragmentC& c, const FragmentA& a, const FragmentB& b) {
#ifdef UNIFLUID_SIMT
  simt::mma_m16n8k16(c.x, a.x, b.x);
#else
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
      "{%0,%1,%2,%3};"
      : "+f"(c.x[0]), "+f"(c.x[1]), "+f"(c.x[2]), "+f"(c.x[3])
      : "r"(a.x[0]), "r"(a.x[1]), "r"(a.x[2]), "r"(a.x[3]), "r"(b.x[0]), "r"(b.x[1]));
#endif
}

// Four 8x8 matrices of bf16: lane l names with `index` where row l % 8 of matrix l / 8 begins (8
// elements, 16-byte aligned). Register i of the result is this lane's part of matrix i: elements
// (lane / 4, 2 * (lane % 4) ..), or with kTranspose those of the transposed matrix.
template <bool kTranspose>
UNIFLUID_DEVICE void ldmatrix_x4(uint32_t (&out)[4], const Shared<bf16>& from, uint32_t index) {
#ifdef UNIFLUID_SIMT
  simt::shared_read(from.address(0), index, 8, from.count(), sizeof(bf16));
  simt::ldmatrix(out, 4, kTranspose, from.address(index));
#else
  const uint32_t address = static_cast<uint32_t>(__cvta_generic_to_shared(from.address(index)));
  if constexpr (kTranspose)
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(out[0]), "=r"(out[1]), "=r"(out[2]), "=r"(out[3])
                 : "r"(address));
  else
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(out[0]), "=r"(out[1]), "=r"(out[2]), "=r"(out[3])
                 : "r"(address));
#endif
}

}  // namespace unifluid::cuda
