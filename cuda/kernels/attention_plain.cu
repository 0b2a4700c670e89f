// Attention without tensor cores: float32, for parity with the CPU, and what is left of heads that
// are larger than those of a decoder.
//
// A block has 16 packed queries, its 4 warps 4 each: a query's maximum, sum and weights stay within
// a warp. Heads of any size pass through shared memory in slices; only the sums of values have a
// place there for the whole head. One tile for every call makes rows independent of their company.
#include <string>

#include "core/error.h"
#include "cuda/device/math.h"
#include "cuda/dispatch.h"
#include "cuda/kernels/attention.h"

namespace unifluid::cuda {
namespace {

constexpr int kWarps = 4, kThreads = kWarps * kWarp;
constexpr int kWarpQueries = kPlainQueries / kWarps;
// Elements of the head that queries and keys have in shared memory at once; one more in a row, so
// that a warp's 32 keys lie in different banks.
constexpr int kSlice = 32, kSliceStride = kSlice + 1;
// Columns of values there at once: two a lane.
constexpr int kColumns = 2 * kWarp;

size_t shared_bytes(int64_t head_dim) {
  return SharedBytes{}
      .take<float>(static_cast<size_t>(kPlainQueries * head_dim))
      .take<float>(kPlainQueries * kSliceStride)
      .take<float>(kKeyBlock * kColumns)
      .take<float>(kPlainQueries * kKeyBlock)
      .used;
}

template <class T>
__global__ void __launch_bounds__(kThreads) plain(AttentionParams p) {
  static_assert(kKeyBlock * kSliceStride <= kKeyBlock * kColumns);
  SharedArena arena;
  const auto sums = arena.take<float>(static_cast<uint32_t>(kPlainQueries * p.head_dim));
  const auto q_slice = arena.take<float>(kPlainQueries * kSliceStride);
  const auto slice = arena.take<float>(kKeyBlock * kColumns);  // of keys, then of values
  const auto weights = arena.take<float>(kPlainQueries * kKeyBlock);
  const AttentionTile tile = p.tiles[blockIdx.x];
  const AttendedSpan span = p.spans[tile.span];
  const int kv_head = static_cast<int>(blockIdx.y);
  const int queries = min(kPlainQueries, span.rows * p.group - tile.first);
  const Sight seen =
      sight_of_rows(p, span, tile.first / p.group, (tile.first + queries - 1) / p.group);
  const int d = p.head_dim, thread = static_cast<int>(threadIdx.x), lane = lane_index();
  const int first_query = warp_index() * kWarpQueries;
  const T* keys = static_cast<const T*>(span.keys) + kv_head * span.key_head_stride;
  const T* values = static_cast<const T*>(span.values) + kv_head * span.value_head_stride;

  Sight sights[kWarpQueries];
  float maximum[kWarpQueries], total[kWarpQueries];
  for (int i = 0; i < kWarpQueries; ++i) {
    const int query = first_query + i;
    sights[i] = query < queries ? sight_of(p, span, (tile.first + query) / p.group) : Sight{0, -1};
    maximum[i] = kLeastMaximum;
    total[i] = 0;
    // A thread's own columns: no barrier is needed.
    for (int c = lane; c < d; c += kWarp) sums.store(static_cast<uint32_t>(query * d + c), 0.0f);
  }

  for (int block = seen.first / kKeyBlock * kKeyBlock; block <= seen.last; block += kKeyBlock) {
    // Scores of 4 queries and two keys, lane and lane + 32.
    float scores[kWarpQueries][2] = {};
    for (int first = 0; first < d; first += kSlice) {
      __syncthreads();  // the slice before is free
      for (int i = thread; i < (kPlainQueries + kKeyBlock) * kSlice; i += kThreads) {
        const int row = i / kSlice, c = i % kSlice, key = block + row - kPlainQueries;
        float v = 0;
        if (row < kPlainQueries) {
          if (row < queries && first + c < d)
            v = to_float(static_cast<const T*>(
                p.q)[query_offset(p, span, kv_head, tile.first + row, p.q_stride) + first + c]);
          q_slice.store(static_cast<uint32_t>(row * kSliceStride + c), v);
        } else {
          if (key <= seen.last && first + c < d)
            v = to_float(keys[key * span.key_stride + first + c]);
          slice.store(static_cast<uint32_t>((row - kPlainQueries) * kSliceStride + c), v);
        }
      }
      __syncthreads();
      const int depth = min(kSlice, d - first);
      for (int c = 0; c < depth; ++c) {
        float q[kWarpQueries];
        for (int i = 0; i < kWarpQueries; ++i)
          q[i] = q_slice.load(static_cast<uint32_t>((first_query + i) * kSliceStride + c));
        for (int e = 0; e < 2; ++e) {
          const float k = slice.load(static_cast<uint32_t>((lane + kWarp * e) * kSliceStride + c));
          for (int i = 0; i < kWarpQueries; ++i) scores[i][e] = fmaf(q[i], k, scores[i][e]);
        }
      }
    }

    float factor[kWarpQueries];
    for (int i = 0; i < kWarpQueries; ++i) {
      for (int e = 0; e < 2; ++e) {
        const int key = block + lane + kWarp * e;
        float score = scores[i][e] * p.scale;
        if (p.soft_cap > 0) score = soft_capped(score, p.soft_cap);
        const bool sees = key >= sights[i].first && key <= sights[i].last;
        scores[i][e] = sees ? score : kMaskedScore;
      }
      const float most = fmaxf(maximum[i], warp_max(fmaxf(scores[i][0], scores[i][1])));
      float weight[2];
      for (int e = 0; e < 2; ++e) {
        weight[e] = expf(scores[i][e] - most);
        weights.store(static_cast<uint32_t>((first_query + i) * kKeyBlock + lane + kWarp * e),
                      weight[e]);
      }
      factor[i] = expf(maximum[i] - most);
      total[i] = fmaf(total[i], factor[i], warp_sum(weight[0] + weight[1]));
      maximum[i] = most;
    }

    for (int first = 0; first < d; first += kColumns) {
      __syncthreads();  // the slice before is free
      for (int i = thread; i < kKeyBlock * kColumns; i += kThreads) {
        const int key = block + i / kColumns, c = first + i % kColumns;
        slice.store(static_cast<uint32_t>(i), key <= seen.last && c < d
                                                  ? to_float(values[key * span.value_stride + c])
                                                  : 0.0f);
      }
      __syncthreads();
      float sum[kWarpQueries][2];
      for (int i = 0; i < kWarpQueries; ++i)
        for (int e = 0; e < 2; ++e) {
          const int c = first + lane + kWarp * e;
          sum[i][e] =
              c < d ? sums.load(static_cast<uint32_t>((first_query + i) * d + c)) * factor[i] : 0;
        }
      for (int key = 0; key < kKeyBlock; ++key) {
        float v[2];
        for (int e = 0; e < 2; ++e)
          v[e] = slice.load(static_cast<uint32_t>(key * kColumns + lane + kWarp * e));
        for (int i = 0; i < kWarpQueries; ++i) {
          const float w = weights.load(static_cast<uint32_t>((first_query + i) * kKeyBlock + key));
          for (int e = 0; e < 2; ++e) sum[i][e] = fmaf(w, v[e], sum[i][e]);
        }
      }
      for (int i = 0; i < kWarpQueries; ++i)
        for (int e = 0; e < 2; ++e) {
          const int c = first + lane + kWarp * e;
          if (c < d) sums.store(static_cast<uint32_t>((first_query + i) * d + c), sum[i][e]);
        }
    }
  }

  for (int i = 0; i < kWarpQueries; ++i) {
    const int query = first_query + i;
    if (query >= queries) continue;
    T* out =
        static_cast<T*>(p.out) + query_offset(p, span, kv_head, tile.first + query, p.out_stride);
    const float inverse = 1.0f / total[i];
    for (int c = lane; c < d; c += kWarp)
      out[c] = from_float<T>(sums.load(static_cast<uint32_t>(query * d + c)) * inverse);
  }
}

}  // namespace

void attend_plain(Queue& queue, const AttentionParams& p, size_t tiles, DType type) {
  const size_t shared = shared_bytes(p.head_dim);
  if (shared > queue.limits().shared_bytes)
    throw Error(
        error_code::kInvalidArgument,
        "expected attention heads that fit this GPU's shared memory but received a head of " +
            std::to_string(p.head_dim) + ", which takes " + std::to_string(shared) + " bytes of " +
            std::to_string(queue.limits().shared_bytes));
  with_type(type, [&](auto t) {
    queue.launch(plain<decltype(t)>,
                 dim3(static_cast<unsigned>(tiles), static_cast<unsigned>(p.kv_heads)),
                 dim3(kThreads), shared, p);
  });
}

}  // namespace unifluid::cuda
