// Attention of few rows with its keys split from its values (attention_decode.cu): what one block's
// threads do of either, in kernels of their own and in that of a whole step (decoder_step.cu).
#pragma once

#include "cuda/kernels/attention_decode.h"

namespace unifluid::cuda {

// Of query 0 of a tile and a key head; queries are `score_stride` apart.
UNIFLUID_DEVICE float* scores_of(const AttentionParams& p, unsigned tile, int kv_head) {
  return p.scores + (int64_t{tile} * p.kv_heads + kv_head) * p.score_rows * p.score_stride;
}

// ---- scores ----

// Of 16 keys a warp; more warps than that only copy.
inline constexpr int kScoreThreads = kKeyBlock / 16 * kWarp;

template <int kHeadDim>
constexpr size_t score_bytes() {
  return SharedBytes{}
      .template take<bf16>(kDecodeQueries * (kHeadDim + 8))
      .template take<bf16>(kKeyBlock * (kHeadDim + 8))
      .used;
}

template <int kHeadDim>
struct ScoreTiles {
  static constexpr uint32_t kStride = kHeadDim + 8;
  UNIFLUID_DEVICE explicit ScoreTiles(SharedArena arena)
      : q(arena.take<bf16>(kDecodeQueries * kStride)),
        keys(arena.take<bf16>(kKeyBlock * kStride)) {}
  const Shared<bf16> q, keys;
};

// The rows of a block of keys, from `block` on, that come with the span: they lie in no cache yet.
struct OwnKeys {
  int32_t begin, end;
};
UNIFLUID_DEVICE OwnKeys own_keys(const AttendedSpan& span, int block) {
  if (!span.writes_keys) return {0, 0};
  return {max(0, span.index - block), min(kKeyBlock, span.index + span.rows - block)};
}

// Begins to copy the keys of a block but for those.
template <int kHeadDim, bool kAligned, class Threads>
UNIFLUID_DEVICE void load_keys(const AttentionParams& p, const AttendedSpan& span, int kv_head,
                               int block, const Sight& seen, SharedArena arena) {
  const bf16* keys = static_cast<const bf16*>(span.keys) + kv_head * span.key_head_stride;
  const OwnKeys own = own_keys(span, block);
  load_rows<kKeyBlock, kHeadDim, Threads::kCount, kAligned>(
      ScoreTiles<kHeadDim>(arena).keys, 0, p.head_dim,
      [&](int i) {
        return block + i <= seen.last ? keys + (block + i) * span.key_stride : nullptr;
      },
      own.begin, own.end);
}

// Those of the queries of tile `tile`, which begins with `first_query`, and the block of keys from
// `block` on, of which they see some; `load_keys` has been called for it. By Threads, who must meet
// before `arena` is used again.
template <int kHeadDim, bool kAligned, class Threads>
UNIFLUID_DEVICE void compute_scores(const AttentionParams& p, const AttendedSpan& span,
                                    unsigned tile, int first_query, int kv_head, int block,
                                    SharedArena arena) {
  constexpr uint32_t kStride = ScoreTiles<kHeadDim>::kStride;
  const int queries = queries_of(p, span, first_query);
  const ScoreTiles<kHeadDim> tiles(arena);
  const Shared<bf16>&q_tile = tiles.q, &k_tile = tiles.keys;
  const OwnKeys own = own_keys(span, block);
  const bool arrives = span.writes_keys;
  load_rows<kDecodeQueries, kHeadDim, Threads::kCount, kAligned>(
      q_tile, 0, p.head_dim,
      [&](int i) {
        return i < queries ? static_cast<const bf16*>(p.q) +
                                 query_offset(p, span, kv_head, first_query + i, p.q_stride)
                           : nullptr;
      },
      0, arrives ? queries : 0);
  cp_async_commit();
  if (arrives)
    take_in<kHeadDim, Threads::kCount>(p, span, first_query, queries, kv_head, block, own.begin,
                                       own.end, q_tile, k_tile);
  cp_async_wait<0>();
  Threads::meet();

  if (warp_index() >= kKeyBlock / 16) return;  // only for the copies
  const uint32_t lane = static_cast<uint32_t>(lane_index());
  const uint32_t first_key = static_cast<uint32_t>(warp_index()) * 16;
  FragmentC scores[2] = {};
#pragma unroll
  for (uint32_t k = 0; k < kHeadDim; k += 16) {
    FragmentA q;
    ldmatrix_x4<false>(q.x, q_tile, lane % 16 * kStride + k + lane / 16 * 8);
    uint32_t b[4];
    ldmatrix_x4<false>(b, k_tile,
                       (first_key + lane / 16 * 8 + lane % 8) * kStride + k + lane / 8 % 2 * 8);
    mma(scores[0], q, FragmentB{{b[0], b[1]}});
    mma(scores[1], q, FragmentB{{b[2], b[3]}});
  }

  float* out = scores_of(p, tile, kv_head) + block + first_key + lane % 4 * 2;
#pragma unroll
  for (int j = 0; j < 2; ++j)
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int query = static_cast<int>(lane / 4) + 8 * half;
      if (query < queries)
        *reinterpret_cast<float2*>(out + query * p.score_stride + 8 * j) = make_float2(
            raw_score(p, scores[j].x[2 * half]), raw_score(p, scores[j].x[2 * half + 1]));
    }
}

// ---- values ----

// Eight warps, of which `kColumnWarps` add up 8 columns each.
inline constexpr int kValueWarps = 8, kValueThreads = kValueWarps * kWarp;
// Weights are computed for so many keys at once, a block of them by each warp.
inline constexpr int kRound = kValueWarps * kKeyBlock;
inline constexpr uint32_t kWeightStride = kRound + 8;
// Of a query: the maximum before a round, then those of its blocks.
inline constexpr uint32_t kMaxima = 1 + kValueWarps;

// kSlots: blocks of values on their way, and the one that is added up.
template <int kColumnWarps, int kSlots>
constexpr size_t value_bytes() {
  return SharedBytes{}
      .template take<bf16>(kSlots * kKeyBlock * (kColumnWarps * 8 + 8))
      .template take<bf16>(kDecodeQueries * kWeightStride)
      .template take<float>(kDecodeQueries * kMaxima)
      .used;
}

// The output of a tile's queries, at most kMostQueries, in columns `first_column` .. of the head:
// store(query, column, a, b) for two neighbouring columns, of which the head has the first; wait()
// returns when scores and the span's own values are there. By Threads, who must meet before `arena`
// is used again.
template <int kColumnWarps, int kSlots, bool kAligned, class Threads, int kMostQueries, class Wait,
          class Store>
UNIFLUID_DEVICE void add_values(const AttentionParams& p, const AttendedSpan& span, unsigned tile,
                                int first_query, int kv_head, int first_column, SharedArena arena,
                                Wait wait, Store store) {
  static_assert(Threads::kCount == kValueThreads && kColumnWarps <= kValueWarps);
  constexpr int kColumns = kColumnWarps * 8;
  constexpr uint32_t kStride = kColumns + 8;
  const auto v_tiles = arena.take<bf16>(kSlots * kKeyBlock * kStride);
  const auto weights = arena.take<bf16>(kDecodeQueries * kWeightStride);
  const auto maxima = arena.take<float>(kDecodeQueries * kMaxima);
  const int columns = p.head_dim - first_column;
  const int queries = queries_of(p, span, first_query);
  const Sight seen = sight_of_tile(p, span, first_query);
  const int begin = seen.first / kKeyBlock * kKeyBlock;
  const int thread = static_cast<int>(threadIdx.x), warp = warp_index();
  const uint32_t lane = static_cast<uint32_t>(lane_index());

  const bf16* values =
      static_cast<const bf16*>(span.values) + kv_head * span.value_head_stride + first_column;
  const auto load_values = [&](int count) {  // the count-th block
    const int block = begin + count * kKeyBlock;
    if (block <= seen.last)
      load_rows<kKeyBlock, kColumns, Threads::kCount, kAligned>(
          v_tiles, static_cast<uint32_t>(count % kSlots) * kKeyBlock * kStride, columns,
          [&](int i) {
            return block + i <= seen.last ? values + (block + i) * span.value_stride : nullptr;
          });
    cp_async_commit();
  };

  // Rows of the mma without a query.
  constexpr int kZeros = Vector<bf16>::kSize, kPerRow = kRound / kZeros;
  for (int i = queries * kPerRow + thread; i < kDecodeQueries * kPerRow; i += Threads::kCount)
    weights.store_vector(static_cast<uint32_t>(i / kPerRow) * kWeightStride +
                             static_cast<uint32_t>(i % kPerRow * kZeros),
                         Vector<bf16>{});
  for (int i = thread; i < kDecodeQueries * static_cast<int>(kMaxima); i += Threads::kCount)
    maxima.store(static_cast<uint32_t>(i), kLeastMaximum);
  Threads::meet();
  wait();
  for (int count = 0; count < kSlots - 1; ++count) load_values(count);

  const float exponent = exponent_scale(p);
  const float* scores = scores_of(p, tile, kv_head);
  FragmentC sums = {}, totals = {};
  int count = 0;
  for (int round = begin; round <= seen.last; round += kRound) {
    // Scores: each warp those of its block, two keys a lane. All are asked for before one is used.
    const int key = round + warp * kKeyBlock + static_cast<int>(lane) * 2;
    float score[kMostQueries][2];
#pragma unroll
    for (int i = 0; i < kMostQueries; ++i) {
      if (i >= queries) continue;
      const Sight sight = sight_of(p, span, (first_query + i) / p.group);
      const float* from = scores + i * p.score_stride + key;
      // Rows of scores are whole blocks, so that there is a second where there is a first.
      float2 pair = make_float2(kMaskedScore, kMaskedScore);
      if (key <= sight.last) pair = load_fresh(reinterpret_cast<const float2*>(from));
      score[i][0] = key >= sight.first && key <= sight.last ? pair.x : kMaskedScore;
      score[i][1] = key + 1 >= sight.first && key + 1 <= sight.last ? pair.y : kMaskedScore;
    }
#pragma unroll
    for (int i = 0; i < kMostQueries; ++i) {
      if (i >= queries) continue;
      const float most = warp_max(fmaxf(score[i][0], score[i][1]));
      if (lane == 0)
        maxima.store(static_cast<uint32_t>(i) * kMaxima + 1 + static_cast<uint32_t>(warp), most);
    }
    Threads::meet();
#pragma unroll
    for (int i = 0; i < kMostQueries; ++i) {
      if (i >= queries) continue;
      // Of the blocks up to this warp's, one a lane.
      const float maximum = warp_max(lane <= static_cast<uint32_t>(warp) + 1
                                         ? maxima.load(static_cast<uint32_t>(i) * kMaxima + lane)
                                         : kLeastMaximum);
      const float offset = maximum * exponent;
      for (uint32_t e = 0; e < 2; ++e)
        weights.store(static_cast<uint32_t>(i) * kWeightStride +
                          static_cast<uint32_t>(warp) * kKeyBlock + lane * 2 + e,
                      from_float<bf16>(weight_of(score[i][e], offset, exponent)));
    }
    Threads::meet();

    // Values: each warp its columns of all blocks.
    float maximum[2];
    for (uint32_t half = 0; half < 2; ++half)
      maximum[half] = maxima.load((lane / 4 + 8 * half) * kMaxima);
    for (uint32_t b = 0; b < kValueWarps && round + static_cast<int>(b) * kKeyBlock <= seen.last;
         ++b, ++count) {
      cp_async_wait<kSlots - 2>();
      Threads::meet();  // the block has come, and the one before is free
      load_values(count + kSlots - 1);
      if (kColumnWarps < kValueWarps && warp >= kColumnWarps) continue;
#pragma unroll
      for (uint32_t half = 0; half < 2; ++half) {
        const float most =
            fmaxf(maximum[half], maxima.load((lane / 4 + 8 * half) * kMaxima + 1 + b));
        const float factor = shrinking(maximum[half], most, exponent);
        maximum[half] = most;
        for (uint32_t e = 2 * half; e < 2 * half + 2; ++e) {
          sums.x[e] *= factor;
          totals.x[e] *= factor;
        }
      }
      const uint32_t slot = static_cast<uint32_t>(count % kSlots) * kKeyBlock * kStride;
#pragma unroll
      for (uint32_t k = 0; k < kKeyBlock; k += 32) {
        uint32_t v[4];
        ldmatrix_x4<true>(v, v_tiles,
                          slot + (k + lane) * kStride + static_cast<uint32_t>(warp) * 8);
#pragma unroll
        for (uint32_t half = 0; half < 2; ++half) {
          FragmentA w;
          ldmatrix_x4<false>(
              w.x, weights,
              lane % 16 * kWeightStride + b * kKeyBlock + k + 16 * half + lane / 16 * 8);
          mma(totals, w, ones());
          mma(sums, w, FragmentB{{v[2 * half], v[2 * half + 1]}});
        }
      }
    }

    Threads::meet();  // before this round's maxima and weights go
    if (thread < kDecodeQueries) {
      const uint32_t at = static_cast<uint32_t>(thread) * kMaxima;
      float most = maxima.load(at);
      for (uint32_t b = 1; b < kMaxima; ++b) most = fmaxf(most, maxima.load(at + b));
      maxima.store(at, most);
    }
    Threads::meet();
  }
  cp_async_wait<0>();

  if (kColumnWarps < kValueWarps && warp >= kColumnWarps) return;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int query = static_cast<int>(lane / 4) + 8 * half;
    if (query >= queries) continue;
    const float inverse = 1.0f / totals.x[2 * half];
    const int column = warp * 8 + static_cast<int>(lane % 4) * 2;
    if (column < columns)
      store(first_query + query, first_column + column, sums.x[2 * half] * inverse,
            sums.x[2 * half + 1] * inverse);
  }
}

}  // namespace unifluid::cuda
