// What the kernels of linear and gated_linear share: their parameters, and what becomes of a sum.
#pragma once

#include "cuda/device/math.h"
#include "cuda/device/types.h"
#include "cuda/kernels.h"

namespace unifluid::cuda {

struct LinearParams {
  const void* x;
  const void* weights[2];  // with a gate: the gate's, then the other's
  const float* bias;
  const void* residual;
  void* out;
  int64_t x_stride, weight_strides[2], residual_stride, out_stride;
  int32_t m, n, k;
  Activation activation;
  bool float_out;  // and residual, beside bf16 inputs
};

// out[row, column] of the sums of x with its weights, both inside.
template <class T, bool kGated>
UNIFLUID_DEVICE float output_of(const LinearParams& p, int row, int column, float product,
                                float other) {
  float v = product;
  if (p.bias) v += p.bias[column];
  v = activate(p.activation, v);
  if constexpr (kGated) v *= other;
  if (p.residual) {
    const int64_t from = row * p.residual_stride + column;
    v += p.float_out ? static_cast<const float*>(p.residual)[from]
                     : to_float(static_cast<const T*>(p.residual)[from]);
  }
  return v;
}

template <class T, bool kGated>
UNIFLUID_DEVICE void store_output(const LinearParams& p, int row, int column, float product,
                                  float other) {
  if (row >= p.m || column >= p.n) return;
  const float v = output_of<T, kGated>(p, row, column, product, other);
  const int64_t at = row * p.out_stride + column;
  if (p.float_out)
    static_cast<float*>(p.out)[at] = v;
  else
    static_cast<T*>(p.out)[at] = from_float<T>(v);
}

// ---- host ----

LinearParams params_of(const LinearArgs&);
LinearParams params_of(const GatedLinearArgs&);

// bfloat16, x and weights aligned to 16 bytes, only where `limits().warpgroups`; the bits of the
// other kernels. With the tile of so many `columns` of kWarpgroupTiles (tile_cost.h).
void multiply_by_warpgroups(Queue&, const LinearParams& p, bool gated, int columns);

}  // namespace unifluid::cuda
