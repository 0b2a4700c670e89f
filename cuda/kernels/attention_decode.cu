// Attention of few rows: at most 16 packed queries a tile, one mma's rows.
//
// Of many tiles each is one block's (attention_decode_whole.cu). Here one tile must keep many
// processors busy, without another order of sums than `prefill` has. So the
// keys are not split with their values: the first kernel computes scores, in parallel over blocks
// of keys; the second adds values, all keys in order, in parallel over columns of the head. Between
// them lie the scores of these few queries, 4 bytes a query and key beside the 4 * head_dim of the
// key and its value.
//
// The rows that are decoded are rotated as they are read, and their keys and values appended to the
// caches by the thread block that computes their scores: no kernel goes before.
//
// The first grid is sized by the capacity of the caches, not by what they hold, so that the step's
// launches repeat and replay as a graph; blocks beyond a sequence's keys end at once.
#include "cuda/device/dependence.h"
#include "cuda/dispatch.h"
#include "cuda/kernels/attention_decode.h"

namespace unifluid::cuda {
namespace {

// Of query 0 of a tile and a key head; queries are `score_stride` apart.
UNIFLUID_DEVICE float* scores_of(const AttentionParams& p, unsigned tile, int kv_head) {
  return p.scores + (int64_t{tile} * p.kv_heads + kv_head) * p.score_rows * p.score_stride;
}

// ---- scores ----

// 4 warps with 16 of a block's keys each. The whole block is one wave of copies: what hides its
// latency is the number of thread blocks.
constexpr int kScoreThreads = kKeyBlock / 16 * kWarp;

template <int kHeadDim, bool kAligned>
__global__ void __launch_bounds__(kScoreThreads) decode_scores(AttentionParams p) {
  constexpr uint32_t kStride = kHeadDim + 8;
  let_dependents_start();
  const AttentionTile tile = load_staged(p.tiles + blockIdx.x);
  const AttendedSpan span = load_staged(p.spans + tile.span);
  const int kv_head = static_cast<int>(blockIdx.y);
  const int block = static_cast<int>(blockIdx.z) * kKeyBlock;
  const int queries = queries_of(p, span, tile.first);
  const Sight seen =
      sight_of_rows(p, span, tile.first / p.group, (tile.first + queries - 1) / p.group);
  wait_for_inputs();
  if (block > seen.last || block + kKeyBlock <= seen.first) return;

  SharedArena arena;
  const auto q_tile = arena.take<bf16>(kDecodeQueries * kStride);
  const auto k_tile = arena.take<bf16>(kKeyBlock * kStride);
  const bf16* keys = static_cast<const bf16*>(span.keys) + kv_head * span.key_head_stride;
  // The span's own rows lie in no cache yet.
  const bool arrives = span.writes_keys;
  const int own = arrives ? max(0, span.index - block) : 0;
  const int own_end = arrives ? min(kKeyBlock, span.index + span.rows - block) : 0;
  load_rows<kKeyBlock, kHeadDim, kScoreThreads, kAligned>(
      k_tile, 0, p.head_dim,
      [&](int i) {
        return block + i <= seen.last ? keys + (block + i) * span.key_stride : nullptr;
      },
      own, own_end);
  load_rows<kDecodeQueries, kHeadDim, kScoreThreads, kAligned>(
      q_tile, 0, p.head_dim,
      [&](int i) {
        return i < queries ? static_cast<const bf16*>(p.q) +
                                 query_offset(p, span, kv_head, tile.first + i, p.q_stride)
                           : nullptr;
      },
      0, arrives ? queries : 0);
  cp_async_commit();
  if (arrives)
    take_in<kHeadDim, kScoreThreads>(p, span, tile.first, queries, kv_head, block, own, own_end,
                                     q_tile, k_tile);
  cp_async_wait<0>();
  __syncthreads();

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

  float* out = scores_of(p, blockIdx.x, kv_head) + block + first_key + lane % 4 * 2;
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

// 8 warps with 8 columns each: 128 bytes of a value, whole lines of the cache.
constexpr int kValueWarps = 8, kValueThreads = kValueWarps * kWarp;
constexpr int kColumns = kValueWarps * 8;
constexpr uint32_t kValueStride = kColumns + 8;
// Blocks of values on their way: 5 * 8 KiB for each thread block hide the latency of memory where
// few sequences run.
constexpr int kSlots = 6;
// Weights are computed for so many keys at once, a block of them by each warp.
constexpr int kRound = kValueWarps * kKeyBlock;
constexpr uint32_t kWeightStride = kRound + 8;
// Of a query: the maximum before a round, then those of its blocks.
constexpr uint32_t kMaxima = 1 + kValueWarps;

size_t value_bytes() {
  return SharedBytes{}
      .take<bf16>(kSlots * kKeyBlock * kValueStride)
      .take<bf16>(kDecodeQueries * kWeightStride)
      .take<float>(kDecodeQueries * kMaxima)
      .used;
}

template <bool kAligned>
__global__ void __launch_bounds__(kValueThreads, 2) decode_values(AttentionParams p) {
  let_dependents_start();
  SharedArena arena;
  const auto v_tiles = arena.take<bf16>(kSlots * kKeyBlock * kValueStride);
  const auto weights = arena.take<bf16>(kDecodeQueries * kWeightStride);
  const auto maxima = arena.take<float>(kDecodeQueries * kMaxima);
  const AttentionTile tile = load_staged(p.tiles + blockIdx.x);
  const AttendedSpan span = load_staged(p.spans + tile.span);
  const int kv_head = static_cast<int>(blockIdx.y);
  const int first_column = static_cast<int>(blockIdx.z) * kColumns;
  const int columns = p.head_dim - first_column;
  const int queries = queries_of(p, span, tile.first);
  const Sight seen =
      sight_of_rows(p, span, tile.first / p.group, (tile.first + queries - 1) / p.group);
  const int begin = seen.first / kKeyBlock * kKeyBlock;
  const int thread = static_cast<int>(threadIdx.x), warp = warp_index();
  const uint32_t lane = static_cast<uint32_t>(lane_index());

  const bf16* values =
      static_cast<const bf16*>(span.values) + kv_head * span.value_head_stride + first_column;
  const auto load_values = [&](int count) {  // the count-th block
    const int block = begin + count * kKeyBlock;
    if (block <= seen.last)
      load_rows<kKeyBlock, kColumns, kValueThreads, kAligned>(
          v_tiles, static_cast<uint32_t>(count % kSlots) * kKeyBlock * kValueStride, columns,
          [&](int i) {
            return block + i <= seen.last ? values + (block + i) * span.value_stride : nullptr;
          });
    cp_async_commit();
  };

  // Rows of the mma without a query.
  for (int i = queries * kRound + thread; i < kDecodeQueries * kRound; i += kValueThreads)
    weights.store(
        static_cast<uint32_t>(i / kRound) * kWeightStride + static_cast<uint32_t>(i % kRound),
        bf16{0});
  for (int i = thread; i < kDecodeQueries * static_cast<int>(kMaxima); i += kValueThreads)
    maxima.store(static_cast<uint32_t>(i), kLeastMaximum);
  __syncthreads();
  wait_for_inputs();
  for (int count = 0; count < kSlots - 1; ++count) load_values(count);

  const float exponent = exponent_scale(p);
  const float* scores = scores_of(p, blockIdx.x, kv_head);
  FragmentC sums = {}, totals = {};
  int count = 0;
  for (int round = begin; round <= seen.last; round += kRound) {
    // Scores: each warp those of its block, two keys a lane. All are asked for before one is used.
    const int key = round + warp * kKeyBlock + static_cast<int>(lane) * 2;
    float score[kDecodeQueries][2];
#pragma unroll
    for (int i = 0; i < kDecodeQueries; ++i) {
      if (i >= queries) continue;
      const Sight sight = sight_of(p, span, (tile.first + i) / p.group);
      const float* from = scores + i * p.score_stride + key;
      for (int e = 0; e < 2; ++e)
        score[i][e] = key + e >= sight.first && key + e <= sight.last ? from[e] : kMaskedScore;
    }
#pragma unroll
    for (int i = 0; i < kDecodeQueries; ++i) {
      if (i >= queries) continue;
      const float most = warp_max(fmaxf(score[i][0], score[i][1]));
      if (lane == 0)
        maxima.store(static_cast<uint32_t>(i) * kMaxima + 1 + static_cast<uint32_t>(warp), most);
    }
    __syncthreads();
#pragma unroll
    for (int i = 0; i < kDecodeQueries; ++i) {
      if (i >= queries) continue;
      float maximum = kLeastMaximum;
      for (uint32_t b = 0; b <= static_cast<uint32_t>(warp) + 1; ++b)
        maximum = fmaxf(maximum, maxima.load(static_cast<uint32_t>(i) * kMaxima + b));
      const float offset = maximum * exponent;
      for (uint32_t e = 0; e < 2; ++e)
        weights.store(static_cast<uint32_t>(i) * kWeightStride +
                          static_cast<uint32_t>(warp) * kKeyBlock + lane * 2 + e,
                      from_float<bf16>(weight_of(score[i][e], offset, exponent)));
    }
    __syncthreads();

    // Values: each warp its columns of all blocks.
    float maximum[2];
    for (uint32_t half = 0; half < 2; ++half)
      maximum[half] = maxima.load((lane / 4 + 8 * half) * kMaxima);
    for (uint32_t b = 0; b < kValueWarps && round + static_cast<int>(b) * kKeyBlock <= seen.last;
         ++b, ++count) {
      cp_async_wait<kSlots - 2>();
      __syncthreads();  // the block has come, and the one before is free
      load_values(count + kSlots - 1);
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
      const uint32_t slot = static_cast<uint32_t>(count % kSlots) * kKeyBlock * kValueStride;
#pragma unroll
      for (uint32_t k = 0; k < kKeyBlock; k += 32) {
        uint32_t v[4];
        ldmatrix_x4<true>(v, v_tiles,
                          slot + (k + lane) * kValueStride + static_cast<uint32_t>(warp) * 8);
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

    __syncthreads();  // before this round's maxima and weights go
    if (thread < kDecodeQueries) {
      const uint32_t at = static_cast<uint32_t>(thread) * kMaxima;
      float most = maxima.load(at);
      for (uint32_t b = 1; b < kMaxima; ++b) most = fmaxf(most, maxima.load(at + b));
      maxima.store(at, most);
    }
    __syncthreads();
  }
  cp_async_wait<0>();

#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int query = static_cast<int>(lane / 4) + 8 * half;
    if (query >= queries) continue;
    bf16* out = static_cast<bf16*>(p.out) +
                query_offset(p, span, kv_head, tile.first + query, p.out_stride) + first_column;
    const float inverse = 1.0f / totals.x[2 * half];
    store_pair<kAligned>(out, warp * 8 + static_cast<int>(lane % 4) * 2, columns,
                         sums.x[2 * half] * inverse, sums.x[2 * half + 1] * inverse);
  }
}

template <int kHeadDim>
void launch_scores(Queue& queue, const AttentionParams& p, size_t tiles, bool aligned) {
  const size_t shared = SharedBytes{}
                            .template take<bf16>(kDecodeQueries * (kHeadDim + 8))
                            .template take<bf16>(kKeyBlock * (kHeadDim + 8))
                            .used;
  queue.launch_dependent(aligned ? decode_scores<kHeadDim, true> : decode_scores<kHeadDim, false>,
                         dim3(static_cast<unsigned>(tiles), static_cast<unsigned>(p.kv_heads),
                              blocks_for(p.score_stride, kKeyBlock)),
                         dim3(kScoreThreads), shared, p);
}

}  // namespace

void attend_decode(Queue& queue, const AttentionParams& p, size_t tiles, bool aligned) {
  // Enough for more than half of the processors: there is a tile of keys on its way to each.
  const int64_t blocks = static_cast<int64_t>(tiles) * p.kv_heads;
  if (2 * blocks > queue.limits().processors) return attend_decode_whole(queue, p, tiles, aligned);
  if (p.head_dim <= 64)
    launch_scores<64>(queue, p, tiles, aligned);
  else if (p.head_dim <= 128)
    launch_scores<128>(queue, p, tiles, aligned);
  else
    launch_scores<kLargestTensorHead>(queue, p, tiles, aligned);
  queue.launch_dependent(aligned ? decode_values<true> : decode_values<false>,
                         dim3(static_cast<unsigned>(tiles), static_cast<unsigned>(p.kv_heads),
                              blocks_for(p.head_dim, kColumns)),
                         dim3(kValueThreads), value_bytes(), p);
}

}  // namespace unifluid::cuda
