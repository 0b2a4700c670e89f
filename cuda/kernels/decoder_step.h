// The arguments of a decoder's step as one launch, and what its kernel (decoder_step.cu) and the
// host (decoder_plan.cu) know of it together.
#pragma once

#include "cuda/kernels/attention_split.h"
#include "cuda/kernels/decoder_stream.h"
#include "cuda/kernels/norm.h"

namespace unifluid::cuda::step {

// Heads are padded to the largest.
inline constexpr int kHead = kLargestTensorHead;
// Columns of an item of values: few, so that all blocks have some.
inline constexpr int kValueColumnWarps = 2, kValueColumns = 8 * kValueColumnWarps, kValueSlots = 9;
// Queries of most tiles, which take less code than the most there can be.
inline constexpr int kFewQueries = 4;
// Warps of a row in `rms_norm`, whose sums are added in their order; ours take turns at them.
inline constexpr int kNormWarps = kMostNormThreads / kWarp, kNormTurns = kNormWarps / kWarps;

struct StepLayer {
  const float *input_norm, *post_attention_norm, *pre_mlp_norm, *post_mlp_norm;
  const bf16 *q, *k, *v, *o, *gate, *up, *down;
  int64_t window;
};
struct StepSpan {
  AttendedSpan first_layer;
  int64_t layer_stride;  // elements from one layer's keys to the next one's
};

struct StepParams {
  const StepLayer* layers;  // [layer_count], staged
  const StepSpan* spans;
  const AttentionTile* tiles;
  const float* final_norm;
  const bf16* x;
  bf16 *q, *k, *v, *mixed, *hidden, *branch, *out;
  int64_t x_stride, q_stride, k_stride, v_stride, mixed_stride, hidden_stride, branch_stride,
      out_stride;
  AttentionParams attention;  // but for its window, spans and tiles
  uint32_t* arrivals;         // zeroed for the launch
  int32_t rows, width, q_columns, kv_columns, mlp;
  int32_t input_stride;  // from one row of inputs in shared memory to the next
  int32_t norm_warps;    // of `rms_norm`
  int32_t layer_count, span_count, tile_count, slots;
  float eps;
  Activation activation;
};

template <class T>
inline constexpr uint32_t kWords = sizeof(T) / sizeof(uint64_t);

// Elements of shared memory that hold the inputs of a product.
__host__ UNIFLUID_DEVICE uint32_t input_elements(const StepParams& p) {
  return static_cast<uint32_t>(p.rows * p.input_stride);
}

// ---- host ----

// Of all that a block has, attention's over its inputs.
size_t shared_bytes(const StepParams& p);
void launch(Queue&, const StepParams& p);

}  // namespace unifluid::cuda::step
