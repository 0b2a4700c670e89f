// The arithmetic of norms by root mean square, a piece a thread.
#pragma once

#include "cuda/kernels/rows.h"

namespace unifluid::cuda {

// With 16 warps a row of 4096 elements is one piece a thread; more would wait for one another.
inline constexpr int kMostNormThreads = 512;
inline constexpr int kMostHeldColumns = kMostNormThreads * kPiece;

// Warps that a row has a piece for each lane of, whose sums are added in their order.
__host__ UNIFLUID_DEVICE int norm_warps(int n) {
  constexpr int kEach = kPiece * 32;
  return (n + kEach - 1) / kEach;
}

UNIFLUID_DEVICE float squares_of(const Piece& v) {
  float squares = 0;
  for (int i = 0; i < kPiece; ++i) squares = fmaf(v.value[i], v.value[i], squares);
  return squares;
}
// 1 / sqrt(mean + eps) of a row of n
UNIFLUID_DEVICE float root_scale(float squares, int n, float eps) {
  return 1.0f / sqrtf(squares / static_cast<float>(n) + eps);
}
UNIFLUID_DEVICE void scale_piece(Piece& v, float scale, const Piece& weight) {
  for (int i = 0; i < kPiece; ++i) v.value[i] = v.value[i] * scale * (1.0f + weight.value[i]);
}

}  // namespace unifluid::cuda
