// Gradients of attention on tensor cores: FlashAttention-2's backward pass (arXiv 2307.08691,
// algorithm 2) with operands in bfloat16 and float accumulators.
//
// `query_side` takes 64 queries of a head, a warp 16 of them: it goes over their keys once for the
// log-sum of exponentials and once more for dq. `key_side` takes 64 keys and goes over the queries
// that see them, of one head after the other; it multiplies with keys as rows, so that weights and
// gradients of scores come out of one product as the operand of the next and never leave
// registers. No sum is shared by two blocks.
//
// Heads of 256 have more columns of dk and dv than a thread has registers for: two blocks take one
// half each, and both compute the scores.
#include "cuda/device/cp_async.h"
#include "cuda/device/mma.h"
#include "cuda/device/warp.h"
#include "cuda/kernels/attention_backward.h"

namespace unifluid::cuda {
namespace {

constexpr int kThreads = kRoundedTileRows / 16 * kWarp;

// `kHeadDim`: columns of a head, rounded up. `kOthers`: rows of the other side at a time. `kOut`:
// columns of dk and dv of a block.
template <int kHeadDim_, int kOthers_, int kOut_>
struct RoundedShape {
  static constexpr int kHeadDim = kHeadDim_, kOthers = kOthers_, kOut = kOut_;
  static constexpr uint32_t kStride = kHeadDim + 8;
  static constexpr int kPieces = kOthers / 8;  // of scores

  static size_t shared_bytes() {
    return SharedBytes{}
        .template take<bf16>(kRoundedTileRows * kStride)
        .template take<bf16>(kRoundedTileRows * kStride)
        .template take<bf16>(kOthers * kStride)
        .template take<bf16>(kOthers * kStride)
        .used;
  }
};

// Starts the copies of rows first .. of a head, from packed rows of `width`; zeros past the end.
template <class S, int kRows>
UNIFLUID_DEVICE void load(const Shared<bf16>& to, const AttentionGradients& p, const bf16* from,
                          int64_t width, const GradientSpan& span, int first, int column) {
  load_rows<kRows, S::kHeadDim, kThreads, true>(to, 0, p.head_dim, [&](int i) {
    return first + i < span.rows ? from + (span.first_row + first + i) * width + column : nullptr;
  });
}

// This warp's 16 rows of `rows` times the rows of `others`.
template <class S>
UNIFLUID_DEVICE void multiply_rows(FragmentC (&scores)[S::kPieces], const Shared<bf16>& rows,
                                   const Shared<bf16>& others) {
  const uint32_t lane = static_cast<uint32_t>(lane_index());
  const uint32_t first = static_cast<uint32_t>(warp_index()) * 16;
#pragma unroll
  for (int j = 0; j < S::kPieces; ++j) scores[j] = FragmentC{};
#pragma unroll
  for (uint32_t k = 0; k < S::kHeadDim; k += 16) {
    FragmentA a;
    ldmatrix_x4<false>(a.x, rows, (first + lane % 16) * S::kStride + k + lane / 16 * 8);
#pragma unroll
    for (uint32_t j = 0; j < S::kPieces; j += 2) {
      uint32_t b[4];
      ldmatrix_x4<false>(b, others,
                         (8 * j + lane / 16 * 8 + lane % 8) * S::kStride + k + lane / 8 % 2 * 8);
      mma(scores[j], a, FragmentB{{b[0], b[1]}});
      mma(scores[j + 1], a, FragmentB{{b[2], b[3]}});
    }
  }
}

// sums += weights [16, kOthers] others [kOthers, 8 * kSums], the columns from `column` on.
template <class S, int kSums>
UNIFLUID_DEVICE void add_weighted(FragmentC (&sums)[kSums], const FragmentC (&weights)[S::kPieces],
                                  const Shared<bf16>& others, uint32_t column) {
  const uint32_t lane = static_cast<uint32_t>(lane_index());
#pragma unroll
  for (uint32_t k = 0; k < S::kOthers / 16; ++k) {
    FragmentA a;
#pragma unroll
    for (uint32_t i = 0; i < 4; ++i) {
      const float* w = &weights[2 * k + i / 2].x[i % 2 * 2];
      a.x[i] = pack_bf16(w[0], w[1]);
    }
#pragma unroll
    for (uint32_t c = 0; c < kSums; c += 2) {
      uint32_t b[4];
      ldmatrix_x4<true>(b, others,
                        (16 * k + lane % 16) * S::kStride + column + 8 * c + lane / 16 * 8);
      mma(sums[c], a, FragmentB{{b[0], b[1]}});
      mma(sums[c + 1], a, FragmentB{{b[2], b[3]}});
    }
  }
}

// This thread's rows of the tile, lane / 4 and lane / 4 + 8 of the warp's.
UNIFLUID_DEVICE int row_of(int half) { return warp_index() * 16 + lane_index() / 4 + 8 * half; }
// Element e of a piece of scores has this column.
UNIFLUID_DEVICE int column_of(int piece, int e) { return 8 * piece + lane_index() % 4 * 2 + e % 2; }

template <int kSums>
UNIFLUID_DEVICE void store(const FragmentC (&sums)[kSums], const Rows& to, const GradientSpan& span,
                           int first, int column, int columns) {
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int row = first + row_of(half);
    if (row >= span.rows) continue;
#pragma unroll
    for (int c = 0; c < kSums; ++c)
#pragma unroll
      for (int e = 0; e < 2; ++e)
        if (column_of(c, e) < columns)
          to.at(span.first_row + row, column + column_of(c, e)) = sums[c].x[2 * half + e];
  }
}

// The weight of a pair whose product of q and k is `product`, and the gradient of that product;
// `sum` in base 2.
struct Pair {
  float weight, gradient;
};
UNIFLUID_DEVICE Pair pair_of(const AttentionGradients& p, float product, float dout_value,
                             float sum, float dot) {
  const float raw = raw_score(p, product);
  const float weight = weight_of(raw, sum, exponent_scale(p));
  const float slope = p.soft_cap > 0 ? p.scale * fmaf(-raw, raw, 1.0f) : p.scale;
  return {weight, weight * (dout_value - dot) * slope};
}

template <class S>
__global__ void __launch_bounds__(kThreads) query_side(AttentionGradients p) {
  SharedArena arena;
  const auto q_tile = arena.take<bf16>(kRoundedTileRows * S::kStride);
  const auto dout_tile = arena.take<bf16>(kRoundedTileRows * S::kStride);
  const auto k_tile = arena.take<bf16>(S::kOthers * S::kStride);
  const auto v_tile = arena.take<bf16>(S::kOthers * S::kStride);
  const AttentionTile tile = p.tiles[blockIdx.x];
  const GradientSpan span = p.spans[tile.span];
  const int head = static_cast<int>(blockIdx.y), d = p.head_dim;
  const int column = head * d, key_column = head / p.group * d;
  const int64_t width = int64_t{p.heads} * d, key_width = width / p.group;
  const int last = min(tile.first + kRoundedTileRows, span.rows) - 1;
  const int first_key = sight_of(p, span, tile.first).first / S::kOthers * S::kOthers;
  const int last_key = sight_of(p, span, last).last;
  load<S, kRoundedTileRows>(q_tile, p, p.rounded_q, width, span, tile.first, column);
  load<S, kRoundedTileRows>(dout_tile, p, p.rounded_dout, width, span, tile.first, column);

  Sight sights[2];
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int row = tile.first + row_of(half);
    sights[half] = row <= last ? sight_of(p, span, row) : Sight{0, -1};
  }
  const float exponent = exponent_scale(p);
  FragmentC scores[S::kPieces];
  float most[2] = {kLeastMaximum, kLeastMaximum}, total[2] = {};
  for (int first = first_key; first <= last_key; first += S::kOthers) {
    load<S, S::kOthers>(k_tile, p, p.rounded_k, key_width, span, first, key_column);
    cp_async_commit();
    cp_async_wait<0>();
    __syncthreads();
    multiply_rows<S>(scores, q_tile, k_tile);
    __syncthreads();
    float before[2] = {most[0], most[1]}, offset[2];
#pragma unroll
    for (int j = 0; j < S::kPieces; ++j)
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        const Sight& sight = sights[e / 2];
        const int key = first + column_of(j, e);
        const bool seen = key >= sight.first && key <= sight.last;
        scores[j].x[e] = seen ? raw_score(p, scores[j].x[e]) : kMaskedScore;
        most[e / 2] = fmaxf(most[e / 2], scores[j].x[e]);
      }
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      most[half] = fmaxf(most[half], __shfl_xor_sync(kAllLanes, most[half], 1));
      most[half] = fmaxf(most[half], __shfl_xor_sync(kAllLanes, most[half], 2));
      total[half] *= shrinking(before[half], most[half], exponent);
      offset[half] = most[half] * exponent;
    }
#pragma unroll
    for (int j = 0; j < S::kPieces; ++j)
#pragma unroll
      for (int e = 0; e < 4; ++e)
        total[e / 2] += weight_of(scores[j].x[e], offset[e / 2], exponent);
  }

  float sum[2], dot[2] = {};
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int row = tile.first + row_of(half);
    if (row <= last)
      for (int c = lane_index() % 4; c < d; c += 4)
        dot[half] = fmaf(p.dout.at(span.first_row + row, column + c),
                         p.out.at(span.first_row + row, column + c), dot[half]);
    dot[half] = warp_sum<4>(dot[half]);
    sum[half] = most[half] * exponent + log2f(warp_sum<4>(total[half]));
    if (row > last || lane_index() % 4 != 0) continue;
    const int64_t to = (span.first_row + row) * p.heads + head;
    p.sums[to] = sum[half];
    p.dots[to] = dot[half];
  }

  FragmentC dq[S::kHeadDim / 8] = {};
  FragmentC douts[S::kPieces];
  for (int first = first_key; first <= last_key; first += S::kOthers) {
    load<S, S::kOthers>(k_tile, p, p.rounded_k, key_width, span, first, key_column);
    load<S, S::kOthers>(v_tile, p, p.rounded_v, key_width, span, first, key_column);
    cp_async_commit();
    cp_async_wait<0>();
    __syncthreads();
    multiply_rows<S>(scores, q_tile, k_tile);
    multiply_rows<S>(douts, dout_tile, v_tile);
#pragma unroll
    for (int j = 0; j < S::kPieces; ++j)
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        const Sight& sight = sights[e / 2];
        const int key = first + column_of(j, e);
        const bool seen = key >= sight.first && key <= sight.last;
        const Pair pair = pair_of(p, scores[j].x[e], douts[j].x[e], sum[e / 2], dot[e / 2]);
        scores[j].x[e] = seen ? pair.gradient : 0.0f;
      }
    add_weighted<S>(dq, scores, k_tile, 0);
    __syncthreads();
  }
  store(dq, p.dq, span, tile.first, column, d);
}

template <class S>
__global__ void __launch_bounds__(kThreads) key_side(AttentionGradients p) {
  SharedArena arena;
  const auto k_tile = arena.take<bf16>(kRoundedTileRows * S::kStride);
  const auto v_tile = arena.take<bf16>(kRoundedTileRows * S::kStride);
  const auto q_tile = arena.take<bf16>(S::kOthers * S::kStride);
  const auto dout_tile = arena.take<bf16>(S::kOthers * S::kStride);
  const AttentionTile tile = p.tiles[blockIdx.x];
  const GradientSpan span = p.spans[tile.span];
  const int key_head = static_cast<int>(blockIdx.y), d = p.head_dim;
  const int key_column = key_head * d, out_column = static_cast<int>(blockIdx.z) * S::kOut;
  const int64_t width = int64_t{p.heads} * d, key_width = width / p.group;
  const int last = min(tile.first + kRoundedTileRows, span.rows) - 1;
  load<S, kRoundedTileRows>(k_tile, p, p.rounded_k, key_width, span, tile.first, key_column);
  load<S, kRoundedTileRows>(v_tile, p, p.rounded_v, key_width, span, tile.first, key_column);

  const Sight rows = seen_by(p, span, tile.first, last);
  FragmentC dk[S::kOut / 8] = {}, dv[S::kOut / 8] = {};
  FragmentC weights[S::kPieces], gradients[S::kPieces];
  for (int head = key_head * p.group; head < (key_head + 1) * p.group; ++head)
    for (int first = rows.first / S::kOthers * S::kOthers; first <= rows.last;
         first += S::kOthers) {
      load<S, S::kOthers>(q_tile, p, p.rounded_q, width, span, first, head * d);
      load<S, S::kOthers>(dout_tile, p, p.rounded_dout, width, span, first, head * d);
      cp_async_commit();
      cp_async_wait<0>();
      __syncthreads();
      multiply_rows<S>(weights, k_tile, q_tile);
      multiply_rows<S>(gradients, v_tile, dout_tile);
#pragma unroll
      for (int j = 0; j < S::kPieces; ++j)
#pragma unroll
        for (int column = 0; column < 2; ++column) {
          const int query = first + column_of(j, column);
          const bool there = query < span.rows;
          const Sight sight = there ? sight_of(p, span, query) : Sight{0, -1};
          const int64_t at = (span.first_row + query) * p.heads + head;
          const float sum = there ? p.sums[at] : 0.0f, dot = there ? p.dots[at] : 0.0f;
#pragma unroll
          for (int half = 0; half < 2; ++half) {
            const int e = 2 * half + column, key = tile.first + row_of(half);
            const bool seen = key >= sight.first && key <= sight.last;
            const Pair pair = pair_of(p, weights[j].x[e], gradients[j].x[e], sum, dot);
            weights[j].x[e] = seen ? pair.weight : 0.0f;
            gradients[j].x[e] = seen ? pair.gradient : 0.0f;
          }
        }
      add_weighted<S>(dv, weights, dout_tile, static_cast<uint32_t>(out_column));
      add_weighted<S>(dk, gradients, q_tile, static_cast<uint32_t>(out_column));
      __syncthreads();
    }
  store(dk, p.dk, span, tile.first, key_column + out_column, d - out_column);
  store(dv, p.dv, span, tile.first, key_column + out_column, d - out_column);
}

template <class S>
void launch(Queue& queue, const AttentionGradients& p, size_t tiles) {
  const unsigned count = static_cast<unsigned>(tiles), heads = static_cast<unsigned>(p.heads);
  queue.launch(query_side<S>, dim3(count, heads), dim3(kThreads), S::shared_bytes(), p);
  queue.launch(key_side<S>,
               dim3(count, heads / static_cast<unsigned>(p.group), S::kHeadDim / S::kOut),
               dim3(kThreads), S::shared_bytes(), p);
}

}  // namespace

void rounded_gradients(Queue& queue, const AttentionGradients& p, size_t tiles) {
  if (p.head_dim <= 64)
    launch<RoundedShape<64, 64, 64>>(queue, p, tiles);
  else if (p.head_dim <= 80)
    launch<RoundedShape<80, 64, 80>>(queue, p, tiles);
  else if (p.head_dim <= 128)
    launch<RoundedShape<128, 32, 128>>(queue, p, tiles);
  else
    launch<RoundedShape<kLargestTensorHead, 32, kLargestTensorHead / 2>>(queue, p, tiles);
}

}  // namespace unifluid::cuda
