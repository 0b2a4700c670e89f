// What the kernels of few rows share: how rows that are decoded come in.
#pragma once

#include "cuda/device/grid.h"
#include "cuda/kernels/attention.h"

namespace unifluid::cuda {

UNIFLUID_DEVICE int queries_of(const AttentionParams& p, const AttendedSpan& span, int first) {
  return min(kDecodeQueries, span.rows * p.group - first);
}

// Of all queries of a tile.
UNIFLUID_DEVICE Sight sight_of_tile(const AttentionParams& p, const AttendedSpan& span, int first) {
  const int queries = queries_of(p, span, first);
  return sight_of_rows(p, span, first / p.group, (first + queries - 1) / p.group);
}

// Rotates the queries of a tile, and those keys of the span that lie in this block of keys, rows
// [own, own_end) of it. The first tile also writes these keys and their values where later steps,
// and `decode_values`, find them; the others have read them from the same place.
template <int kHeadDim, int kThreads>
UNIFLUID_DEVICE void take_in(const AttentionParams& p, const AttendedSpan& span, int first_query,
                             int queries, int kv_head, int block, int own, int own_end,
                             const Shared<bf16>& q_tile, const Shared<bf16>& k_tile) {
  constexpr uint32_t kStride = kHeadDim + 8;
  const IncomingRows& in = p.incoming;
  const int half = (p.head_dim + 1) / 2, thread = static_cast<int>(threadIdx.x);
  const bool rotate = in.frequencies != nullptr;
  const auto to_tile = [&](const Shared<bf16>& tile, int row, int c, const Rotated<bf16>& pair) {
    const uint32_t at = static_cast<uint32_t>(row) * kStride + static_cast<uint32_t>(c);
    tile.store(at, pair.first);
    if (half + c < p.head_dim) tile.store(at + static_cast<uint32_t>(half), pair.second);
  };
  // As another block may have written them in this launch.
  const auto load_fresh_pair = [&](const void* rows, int64_t at, int c) -> Rotated<bf16> {
    const bf16* from = static_cast<const bf16*>(rows) + at;
    const bf16 first = load_fresh(from + c);
    return {first, half + c < p.head_dim ? load_fresh(from + half + c) : first};
  };
  // All that a thread reads is on its way before the first of it is used.
  constexpr int kAtOnce = 4;
  for (int i = thread; i < span.rows * half; i += kThreads) {
    const int c = i % half, r = i / half;
    const int64_t row = span.first_row + r, at = span.index + r;
    const int begin = max(first_query, r * p.group);
    const int end = min(first_query + queries, (r + 1) * p.group);
    const int key = static_cast<int>(at) - block;
    const bool here = key >= own && key < own_end, stays = here && first_query == 0;
    Rotated<bf16> k{}, v{}, q[kAtOnce] = {};
    const auto load_queries = [&](int query) {
#pragma unroll
      for (int j = 0; j < kAtOnce; ++j)
        if (query + j < end)
          q[j] = load_fresh_pair(in.q, query_offset(p, span, kv_head, query + j, in.q_stride), c);
    };
    load_queries(begin);
    if (here) k = load_fresh_pair(in.k, row * in.k_stride + kv_head * p.head_dim, c);
    if (stays && span.writes_values)
      v = load_fresh_pair(in.v, row * in.v_stride + kv_head * p.head_dim, c);
    const Angle angle = angle_of(in, at, c);
    for (int query = begin; query < end; query += kAtOnce) {
      if (query > begin) load_queries(query);
#pragma unroll
      for (int j = 0; j < kAtOnce; ++j)
        if (query + j < end)
          to_tile(q_tile, query + j - first_query, c, rotated(q[j], rotate, angle));
    }
    if (!here) continue;
    k = rotated(k, rotate, angle);
    to_tile(k_tile, key, c, k);
    if (!stays) continue;
    store_rotated(
        static_cast<bf16*>(span.keys) + kv_head * span.key_head_stride + at * span.key_stride, c,
        p.head_dim, k);
    if (span.writes_values)
      store_rotated(static_cast<bf16*>(span.values) + kv_head * span.value_head_stride +
                        at * span.value_stride,
                    c, p.head_dim, v);
  }
  // Columns that the head does not have.
  const int beyond = kHeadDim - p.head_dim;
  for (int i = thread; i < (queries + max(0, own_end - own)) * beyond; i += kThreads) {
    const int row = i / beyond, c = p.head_dim + i % beyond;
    const Shared<bf16>& tile = row < queries ? q_tile : k_tile;
    const int at = row < queries ? row : own + row - queries;
    tile.store(static_cast<uint32_t>(at) * kStride + static_cast<uint32_t>(c), bf16{0});
  }
}

// ---- host ----

// Whether so many tiles are split: not those that are more than half of the processors, as there is
// a tile of keys on its way to each.
bool splits_keys(const Queue&, size_t tiles, int64_t kv_heads);

// Scores and values by one kernel, for so many tiles that nothing need be split.
void attend_decode_whole(Queue&, const AttentionParams& p, size_t tiles, bool aligned);

}  // namespace unifluid::cuda
