// What the sampling steps of the diffusion head are cut into: tiles of products, and pieces of 16
// bytes of their operands (diffusion_steps.cu says why).
#pragma once

#include "cuda/device/grid.h"
#include "cuda/device/mma.h"
#include "cuda/device/warp.h"

namespace unifluid::cuda::steps {

// Two warps to each scheduler of a multiprocessor: enough to keep its tensor cores busy, few enough
// that partial sums of eight are quickly added.
inline constexpr int kThreads = 256, kWarps = kThreads / kWarp;
// Of mma: columns are its m, rows its n.
inline constexpr int kTileColumns = 16, kTileRows = 8;
// A team's most rows: the accumulators of four tiles, and room for their inputs.
inline constexpr int kRowTiles = 4, kMostRows = kRowTiles * kTileRows;
// Of those the most that are posted, not stored: the words are 10 KiB a row of UniFluid's head,
// which every block reads in each exchange.
inline constexpr int kMostPostedRows = kTileRows;
// Of one row or two, a kernel of their own (diffusion_pair.cu): rows, their width, and channels of
// a latent, of which a warp has those of two tokens.
inline constexpr int kMostPairRows = 2, kMostPairWidth = 1536, kMostPairChannels = 16;
// A row of partial sums: four words more than columns, so that the four row pairs of a fragment
// lie in different banks.
inline constexpr int kPartialStride = kTileColumns + 4;
// Parts of a row that is normalized, and rows of which a warp has a part at a time.
inline constexpr int kParts = 4, kMostRowsEach = 2;
// Words of the moments of all parts at a time, twice.
inline constexpr int kMoments = 2 * kWarps * kMostRowsEach * 2;
// Exchanges after which the words of posts are used again.
inline constexpr int kPostRounds = 3;
// Slots that units stream through: one is used while the other is filled.
inline constexpr int kRing = 2;

// 16 bytes of a row, in words. Four lanes side by side take a run of kDepth elements.
struct Piece {
  uint32_t word[4];
};
template <class T>
inline constexpr int kSize = Vector<T>::kSize;
template <class T>
inline constexpr int kDepth = 4 * kSize<T>;

// Where the parts of a row begin that is normalized: runs of a piece for each lane, every fourth
// one.
template <class T>
inline constexpr int kRun = kWarp * kSize<T>;
template <class T>
__host__ __device__ constexpr int run_of(int part, int i) {
  return (i * kParts + part) * kRun<T>;
}

// Where an element is among the posts of its row: the words that lanes side by side look at
// together lie side by side, two for each lane.
template <class T>
UNIFLUID_DEVICE int post_place(int k) {
  const int within = k % kRun<T>, lane = within / kSize<T>, e = within % kSize<T>;
  return k - within + (e / 2 * kWarp + lane) * 2 + e % 2;
}

// How warps divide the depth of a product, in runs of kDepth.
template <class T>
struct DepthShare {
  int all;    // runs
  int each;   // of a warp at most
  int first;  // this warp's
  int count;

  UNIFLUID_DEVICE explicit DepthShare(int width)
      : all((width + kDepth<T> - 1) / kDepth<T>),
        each((all + kWarps - 1) / kWarps),
        first(warp_index() * each),
        count(max(0, min(each, all - first))) {}
};

template <class T>
UNIFLUID_DEVICE float element(const Piece& piece, int i) {
  if constexpr (sizeof(T) == 4) return __uint_as_float(piece.word[i]);
  return __uint_as_float(i % 2 ? piece.word[i / 2] & 0xffff0000u : piece.word[i / 2] << 16);
}

template <class T>
UNIFLUID_DEVICE Piece piece_of(const float (&values)[kSize<T>]) {
  Piece piece;
  for (int i = 0; i < 4; ++i) {
    if constexpr (sizeof(T) == 4)
      piece.word[i] = __float_as_uint(values[i]);
    else
      piece.word[i] = pack_bf16(values[2 * i], values[2 * i + 1]);
  }
  return piece;
}

UNIFLUID_DEVICE Piece piece_of(uint4 raw) { return {{raw.x, raw.y, raw.z, raw.w}}; }

UNIFLUID_DEVICE Piece load_piece(const Shared<uint32_t>& from, uint32_t index) {
  const Vector<uint32_t> v = from.load_vector(index);
  Piece piece;
  for (int i = 0; i < 4; ++i) piece.word[i] = __float_as_uint(v.value[i]);
  return piece;
}
UNIFLUID_DEVICE void store_piece(const Shared<uint32_t>& to, uint32_t index, const Piece& piece) {
  Vector<uint32_t> v;
  for (int i = 0; i < 4; ++i) v.value[i] = __uint_as_float(piece.word[i]);
  to.store_vector(index, v);
}

// Elements k .. of a row of `width` that nobody writes; zeros behind its end.
template <class T>
UNIFLUID_DEVICE Piece read_piece(const T* row, int k, int width, bool aligned) {
  if (k >= width) return {};
  if (aligned) return piece_of(load_constant(reinterpret_cast<const uint4*>(row + k)));
  float values[kSize<T>];
  for (int i = 0; i < kSize<T>; ++i) values[i] = k + i < width ? to_float(row[k + i]) : 0.0f;
  return piece_of<T>(values);
}

// What a lane adds up: 16 columns by 8 rows of a product, over the depths of its warp. Of the rows
// only the first `rows` count; a piece of inputs lies at `row(r)`, r below 8.
template <class T>
class Accumulator;

template <>
class Accumulator<bf16> {
 public:
  // low, high: the lane's pieces of columns g and g + 8
  template <class Row>
  UNIFLUID_DEVICE void add(const Piece& low, const Piece& high, const Shared<uint32_t>& x, int rows,
                           Row row) {
    // Behind the last row the last once more: its results are nobody's.
    add(low, high, load_piece(x, row(min(lane_index() / 4, rows - 1))));
  }
  // in: the lane's piece of row g
  UNIFLUID_DEVICE void add(const Piece& low, const Piece& high, const Piece& in) {
    mma(sums_, {{low.word[0], high.word[0], low.word[1], high.word[1]}},
        {{in.word[0], in.word[1]}});
    mma(sums_, {{low.word[2], high.word[2], low.word[3], high.word[3]}},
        {{in.word[2], in.word[3]}});
  }
  // store(column, row, sum), each by one lane
  template <class Store>
  UNIFLUID_DEVICE void finish(int rows, Store store) {
    const int g = lane_index() / 4, t = lane_index() % 4;
    for (int i = 0; i < 4; ++i)
      if (2 * t + i % 2 < rows) store(g + i / 2 * 8, 2 * t + i % 2, sums_.x[i]);
  }

 private:
  FragmentC sums_{};
};

template <>
class Accumulator<float> {
 public:
  template <class Row>
  UNIFLUID_DEVICE void add(const Piece& low, const Piece& high, const Shared<uint32_t>& x, int rows,
                           Row row) {
#pragma unroll
    for (int r = 0; r < kTileRows; ++r) {
      if (r >= rows) break;
      const Piece in = load_piece(x, row(r));
      for (int i = 0; i < 4; ++i) {
        low_[r] = fmaf(element<float>(low, i), element<float>(in, i), low_[r]);
        high_[r] = fmaf(element<float>(high, i), element<float>(in, i), high_[r]);
      }
    }
  }
  template <class Store>
  UNIFLUID_DEVICE void finish(int rows, Store store) {
    const int g = lane_index() / 4, t = lane_index() % 4;
#pragma unroll
    for (int r = 0; r < kTileRows; ++r) {
      if (r >= rows) break;
      float low = low_[r], high = high_[r];
      for (int other = 1; other < 4; other *= 2) {
        low += __shfl_xor_sync(kAllLanes, low, other);
        high += __shfl_xor_sync(kAllLanes, high, other);
      }
      if (r / 2 != t) continue;
      store(g, r, low);
      store(g + 8, r, high);
    }
  }

 private:
  float low_[kTileRows] = {}, high_[kTileRows] = {};
};

// Words of a row of inputs in shared memory: the rows g and g + 1, of which eight lanes read 64
// bytes each at once, lie in different banks.
__host__ __device__ constexpr int input_stride(int words) {
  return words % 32 ? words : words + 16;
}

}  // namespace unifluid::cuda::steps
