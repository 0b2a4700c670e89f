// The arguments of a decoder's step as one launch, and what its kernel (decoder_step.cu) and the
// host (decoder_plan.cu) know of it together.
#pragma once

#include "cuda/device/exchange.h"
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

// Up to so many rows are exchanged by posts (cuda/device/exchange.h), where all blocks need all of
// them: of more, posts take longer to read than a barrier takes.
inline constexpr int kMostPostedRows = 2;

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
  // Pairs of columns, zeroed for the launch; null: by barriers. [2][rows][width / 2], of the
  // branches of the two halves of a layer, [rows][mlp / 2] and [rows][q_columns / 2].
  Posted *branch_posts, *hidden_posts, *mixed_posts;
  int32_t rows, width, q_columns, kv_columns, mlp;
  int32_t input_stride;  // from one row of inputs in shared memory to the next
  int32_t norm_warps;    // of `rms_norm`
  int32_t layer_count, span_count, tile_count;
  int32_t hints, in_flight;
  int32_t slots, slots_ahead;  // of the ring, and those asked for in the second-level cache
  float eps;
  Activation activation;
};

template <class T>
inline constexpr uint32_t kWords = sizeof(T) / sizeof(uint64_t);

// Elements of shared memory that hold the inputs of a product.
__host__ UNIFLUID_DEVICE uint32_t input_elements(const StepParams& p) {
  return static_cast<uint32_t>(p.rows * p.input_stride);
}

__host__ UNIFLUID_DEVICE int64_t branch_post_count(const StepParams& p) {
  return int64_t{p.rows} * (p.width / 2);
}
__host__ UNIFLUID_DEVICE int64_t post_count(const StepParams& p) {
  return 2 * branch_post_count(p) + int64_t{p.rows} * (p.mlp / 2 + p.q_columns / 2);
}

// ---- host ----

// Of all that a block has, attention's over its inputs.
size_t shared_bytes(const StepParams& p);
void launch(Queue&, const StepParams& p);

}  // namespace unifluid::cuda::step
