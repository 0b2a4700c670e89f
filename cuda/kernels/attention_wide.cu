// Attention in bfloat16 for heads that are larger than a tile of the fused kernels holds, where
// every row of a sequence sees every other: that of the VAE, of one head of 512.
//
// Two products on tensor cores (linear.cu) with a softmax between them, a stretch of queries at a
// time. The scores do exist in memory; at this width they are a small part of the work: a score
// costs 512 multiply-adds and 12 bytes.
#include <algorithm>

#include "cuda/device/warp.h"
#include "cuda/dispatch.h"
#include "cuda/kernels/attention.h"

namespace unifluid::cuda {
namespace {

// Scores in memory at a time: 64 MiB of float32.
constexpr int64_t kScores = int64_t{1} << 24;
constexpr int kThreads = 256;

struct SoftmaxParams {
  const float* scores;
  bf16* weights;
  int64_t stride;  // of both
  int32_t keys;
  float exponent_scale;  // scale * log2(e)
};

// A block for each query.
__global__ void __launch_bounds__(kThreads) softmax_row(SoftmaxParams p) {
  SharedArena arena;
  const auto scratch = arena.take<float>(kThreads / kWarp);
  const float* scores = p.scores + blockIdx.x * p.stride;
  bf16* weights = p.weights + blockIdx.x * p.stride;
  float most = kMaskedScore;
  for (int key = static_cast<int>(threadIdx.x); key < p.keys; key += kThreads)
    most = fmaxf(most, scores[key]);
  most = block_max(most, scratch);
  float total = 0;
  for (int key = static_cast<int>(threadIdx.x); key < p.keys; key += kThreads)
    total += exp2f((scores[key] - most) * p.exponent_scale);
  const float inverse = 1.0f / block_sum(total, scratch);
  for (int key = static_cast<int>(threadIdx.x); key < p.keys; key += kThreads)
    weights[key] = from_float<bf16>(exp2f((scores[key] - most) * p.exponent_scale) * inverse);
}

// Whole vectors in every row.
int64_t stride_of(int64_t keys) { return (keys + 7) / 8 * 8; }

int64_t queries_at_once(int64_t rows) {
  return std::clamp<int64_t>(kScores / stride_of(rows), 1, rows);
}

// Bytes of the pieces of the scratch, in their order.
struct Layout {
  size_t scores, weights, transposed;
  size_t bytes() const { return scores + weights + transposed; }
};
Layout layout_of(const AttentionArgs& args, int64_t rows) {
  const auto piece = [](int64_t count, DType type) {
    return Queue::piece_bytes(static_cast<size_t>(count) * size_of(type));
  };
  const int64_t scores = queries_at_once(rows) * stride_of(rows);
  return {piece(scores, DType::f32), piece(scores, DType::bf16),
          piece(args.head_dim * stride_of(rows), DType::bf16)};
}

}  // namespace

bool is_wide(const AttentionArgs& args, const AttentionSpan& span) {
  return args.q.type == DType::bf16 && args.head_dim > kLargestTensorHead && !span.cache.keys &&
         span.prefix_end >= span.rows && args.rope_theta <= 0 && args.soft_cap <= 0;
}

size_t wide_scratch(const AttentionArgs& args, const AttentionSpan& span) {
  return layout_of(args, span.rows).bytes();
}

void attend_wide(Queue& queue, const AttentionArgs& args, const AttentionSpan& span,
                 unsigned char* scratch) {
  const int64_t rows = span.rows, d = args.head_dim, stride = stride_of(rows);
  const int64_t step = queries_at_once(rows);
  const Layout layout = layout_of(args, rows);
  Tensor scores(scratch, DType::f32, step, rows);
  Tensor weights(scratch + layout.scores, DType::bf16, step, rows);
  Tensor transposed(scratch + layout.scores + layout.weights, DType::bf16, d, rows);
  scores.stride = weights.stride = transposed.stride = stride;
  for (int64_t head = 0; head < args.heads; ++head) {
    const int64_t kv = head / (args.heads / args.kv_heads) * d;
    const auto part = [&](const Tensor& t, int64_t column) {
      return t.slice(span.first_row, rows).columns(column, d);
    };
    transpose_rows(queue, part(args.v, kv), transposed);
    for (int64_t first = 0; first < rows; first += step) {
      const int64_t count = std::min(step, rows - first);
      LinearArgs product{};
      product.x = part(args.q, head * d).slice(first, count);
      product.weight = part(args.k, kv);
      product.out = scores.slice(0, count);
      linear(queue, product);
      constexpr float kLog2E = 1.4426950408889634f;
      const SoftmaxParams p{static_cast<const float*>(scores.data),
                            static_cast<bf16*>(weights.data), stride, static_cast<int32_t>(rows),
                            args.scale * kLog2E};
      queue.launch(softmax_row, dim3(static_cast<unsigned>(count)), dim3(kThreads),
                   SharedBytes{}.take<float>(kThreads / kWarp).used, p);
      LinearArgs sum{};
      sum.x = weights.slice(0, count);
      sum.weight = transposed;
      sum.out = part(args.out, head * d).slice(first, count);
      linear(queue, sum);
    }
  }
}

}  // namespace unifluid::cuda
