// decoder_step: which steps are one launch, and its arguments.
#include <algorithm>
#include <vector>

#include "cuda/dispatch.h"
#include "cuda/kernels/decoder_step.h"

namespace unifluid::cuda {
namespace {

using namespace step;

int slots_of(const Queue& queue, StepParams p) {
  p.slots = 0;
  const size_t taken = shared_bytes(p), each = Ring::bytes(1);
  const size_t all = queue.limits().shared_bytes;
  return taken > all ? 0 : static_cast<int>((all - taken) / each);
}

// All but what is staged.
StepParams params_of(const DecoderStepArgs& args) {
  const auto rows_of = [](const Tensor& t) { return static_cast<bf16*>(t.data); };
  StepParams p{};
  p.final_norm = args.final_norm;
  p.x = rows_of(args.x);
  p.q = rows_of(args.q);
  p.k = rows_of(args.k);
  p.v = rows_of(args.v);
  p.mixed = rows_of(args.mixed);
  p.hidden = rows_of(args.hidden);
  p.branch = rows_of(args.branch);
  p.out = rows_of(args.out);
  p.x_stride = args.x.stride;
  p.q_stride = args.q.stride;
  p.k_stride = args.k.stride;
  p.v_stride = args.v.stride;
  p.mixed_stride = args.mixed.stride;
  p.hidden_stride = args.hidden.stride;
  p.branch_stride = args.branch.stride;
  p.out_stride = args.out.stride;
  p.rows = static_cast<int32_t>(args.x.rows);
  p.width = static_cast<int32_t>(args.x.cols);
  p.q_columns = static_cast<int32_t>(args.heads * args.head_dim);
  p.kv_columns = static_cast<int32_t>(args.kv_heads * args.head_dim);
  p.mlp = static_cast<int32_t>(args.hidden.cols);
  p.input_stride = padded(std::max({p.width, p.q_columns, p.mlp})) + 8;
  p.norm_warps = norm_warps(p.width);
  p.layer_count = static_cast<int32_t>(args.layer_count);
  p.span_count = static_cast<int32_t>(args.span_count);
  p.tile_count = static_cast<int32_t>(
      decode_tiles(args.spans, args.span_count, args.heads / args.kv_heads).size());
  p.eps = args.eps;
  p.activation = args.activation;
  return p;
}

bool packed(const Tensor& matrix) {
  return matrix.type == DType::bf16 && aligned16(matrix) && matrix.stride == matrix.cols;
}

bool takes_layer(const DecoderLayer& layer) {
  if (!layer.pre_mlp_norm || !layer.post_mlp_norm) return false;
  for (const float* norm :
       {layer.input_norm, layer.post_attention_norm, layer.pre_mlp_norm, layer.post_mlp_norm})
    if (!whole_pieces(norm)) return false;
  for (const Tensor* matrix :
       {&layer.q, &layer.k, &layer.v, &layer.o, &layer.gate, &layer.up, &layer.down})
    if (!packed(*matrix)) return false;
  return true;
}

// Scratch of StepParams::arrivals.
constexpr size_t kCounterBytes = Queue::piece_bytes(sizeof(uint32_t));

size_t score_count(const DecoderStepArgs& args, size_t tiles, int64_t score_rows,
                   int64_t score_stride) {
  return tiles * static_cast<size_t>(args.kv_heads * score_rows * score_stride);
}

}  // namespace

bool takes_decoder_step(const Queue& queue, const DecoderStepArgs& args) {
  const int64_t group = args.heads / args.kv_heads;
  if (!queue.limits().persistent || args.x.type != DType::bf16 || args.x.rows < 1 ||
      args.x.rows > kMostRows || args.x.cols > kMostHeldColumns || args.layer_count < 1 ||
      args.head_dim > kLargestTensorHead || args.head_dim % kPiece != 0)
    return false;
  for (const Tensor* t :
       {&args.x, &args.q, &args.k, &args.v, &args.mixed, &args.hidden, &args.branch, &args.out})
    if (!aligned16(*t)) return false;
  if (!whole_pieces(args.final_norm)) return false;
  for (int64_t i = 0; i < args.layer_count; ++i)
    if (!takes_layer(args.layers[i])) return false;
  for (int64_t i = 0; i < args.span_count; ++i) {
    const AttentionSpan& span = args.spans[i];
    const KvCache& cache = span.cache;
    if (!cache.keys || reinterpret_cast<uintptr_t>(cache.keys) % 16 != 0 ||
        reinterpret_cast<uintptr_t>(cache.values) % 16 != 0 || !is_decoded(span, group))
      return false;
  }
  const StepParams p = params_of(args);
  return p.tile_count > 0 && splits_keys(queue, static_cast<size_t>(p.tile_count), args.kv_heads) &&
         slots_of(queue, p) >= kLeastSlots;
}

void decoder_step(Queue& queue, const DecoderStepArgs& args) {
  StepParams p = params_of(args);
  p.slots = slots_of(queue, p);
  const int64_t group = args.heads / args.kv_heads;
  std::vector<StepSpan> spans(static_cast<size_t>(args.span_count));
  int64_t capacity = 0, score_rows = 0;
  for (size_t i = 0; i < spans.size(); ++i) {
    const AttentionSpan& span = args.spans[i];
    spans[i].first_layer = attended_in_cache(span, args.head_dim);
    spans[i].layer_stride = 2 * args.kv_heads * args.head_dim * span.cache.capacity;
    capacity = std::max(capacity, span.cache.capacity);
    score_rows = std::max(score_rows, std::min<int64_t>(span.rows * group, kDecodeQueries));
  }
  const std::vector<AttentionTile> tiles = decode_tiles(args.spans, args.span_count, group);
  const int64_t score_stride = score_stride_of(capacity);
  const size_t scores = score_count(args, tiles.size(), score_rows, score_stride);
  queue.reserve_scratch(Queue::piece_bytes(scores * sizeof(float)) + kCounterBytes);

  AttentionParams& a = p.attention;
  a.scores = queue.scratch<float>(scores);
  p.arrivals = queue.scratch<uint32_t>(1);
  a.q = a.incoming.q = p.q;
  a.incoming.k = p.k;
  a.incoming.v = p.v;
  a.out = p.mixed;
  a.q_stride = a.incoming.q_stride = p.q_stride;
  a.incoming.k_stride = p.k_stride;
  a.incoming.v_stride = p.v_stride;
  a.incoming.first_position = args.first_position;
  a.out_stride = p.mixed_stride;
  a.kv_heads = static_cast<int32_t>(args.kv_heads);
  a.group = static_cast<int32_t>(group);
  a.head_dim = static_cast<int32_t>(args.head_dim);
  a.scale = args.scale;
  a.soft_cap = args.soft_cap;
  a.score_stride = score_stride;
  a.score_rows = static_cast<int32_t>(score_rows);

  std::vector<StepLayer> layers;
  for (int64_t i = 0; i < args.layer_count; ++i) {
    const DecoderLayer& l = args.layers[i];
    const auto matrix = [](const Tensor& t) { return static_cast<const bf16*>(t.data); };
    layers.push_back({l.input_norm, l.post_attention_norm, l.pre_mlp_norm, l.post_mlp_norm,
                      matrix(l.q), matrix(l.k), matrix(l.v), matrix(l.o), matrix(l.gate),
                      matrix(l.up), matrix(l.down), l.window});
  }
  p.layers = queue.stage(layers.data(), layers.size());
  p.spans = queue.stage(spans.data(), spans.size());
  p.tiles = queue.stage(tiles.data(), tiles.size());
  if (args.rope_theta > 0) {
    const std::vector<float> frequencies = rope_frequencies(args.rope_theta, args.head_dim);
    a.incoming.frequencies = queue.stage(frequencies.data(), frequencies.size());
  }
  launch(queue, p);
}

// Scores as those of attention, and the counter.
size_t decoder_step_scratch(const StepSize& size, DType type) {
  return attention_scratch(size, type) + kCounterBytes;
}

}  // namespace unifluid::cuda
