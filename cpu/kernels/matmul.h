// The matrix product that linear, convolution and the diffusion head share.
//
// Every output is one vector accumulator that runs over k in steps of kLanes with fused
// multiply-adds, the last partial step filled with zeros, and is then added up by `sum` of
// cpu/simd.h; with Products::bf16 a lane takes a pair of neighbours at a time. That order is the
// same for one row and for many, for every tile, block and thread, and in float32 for weights of
// any type, so a row's bits never depend on the rows beside it (core/backend.h, "Invariance").
#pragma once

#include "core/tensor.h"
#include "cpu/kernels.h"
#include "cpu/simd.h"

namespace unifluid::cpu::UNIFLUID_ISA {

// A large product is worked off in blocks of so many rows and outputs: those whose accumulators,
// with the rows and weights that they need at a time, fit a core's second-level cache. Callers that
// divide a product among threads do best to cut it along these. kBlockOutputs is a multiple of
// every tile's width.
inline constexpr int64_t kBlockRows = 64;
inline constexpr int64_t kBlockOutputs = 48;

// k is cut into blocks of at most so many elements where there are many rows, so that a tile's rows
// and weights stay in the first-level cache while they are used again, and the accumulators wait in
// scratch in between. (10 or 7 vectors a step, float32: 40 KiB and 14 KiB.)
inline constexpr int64_t kBlockK = kLanes == 16 ? 1024 : 512;
// Elements from row to row of a block that is rounded to bfloat16: the last one of k may be a
// little longer. 0: no processor of this instruction set has such products.
#if UNIFLUID_SIMD_AVX512
inline constexpr int64_t kRoundedStride = kBlockK + 4 * kLanes;
#else
inline constexpr int64_t kRoundedStride = 0;
#endif

// Bytes of scratch that a large product keeps a block's accumulators and rounded rows in (a
// thread's own, aligned to 64).
inline constexpr size_t kMatmulScratch = size_t{kBlockRows * kBlockOutputs} * sizeof(Vec) +
                                         size_t{kBlockRows * kRoundedStride} * sizeof(BFloat16);

// out[i * out_stride + j] = sum over c of x[i * x_stride + c] * weight[first + j, c]
// for i < rows, j < count, c < weight.cols. It runs in the calling thread; to share a product among
// threads give each its own columns, or its own rows. `out` must not overlap x or weight.
// `scratch` may be null: the result is the same, but many rows take longer.
void matmul(const float* x, int64_t x_stride, int64_t rows, const Tensor& weight, Products products,
            int64_t first, int64_t count, float* out, int64_t out_stride, void* scratch);

}  // namespace unifluid::cpu::UNIFLUID_ISA
