// What the kernels of attention share: spans as the device has them, tiles of queries, what a row
// sees, and how a score becomes a weight.
//
// Queries of a span for one key head are packed: query i is row i / group of the span and head
// i % group of those that share the key head. A key that was loaded serves all of them.
//
// Invariance (core/backend.h). Which kernels run for a row depends on the row's company: many rows
// go to `prefill`, few to `decode`; on Hopper many rows of one sequence go to warpgroups. They
// agree bit for bit because each step is the same arithmetic on the same numbers:
//
//  - a score is one float accumulator over the head, mma steps of 16 in ascending order
//  - keys are taken in blocks of kKeyBlock that begin at multiples of it; after each block a query
//    has the maximum of all scores so far, which no order of comparison can change
//  - weights are rounded to bfloat16; the output is one accumulator over keys in ascending order,
//    rescaled at each block; the sum of weights is a column of it, of values that are all one
//
// A key that a row does not see has weight exactly 0, and a block of which it sees nothing changes
// nothing: the maximum stays, the factor is 1, zeros are added.
#pragma once

#include <vector>

#include "cuda/device/cp_async.h"
#include "cuda/device/math.h"
#include "cuda/device/mma.h"
#include "cuda/device/warp.h"
#include "cuda/kernels.h"

namespace unifluid::cuda {

inline constexpr int kKeyBlock = 64;
// Masked scores lie far below the least maximum, so that their weight is 0 even where a query has
// seen nothing yet.
inline constexpr float kMaskedScore = -3e38f, kLeastMaximum = -1e30f;

// A span with the keys and values of its whole sequence: in its cache, in the operation's own
// tensors, or in scratch. Strides in elements; pointers are to row 0 of the sequence, key head 0.
struct AttendedSpan {
  void *keys, *values;
  int64_t key_stride, key_head_stride, value_stride, value_head_stride;
  int64_t first_row;
  int32_t rows, index, prefix_end;
  bool writes_keys, writes_values;  // this span's rows are put there first
};

// The operation's own rows, before rotation.
struct IncomingRows {
  const void *q, *k, *v;
  int64_t q_stride, k_stride, v_stride;
  const float* frequencies;  // [head_dim / 2], or null: no rotation
  int64_t first_position;
};

// Some packed queries of a span from `first` on; for `prepare` and for gradients, some of its rows.
struct AttentionTile {
  int32_t span, first;
};

struct AttentionParams {
  const void* q;  // rotated, not scaled; of `decode`, for spans whose rows are put away, `incoming`
  void* out;
  const AttendedSpan* spans;
  const AttentionTile* tiles;
  int64_t q_stride, out_stride;
  int32_t kv_heads, group, head_dim, window;
  float scale, soft_cap;
  float* scores;         // of `decode`: [tile][kv head][score_rows][score_stride]
  int64_t score_stride;  // the largest capacity, in whole blocks
  int32_t score_rows;    // the most queries of a tile
  IncomingRows incoming;
};

// Keys that a row sees, and those that any row of a tile sees: first to last.
struct Sight {
  int32_t first, last;
};

// Of the row at `index` of its sequence; both ends grow with it.
UNIFLUID_DEVICE Sight sight_at(int index, int prefix_end, int window) {
  if (index < prefix_end) return {0, prefix_end - 1};
  return {window > 0 ? max(0, index - window + 1) : 0, index};
}

UNIFLUID_DEVICE Sight sight_of(const AttentionParams& p, const AttendedSpan& span, int row) {
  return sight_at(span.index + row, span.prefix_end, p.window);
}

UNIFLUID_DEVICE Sight sight_of_rows(const AttentionParams& p, const AttendedSpan& span, int first,
                                    int last) {
  const Sight a = sight_of(p, span, first), b = sight_of(p, span, last);
  return {min(a.first, b.first), max(a.last, b.last)};
}

// ---- rotary embedding ----

// Two coordinates of a head that are rotated together: c and c + half.
template <class T>
struct Rotated {
  T first, second;
};

struct Angle {
  float sine, cosine;
};

UNIFLUID_DEVICE Angle angle_of(const IncomingRows& in, int64_t position, int c) {
  Angle a{0, 1};
  if (in.frequencies)
    sincosf(static_cast<float>(in.first_position + position) * in.frequencies[c], &a.sine,
            &a.cosine);
  return a;
}

// As they lie in a row; the middle of an odd head has no second, and cannot be rotated.
template <class T>
UNIFLUID_DEVICE Rotated<T> load_pair(const T* from, int c, int head_dim) {
  const int half = (head_dim + 1) / 2;
  const T first = from[c];
  return {first, half + c < head_dim ? from[half + c] : first};
}

// Without rotation they stay.
template <class T>
UNIFLUID_DEVICE Rotated<T> rotated(const Rotated<T>& pair, bool rotate, Angle a) {
  if (!rotate) return pair;
  const float x = to_float(pair.first), y = to_float(pair.second);
  return {from_float<T>(fmaf(-y, a.sine, x * a.cosine)),
          from_float<T>(fmaf(x, a.sine, y * a.cosine))};
}
template <class T>
UNIFLUID_DEVICE Rotated<T> rotated(const T* from, int c, int head_dim, bool rotate, Angle a) {
  return rotated(load_pair(from, c, head_dim), rotate, a);
}

template <class T>
UNIFLUID_DEVICE void store_rotated(T* to, int c, int head_dim, const Rotated<T>& pair) {
  const int half = (head_dim + 1) / 2;
  to[c] = pair.first;
  if (half + c < head_dim) to[half + c] = pair.second;
}

// Where query i of a span lies in q or in out.
UNIFLUID_DEVICE int64_t query_offset(const AttentionParams& p, const AttendedSpan& span,
                                     int kv_head, int query, int64_t stride) {
  return (span.first_row + query / p.group) * stride +
         static_cast<int64_t>(kv_head * p.group + query % p.group) * p.head_dim;
}

// ---- bfloat16: from a product to a weight ----
// Weights are powers of 2, whose hardware function needs no range reduction; scales are positive.

// What maxima are taken of: the product of q and k, or the hyperbolic tangent of it. Of that only
// the absolute error counts, some 2^-23, as it is multiplied by the cap and exponentiated; so it is
// two functions of the hardware, where tanhf is a dozen instructions more. As `soft_capped`, it
// gives NaN of infinities. P: parameters with a scale and a soft_cap.
template <class P>
UNIFLUID_DEVICE float raw_score(const P& p, float product) {
  constexpr float kTwoLog2E = 2.8853900817779268f;
  if (p.soft_cap <= 0) return product;
  const float power = power_of_two(product * (p.scale / p.soft_cap * kTwoLog2E));
  return fmaf(-2.0f, reciprocal(1.0f + power), fmaf(product, 0.0f, 1.0f));
}
template <class P>
UNIFLUID_DEVICE float exponent_scale(const P& p) {
  constexpr float kLog2E = 1.4426950408889634f;
  return (p.soft_cap > 0 ? p.soft_cap : p.scale) * kLog2E;
}
// Of a score; `offset` is the maximum times the scale. Its rounding is the same for all weights of
// a query, so that their shares do not show it.
UNIFLUID_DEVICE float weight_of(float score, float offset, float exponent_scale) {
  return power_of_two(fmaf(score, exponent_scale, -offset));
}
// What was summed under one maximum shrinks by it under a higher one: by exactly 1 under the same.
UNIFLUID_DEVICE float shrinking(float maximum, float higher, float exponent_scale) {
  return power_of_two((maximum - higher) * exponent_scale);
}

// Copies kRows rows to a tile of shared memory with rows of kColumns + 8 elements, at which 8
// consecutive rows lie in different banks for ldmatrix. Row i comes from `from(i)`, or is zeros
// where that is null; so are columns from `columns` on. Rows from `left` to before `left_end` are
// left to the caller. Arrives with the group of copies that is committed next, or at once where
// rows are not aligned to 16 bytes.
template <int kRows, int kColumns, int kThreads, bool kAligned, class From>
UNIFLUID_DEVICE void load_rows(const Shared<bf16>& to, uint32_t at, int columns, From from,
                               int left = 0, int left_end = 0) {
  constexpr uint32_t kStride = kColumns + 8;
  if constexpr (kAligned) {
    constexpr int kVectors = kColumns / 8, kAll = kRows * kVectors;
    const int thread = static_cast<int>(threadIdx.x);
#pragma unroll
    for (int step = 0; step < (kAll + kThreads - 1) / kThreads; ++step) {
      // Where it can be, a thread's columns are the same in every step.
      constexpr bool kWholeRows = kThreads % kVectors == 0;
      const int i = step * kThreads + thread;
      if (kAll % kThreads != 0 && i >= kAll) break;
      const int row = kWholeRows ? thread / kVectors + step * (kThreads / kVectors) : i / kVectors;
      const int column = (kWholeRows ? thread : i) % kVectors * 8;
      if (row >= left && row < left_end) continue;
      const bf16* source = from(row);
      const bool valid = source && column < columns;
      cp_async16(to, at + static_cast<uint32_t>(row) * kStride + static_cast<uint32_t>(column),
                 valid ? source + column : nullptr, valid);
    }
  } else {
    for (int i = static_cast<int>(threadIdx.x); i < kRows * kColumns; i += kThreads) {
      const int row = i / kColumns, column = i % kColumns;
      if (row >= left && row < left_end) continue;
      const bf16* source = from(row);
      to.store(at + static_cast<uint32_t>(row) * kStride + static_cast<uint32_t>(column),
               source && column < columns ? source[column] : bf16{0});
    }
  }
}

// Two neighbouring columns of an output row.
template <bool kAligned>
UNIFLUID_DEVICE void store_pair(bf16* row, int column, int columns, float a, float b) {
  if (column >= columns) return;
  if constexpr (kAligned) {
    *reinterpret_cast<uint32_t*>(row + column) = pack_bf16(a, b);
  } else {
    row[column] = from_float<bf16>(a);
    if (column + 1 < columns) row[column + 1] = from_float<bf16>(b);
  }
}

// The values' column of ones, whose product with weights is their sum.
UNIFLUID_DEVICE FragmentB ones() { return {{0x3f803f80u, 0x3f803f80u}}; }

// ---- host ----

// The frequencies of rotary embedding as transformers has them, and the CPU. [head_dim / 2]
std::vector<float> rope_frequencies(float theta, int64_t head_dim);

// Each takes all queries of `tiles` tiles; `p.tiles` are of kPrefillQueries and so on. Head sizes
// up to kLargestTensorHead go to the first two; `aligned`: q, out, keys and values by 16 bytes.

inline constexpr int kPrefillQueries = 64, kDecodeQueries = 16, kPlainQueries = 16;
inline constexpr int kWarpgroupQueries = 128;
inline constexpr int kLargestTensorHead = 256;

// Whether `attend_decode` takes a span, for heads that it has, and tiles of several such spans.
bool is_decoded(const AttentionSpan&, int64_t group);
std::vector<AttentionTile> decode_tiles(const AttentionSpan*, int64_t count, int64_t group);
// A span that has a cache, in it.
AttendedSpan attended_in_cache(const AttentionSpan&, int64_t head_dim);
// AttentionParams::score_stride
int64_t score_stride_of(int64_t capacity);

void attend_prefill(Queue&, const AttentionParams& p, size_t tiles, bool aligned);
// The same on Hopper, for `aligned` only; where `takes_warpgroups`.
bool takes_warpgroups(const Queue&, int64_t queries, int64_t head_dim, bool aligned);
void attend_warpgroups(Queue&, const AttentionParams& p, size_t tiles);
void attend_decode(Queue&, const AttentionParams& p, size_t tiles, bool aligned);
// Larger heads in bfloat16, of a span without a cache whose rows all see each other.
bool is_wide(const AttentionArgs&, const AttentionSpan&);
// Bytes at `scratch`: whole pieces.
size_t wide_scratch(const AttentionArgs&, const AttentionSpan&);
void attend_wide(Queue&, const AttentionArgs&, const AttentionSpan&, unsigned char* scratch);
// Any head size and type; all rows in one way.
void attend_plain(Queue&, const AttentionParams& p, size_t tiles, DType type);

}  // namespace unifluid::cuda
