// What the kernels of linear and gated_linear share.
#pragma once

#include "cuda/kernels.h"
#include "cuda/kernels/epilogue.h"

namespace unifluid::cuda {

struct LinearParams {
  const void* x;
  const void* weights[2];  // with a gate: the gate's, then the other's
  int64_t x_stride, weight_strides[2];
  int32_t k;
  Epilogue out;  // and its rows and columns
};

// ---- host ----

LinearParams params_of(const LinearArgs&);
LinearParams params_of(const GatedLinearArgs&);

// Products that one launch can take.
inline constexpr int kMostGrouped = 4;

// bfloat16, x and weights aligned to 16 bytes, outputs in pairs, only where `limits().warpgroups`;
// the bits of the other kernels. With the tile of so many `columns` of kWarpgroupTiles
// (tile_cost.h), one that can be `gated` where there is a gate. `count` products without one have
// the same x.
void multiply_by_warpgroups(Queue&, const LinearParams* products, int count, int columns);
void multiply_gated_by_warpgroups(Queue&, const LinearParams& p, int columns);

}  // namespace unifluid::cuda
