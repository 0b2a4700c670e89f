// attention: rotary embedding and append to the caches, then the kernels that fit each span.
//
// Of spans of many rows `prepare` rotates keys into the caches, and queries, and keys of spans
// without a cache, into scratch: an angle is computed once for several heads, and the kernels
// behind read rows that are ready, each many times. The few rows of decoding are rotated and
// appended where their scores are computed. Without rotary embedding and caches there is nothing to
// prepare.
#include <algorithm>
#include <cmath>
#include <vector>

#include "cuda/dispatch.h"
#include "cuda/kernels/attention.h"

namespace unifluid::cuda {
namespace {

struct PrepareParams {
  IncomingRows in;
  void* rotated_q;  // [m, heads * head_dim], or null
  const AttendedSpan* spans;
  const AttentionTile* tiles;
  int32_t heads, kv_heads, head_dim;
};

// Rows of a thread block: enough pairs of elements for its threads with heads of 64; one row alone,
// in decoding, still has half of them at work for heads of 128.
constexpr int kPrepareRows = 4, kPrepareThreads = 128;
// Heads that share the computation of an angle.
constexpr int kPrepareHeads = 4;

template <class T>
__global__ void __launch_bounds__(kPrepareThreads) prepare(PrepareParams p) {
  const AttentionTile tile = p.tiles[blockIdx.x];
  const AttendedSpan span = p.spans[tile.span];
  const int rows = min(kPrepareRows, span.rows - tile.first), half = (p.head_dim + 1) / 2;
  // Query heads, then key heads, each of which takes its values along.
  const int first_head = static_cast<int>(blockIdx.y) * kPrepareHeads;
  const int end_head = min(first_head + kPrepareHeads, p.heads + p.kv_heads);
  const bool rotate = p.in.frequencies != nullptr;
  for (int i = static_cast<int>(threadIdx.x); i < rows * half; i += kPrepareThreads) {
    const int c = i % half, r = tile.first + i / half;
    const int64_t row = span.first_row + r, at = span.index + r;
    const Angle angle = angle_of(p.in, at, c);
    for (int h = first_head; h < end_head; ++h) {
      const int64_t kv = h - p.heads, d = p.head_dim;
      if (kv < 0) {
        if (p.rotated_q)
          store_rotated(static_cast<T*>(p.rotated_q) + (row * p.heads + h) * d, c, p.head_dim,
                        rotated(static_cast<const T*>(p.in.q) + row * p.in.q_stride + h * d, c,
                                p.head_dim, rotate, angle));
        continue;
      }
      if (span.writes_keys)
        store_rotated(static_cast<T*>(span.keys) + kv * span.key_head_stride + at * span.key_stride,
                      c, p.head_dim,
                      rotated(static_cast<const T*>(p.in.k) + row * p.in.k_stride + kv * d, c,
                              p.head_dim, rotate, angle));
      if (span.writes_values)
        store_rotated(
            static_cast<T*>(span.values) + kv * span.value_head_stride + at * span.value_stride, c,
            p.head_dim,
            rotated(static_cast<const T*>(p.in.v) + row * p.in.v_stride + kv * d, c, p.head_dim,
                    false, angle));
    }
  }
}

// ---- host ----

bool memory_aligned16(const void* memory) { return reinterpret_cast<uintptr_t>(memory) % 16 == 0; }

void add_tiles(std::vector<AttentionTile>& tiles, int32_t span, int64_t count, int64_t each) {
  // Later rows of a causal span see more: the longest tiles begin first.
  for (int64_t first = (count - 1) / each * each; first >= 0; first -= each)
    tiles.push_back({span, static_cast<int32_t>(first)});
}

// Which kernel takes which span.
struct Plan {
  bool aligned = false;  // q, out, keys and values, by 16 bytes
  std::vector<AttentionTile> warpgroups, prefill, decode, plain;
  std::vector<const AttentionSpan*> wide;
  // Rows of the first, second and fourth that are rotated or appended before.
  std::vector<AttentionTile> prepared;
  bool cacheless = false;                    // a span that is not wide has no cache
  int64_t score_rows = 0, score_stride = 0;  // of AttentionParams, for `decode`
  size_t wide_bytes = 0;                     // of scratch; one span after another, in the same

  bool empty() const {
    return warpgroups.empty() && prefill.empty() && decode.empty() && plain.empty() && wide.empty();
  }
};

bool all_aligned(const AttentionArgs& args) {
  bool aligned = args.head_dim % 8 == 0 && aligned16(args.q) && aligned16(args.k) &&
                 aligned16(args.v) && aligned16(args.out);
  for (int64_t i = 0; i < args.span_count; ++i)
    aligned = aligned && memory_aligned16(args.spans[i].cache.keys) &&
              memory_aligned16(args.spans[i].cache.values);
  return aligned;
}

Plan plan_of(const Queue& queue, const AttentionArgs& args) {
  const int64_t d = args.head_dim, group = args.heads / args.kv_heads;
  const bool tensor_cores = args.q.type == DType::bf16 && d <= kLargestTensorHead;
  Plan plan;
  plan.aligned = all_aligned(args);
  int64_t capacity = 0;
  for (int64_t i = 0; i < args.span_count; ++i) {
    const AttentionSpan& span = args.spans[i];
    if (span.rows == 0) continue;
    const int32_t index = static_cast<int32_t>(i);
    const int64_t queries = span.rows * group;
    if (is_wide(args, span)) {
      plan.wide.push_back(&span);
      plan.wide_bytes = std::max(plan.wide_bytes, wide_scratch(args, span));
      continue;
    }
    if (!span.cache.keys) plan.cacheless = true;
    if (tensor_cores && is_decoded(span, group)) {
      add_tiles(plan.decode, index, queries, kDecodeQueries);
      capacity = std::max(capacity, span.cache.keys ? span.cache.capacity : span.rows);
      plan.score_rows = std::max(plan.score_rows, std::min<int64_t>(queries, kDecodeQueries));
      continue;
    }
    if (!tensor_cores) {
      add_tiles(plan.plain, index, queries, kPlainQueries);
    } else if (takes_warpgroups(queue, queries, d, plan.aligned)) {
      add_tiles(plan.warpgroups, index, queries, kWarpgroupQueries);
    } else {
      add_tiles(plan.prefill, index, queries, kPrefillQueries);
    }
    if (args.rope_theta > 0 || span.cache.keys)
      add_tiles(plan.prepared, index, span.rows, kPrepareRows);
  }
  plan.score_stride = score_stride_of(capacity);
  return plan;
}

// Each may be empty.
struct Scratch {
  Tensor rotated_q, rotated_k;  // rows as those of q and k
  float* scores;
  unsigned char* wide;
};

Scratch take_scratch(Queue& queue, const AttentionArgs& args, const Plan& plan) {
  const bool rotary = args.rope_theta > 0;
  const DType type = args.q.type;
  Scratch s{};
  if (rotary && !plan.prepared.empty())
    s.rotated_q = Tensor(nullptr, type, args.q.rows, args.heads * args.head_dim);
  if (rotary && plan.cacheless)
    s.rotated_k = Tensor(nullptr, type, args.q.rows, args.kv_heads * args.head_dim);
  const size_t score_bytes =
      plan.decode.size() *
      static_cast<size_t>(args.kv_heads * plan.score_rows * plan.score_stride) * sizeof(float);
  queue.reserve_scratch(Queue::piece_bytes(s.rotated_q.bytes()) +
                        Queue::piece_bytes(s.rotated_k.bytes()) + Queue::piece_bytes(score_bytes) +
                        plan.wide_bytes);
  const auto take = [&](size_t bytes) {
    return bytes ? queue.scratch<unsigned char>(bytes) : nullptr;
  };
  s.rotated_q.data = take(s.rotated_q.bytes());
  s.rotated_k.data = take(s.rotated_k.bytes());
  s.scores = reinterpret_cast<float*>(take(score_bytes));
  s.wide = take(plan.wide_bytes);
  return s;
}

// Where each span's keys and values are.
std::vector<AttendedSpan> attended_spans(const AttentionArgs& args, const Tensor& rotated_k) {
  const Tensor& k = rotated_k ? rotated_k : args.k;
  std::vector<AttendedSpan> spans;
  for (int64_t i = 0; i < args.span_count; ++i) {
    const AttentionSpan& span = args.spans[i];
    AttendedSpan s = attended_in_cache(span, args.head_dim);
    if (!span.cache.keys) {
      s.writes_keys = args.rope_theta > 0;
      s.writes_values = false;
      s.keys = k.row(span.first_row);
      s.values = args.v.row(span.first_row);
      s.key_stride = k.stride;
      s.value_stride = args.v.stride;
      s.key_head_stride = s.value_head_stride = args.head_dim;
    }
    spans.push_back(s);
  }
  return spans;
}

// All but what is staged.
AttentionParams params_of(const AttentionArgs& args, const Plan& plan, const Scratch& scratch) {
  const Tensor& q = scratch.rotated_q ? scratch.rotated_q : args.q;
  AttentionParams p{};
  p.q = q.data;
  p.q_stride = q.stride;
  p.out = args.out.data;
  p.out_stride = args.out.stride;
  p.kv_heads = static_cast<int32_t>(args.kv_heads);
  p.group = static_cast<int32_t>(args.heads / args.kv_heads);
  p.head_dim = static_cast<int32_t>(args.head_dim);
  p.window = static_cast<int32_t>(args.window);
  p.scale = args.scale;
  p.soft_cap = args.soft_cap;
  p.scores = scratch.scores;
  p.score_stride = plan.score_stride;
  p.score_rows = static_cast<int32_t>(plan.score_rows);
  IncomingRows& in = p.incoming;
  in.q = args.q.data;
  in.k = args.k.data;
  in.v = args.v.data;
  in.q_stride = args.q.stride;
  in.k_stride = args.k.stride;
  in.v_stride = args.v.stride;
  in.first_position = args.first_position;
  return p;
}

void launch_prepare(Queue& queue, const AttentionArgs& args, const PrepareParams& p, size_t tiles) {
  const dim3 grid(static_cast<unsigned>(tiles),
                  blocks_for(args.heads + args.kv_heads, kPrepareHeads));
  with_type(args.q.type,
            [&](auto t) { queue.launch(prepare<decltype(t)>, grid, dim3(kPrepareThreads), 0, p); });
}

}  // namespace

bool is_decoded(const AttentionSpan& span, int64_t group) {
  return span.rows * group <= kDecodeQueries || span.rows == 1;
}

std::vector<AttentionTile> decode_tiles(const AttentionSpan* spans, int64_t count, int64_t group) {
  std::vector<AttentionTile> tiles;
  for (int64_t i = 0; i < count; ++i)
    add_tiles(tiles, static_cast<int32_t>(i), spans[i].rows * group, kDecodeQueries);
  return tiles;
}

AttendedSpan attended_in_cache(const AttentionSpan& span, int64_t head_dim) {
  AttendedSpan s{};
  s.first_row = span.first_row;
  s.rows = static_cast<int32_t>(span.rows);
  s.index = static_cast<int32_t>(span.index);
  s.prefix_end = static_cast<int32_t>(span.prefix_end);
  s.keys = span.cache.keys;
  s.values = span.cache.values;
  s.key_stride = s.value_stride = head_dim;
  s.key_head_stride = s.value_head_stride = span.cache.capacity * head_dim;
  s.writes_keys = s.writes_values = true;
  return s;
}

int64_t score_stride_of(int64_t capacity) {
  return (capacity + kKeyBlock - 1) / kKeyBlock * kKeyBlock;
}

// Powers in float64, the rest in float32.
std::vector<float> rope_frequencies(float theta, int64_t head_dim) {
  std::vector<float> out(static_cast<size_t>(head_dim / 2));
  const float d = static_cast<float>(head_dim);
  for (size_t c = 0; c < out.size(); ++c)
    out[c] =
        1.0f / static_cast<float>(std::pow(static_cast<double>(theta),
                                           static_cast<double>(static_cast<float>(2 * c) / d)));
  return out;
}

// Caches, and so no keys in scratch; of each stream one tile of decoding, or some for its one row.
size_t attention_scratch(const StepSize& size, DType type) {
  const size_t q = size.rotary ? static_cast<size_t>(size.rows * size.heads * size.head_dim) : 0;
  const int64_t group = size.heads / size.kv_heads;
  const int64_t tiles = size.streams * blocks_for(group, kDecodeQueries);
  const int64_t score_stride = score_stride_of(size.capacity);
  const bool decodes = type == DType::bf16 && size.head_dim <= kLargestTensorHead;
  const size_t scores =
      decodes ? static_cast<size_t>(tiles * size.kv_heads * kDecodeQueries * score_stride) : 0;
  return Queue::piece_bytes(q * size_of(type)) + Queue::piece_bytes(scores * sizeof(float));
}

void attention(Queue& queue, const AttentionArgs& args) {
  const Plan plan = plan_of(queue, args);
  if (plan.empty()) return;
  const Scratch scratch = take_scratch(queue, args, plan);
  AttentionParams p = params_of(args, plan, scratch);

  const auto stage = [&](const auto& list) { return queue.stage(list.data(), list.size()); };
  p.spans = stage(attended_spans(args, scratch.rotated_k));
  const AttentionTile* const warpgroups = stage(plan.warpgroups);
  const AttentionTile* const prefill = stage(plan.prefill);
  const AttentionTile* const decode = stage(plan.decode);
  const AttentionTile* const plain = stage(plan.plain);
  if (args.rope_theta > 0)
    p.incoming.frequencies = stage(rope_frequencies(args.rope_theta, args.head_dim));
  const AttentionTile* const prepared = stage(plan.prepared);

  if (!plan.prepared.empty()) {
    PrepareParams r{};
    r.in = p.incoming;
    r.rotated_q = scratch.rotated_q.data;
    r.spans = p.spans;
    r.tiles = prepared;
    r.heads = static_cast<int32_t>(args.heads);
    r.kv_heads = p.kv_heads;
    r.head_dim = p.head_dim;
    launch_prepare(queue, args, r, plan.prepared.size());
  }
  if (!plan.warpgroups.empty()) {
    p.tiles = warpgroups;
    attend_warpgroups(queue, p, plan.warpgroups.size());
  }
  if (!plan.prefill.empty()) {
    p.tiles = prefill;
    attend_prefill(queue, p, plan.prefill.size(), plan.aligned);
  }
  if (!plan.decode.empty()) {
    p.tiles = decode;
    attend_decode(queue, p, plan.decode.size(), plan.aligned);
  }
  if (!plan.plain.empty()) {
    p.tiles = plain;
    attend_plain(queue, p, plan.plain.size(), args.q.type);
  }
  for (const AttentionSpan* span : plan.wide) attend_wide(queue, args, *span, scratch.wide);
}

}  // namespace unifluid::cuda
