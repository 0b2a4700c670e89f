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

template <class T>
void attention(Queue& queue, const AttentionArgs& args, T) {
  const int64_t d = args.head_dim, group = args.heads / args.kv_heads;
  const size_t count = static_cast<size_t>(args.span_count);
  const bool rotary = args.rope_theta > 0;
  const bool tensor_cores = sizeof(T) == 2 && d <= kLargestTensorHead;

  bool aligned = d % 8 == 0 && aligned16(args.q) && aligned16(args.k) && aligned16(args.v) &&
                 aligned16(args.out);
  for (size_t i = 0; i < count; ++i)
    aligned = aligned && memory_aligned16(args.spans[i].cache.keys) &&
              memory_aligned16(args.spans[i].cache.values);

  // ---- which kernel takes which span; what scratch is needed ----
  std::vector<AttentionTile> warpgroups, prefill, decode, plain, prepared;
  std::vector<const AttentionSpan*> wide;
  size_t wide_bytes = 0;
  int64_t capacity = 0, score_rows = 0;
  bool cacheless = false;
  for (size_t i = 0; i < count; ++i) {
    const AttentionSpan& span = args.spans[i];
    if (span.rows == 0) continue;
    const int32_t index = static_cast<int32_t>(i);
    const int64_t queries = span.rows * group;
    if (is_wide(args, span)) {
      // One after another, in the same scratch.
      wide.push_back(&span);
      wide_bytes = std::max(wide_bytes, wide_scratch(args, span));
      continue;
    }
    if (!span.cache.keys) cacheless = true;
    if (tensor_cores && is_decoded(span, group)) {
      add_tiles(decode, index, queries, kDecodeQueries);
      capacity = std::max(capacity, span.cache.keys ? span.cache.capacity : span.rows);
      score_rows = std::max(score_rows, std::min<int64_t>(queries, kDecodeQueries));
      continue;
    }
    if (!tensor_cores) {
      add_tiles(plain, index, queries, kPlainQueries);
    } else if (takes_warpgroups(queue, queries, d, aligned)) {
      add_tiles(warpgroups, index, queries, kWarpgroupQueries);
    } else {
      add_tiles(prefill, index, queries, kPrefillQueries);
    }
    if (rotary || span.cache.keys) add_tiles(prepared, index, span.rows, kPrepareRows);
  }
  if (warpgroups.empty() && prefill.empty() && decode.empty() && plain.empty() && wide.empty())
    return;

  const int64_t score_stride = score_stride_of(capacity);
  const size_t m = static_cast<size_t>(args.q.rows);
  const size_t q_count = rotary && !prepared.empty() ? m * static_cast<size_t>(args.heads * d) : 0;
  const size_t k_count = rotary && cacheless ? m * static_cast<size_t>(args.kv_heads * d) : 0;
  const size_t score_count =
      decode.size() * static_cast<size_t>(args.kv_heads * score_rows * score_stride);
  queue.reserve_scratch(Queue::piece_bytes(q_count * sizeof(T)) +
                        Queue::piece_bytes(k_count * sizeof(T)) +
                        Queue::piece_bytes(score_count * sizeof(float)) + wide_bytes);
  T* const rotated_q = q_count ? queue.scratch<T>(q_count) : nullptr;
  T* const rotated_k = k_count ? queue.scratch<T>(k_count) : nullptr;
  float* const scores = score_count ? queue.scratch<float>(score_count) : nullptr;
  unsigned char* const wide_memory =
      wide_bytes ? queue.scratch<unsigned char>(wide_bytes) : nullptr;

  // ---- where each span's keys and values are ----
  const auto row_of = [](const Tensor& t, int64_t row) {
    return static_cast<T*>(t.data) + row * t.stride;
  };
  std::vector<AttendedSpan> spans(count);
  for (size_t i = 0; i < count; ++i) {
    const AttentionSpan& span = args.spans[i];
    AttendedSpan s = attended_in_cache(span, d);
    if (!span.cache.keys) {
      s.writes_values = false;
      s.values = row_of(args.v, span.first_row);
      s.value_stride = args.v.stride;
      s.key_head_stride = s.value_head_stride = d;
      s.writes_keys = rotary;
      s.key_stride = rotary ? args.kv_heads * d : args.k.stride;
      s.keys = rotary ? rotated_k + span.first_row * s.key_stride : row_of(args.k, span.first_row);
    }
    spans[i] = s;
  }

  AttentionParams p{};
  p.q = rotated_q ? rotated_q : args.q.data;
  p.q_stride = rotated_q ? args.heads * d : args.q.stride;
  p.out = args.out.data;
  p.out_stride = args.out.stride;
  p.kv_heads = static_cast<int32_t>(args.kv_heads);
  p.group = static_cast<int32_t>(group);
  p.head_dim = static_cast<int32_t>(d);
  p.window = static_cast<int32_t>(args.window);
  p.scale = args.scale;
  p.soft_cap = args.soft_cap;
  p.scores = scores;
  p.score_stride = score_stride;
  p.score_rows = static_cast<int32_t>(score_rows);

  // ---- staging, then launches ----
  const auto stage = [&](const auto& list) { return queue.stage(list.data(), list.size()); };
  p.spans = stage(spans);
  const AttentionTile* const warpgroup_tiles = stage(warpgroups);
  const AttentionTile* const prefill_tiles = stage(prefill);
  const AttentionTile* const decode_tiles = stage(decode);
  const AttentionTile* const plain_tiles = stage(plain);
  IncomingRows& in = p.incoming;
  in.q = args.q.data;
  in.k = args.k.data;
  in.v = args.v.data;
  in.q_stride = args.q.stride;
  in.k_stride = args.k.stride;
  in.v_stride = args.v.stride;
  if (rotary) in.frequencies = stage(rope_frequencies(args.rope_theta, d));
  in.first_position = args.first_position;
  if (!prepared.empty()) {
    PrepareParams r{};
    r.in = in;
    r.rotated_q = rotated_q;
    r.spans = p.spans;
    r.tiles = stage(prepared);
    r.heads = static_cast<int32_t>(args.heads);
    r.kv_heads = p.kv_heads;
    r.head_dim = p.head_dim;
    queue.launch(prepare<T>,
                 dim3(static_cast<unsigned>(prepared.size()),
                      blocks_for(args.heads + args.kv_heads, kPrepareHeads)),
                 dim3(kPrepareThreads), 0, r);
  }
  if (!warpgroups.empty()) {
    p.tiles = warpgroup_tiles;
    attend_warpgroups(queue, p, warpgroups.size());
  }
  if (!prefill.empty()) {
    p.tiles = prefill_tiles;
    attend_prefill(queue, p, prefill.size(), aligned);
  }
  if (!decode.empty()) {
    p.tiles = decode_tiles;
    attend_decode(queue, p, decode.size(), aligned);
  }
  if (!plain.empty()) {
    p.tiles = plain_tiles;
    attend_plain(queue, p, plain.size(), args.q.type);
  }
  for (const AttentionSpan* span : wide) attend_wide(queue, args, *span, wide_memory);
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
  with_type(args.q.type, [&](auto t) { attention(queue, args, t); });
}

}  // namespace unifluid::cuda
