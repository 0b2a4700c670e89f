// What the kernels of attention's gradients share: parameters, and who sees whom.
#pragma once

#include "cuda/device/math.h"
#include "cuda/kernels/attention.h"
#include "cuda/kernels/training_elements.h"

namespace unifluid::cuda {

struct GradientSpan {
  int64_t first_row;
  int32_t rows, prefix_end;
};

struct AttentionGradients {
  Rows q, k;  // rotated
  Rows v, out, dout;
  Rows dq, dk, dv;     // dq, dk: of what was rotated
  float *sums, *dots;  // [rows, heads]: log-sum of exponentials, sum(dout * out)
  const GradientSpan* spans;
  const AttentionTile* tiles;
  int32_t heads, group, head_dim, window;
  float scale, soft_cap;
  // In bfloat16, rows packed: what q, k, v and dout are then.
  const bf16 *rounded_q, *rounded_k, *rounded_v, *rounded_dout;
};

UNIFLUID_DEVICE Sight sight_of(const AttentionGradients& p, const GradientSpan& span, int row) {
  return sight_at(row, span.prefix_end, p.window);
}
// The rows that see a key of first .. last, and perhaps others.
UNIFLUID_DEVICE Sight seen_by(const AttentionGradients& p, const GradientSpan& span, int first,
                              int last) {
  const int begin = first < span.prefix_end ? 0 : first;
  if (p.window <= 0) return {begin, span.rows - 1};
  // A window may be as large as the type: last + window would overflow.
  return {begin, max(span.prefix_end, last + min(p.window, span.rows - last)) - 1};
}

// ---- host ----

// Rows of a tile of the kernels below.
inline constexpr int kRoundedTileRows = 64;
// Heads that they take.
inline bool takes_rounded(int64_t head_dim) {
  return head_dim % 8 == 0 && head_dim <= kLargestTensorHead;
}
// Gradients from rounded operands on tensor cores; `p.tiles` are of kRoundedTileRows rows.
void rounded_gradients(Queue&, const AttentionGradients& p, size_t tiles);

}  // namespace unifluid::cuda
