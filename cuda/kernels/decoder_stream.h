// The products of a decoder's step as one stream of weights through shared memory: warps that copy
// fill a ring of slots with all matrices of all layers, one after another, and never wait for more
// than a free slot; warps that multiply take them from there. So memory keeps on bringing weights
// while inputs are computed and waited for, until the ring is full.
//
// Columns of a product are dealt to the blocks in pairs. A block takes its own in passes of some
// tiles of 8, a warp each, over the whole depth: an output is one accumulator over it, as in
// linear.cu. A slot holds all columns of a pass, so deep as there is room.
#pragma once

#include "cuda/device/cp_async.h"
#include "cuda/device/mbarrier.h"
#include "cuda/device/mma.h"
#include "cuda/device/warp.h"

namespace unifluid::cuda::step {

inline constexpr int kMostRows = 8;  // of x: half of an mma's, the others are zeros
inline constexpr int kWarps = 8, kCopyWarps = 4;
inline constexpr int kThreads = (kWarps + kCopyWarps) * kWarp;
inline constexpr int kCopyThreads = kCopyWarps * kWarp;
// The warps that multiply, and do all else but copy weights.
using Workers = FirstThreads<kWarps * kWarp>;
// Of those that copy.
UNIFLUID_DEVICE int copy_thread() { return static_cast<int>(threadIdx.x) - Workers::kCount; }

// 20 KiB, which Gemma-2-2B's 16 to 18, 30 or 32, and 2 * 24 columns of an H200's processor fill
// well.
inline constexpr uint32_t kSlotElements = 10240;
inline constexpr int kLeastSlots = 3, kMostSlotRows = 48;
// A warp's fragments are loaded for so much of the depth at a time. Slots are whole groups, with
// zeros behind a matrix's depth.
inline constexpr int kGroup = 64;

__host__ UNIFLUID_DEVICE int padded(int k) { return (k + kGroup - 1) / kGroup * kGroup; }

enum Product : int { kProjections, kOutput, kGates, kDown, kProducts };

// A block's columns of a product, and how it takes them.
struct Share {
  int32_t first, columns;
  int32_t passes, each;  // columns of a pass
  int32_t depth, k;      // of a slot, and of the matrix
};

// `matrices`: 2 where each column is one of two matrices.
UNIFLUID_DEVICE Share share_of(int columns, int k, int matrices) {
  const int pairs = columns / 2, block = static_cast<int>(blockIdx.x);
  const int blocks = static_cast<int>(gridDim.x);
  Share s{};
  s.first = block * pairs / blocks * 2;
  s.columns = (block + 1) * pairs / blocks * 2 - s.first;
  s.k = k;
  if (s.columns == 0) return s;
  const int tiles = (s.columns + 7) / 8, most = kMostSlotRows / (8 * matrices);
  s.passes = (tiles + most - 1) / most;
  s.each = (tiles + s.passes - 1) / s.passes * 8;
  const int rows = min(s.each, s.columns) * matrices, groups = padded(k) / kGroup;
  const int fit = (static_cast<int>(kSlotElements) / rows - 8) / kGroup;
  const int slots = (groups + fit - 1) / fit;
  s.depth = (groups + slots - 1) / slots * kGroup;
  return s;
}

// Where in the ring a warp is.
struct Place {
  uint32_t slot, parity;
};

class Ring {
 public:
  UNIFLUID_DEVICE Ring(SharedArena& arena, uint32_t slots)
      : weights(arena.take<bf16>(slots * kSlotElements)),
        full_(arena.take<uint64_t>(slots)),
        empty_(arena.take<uint64_t>(slots)),
        slots_(slots) {}
  static size_t bytes(size_t slots) {
    return SharedBytes{}
        .take<bf16>(slots * kSlotElements)
        .take<uint64_t>(slots)
        .take<uint64_t>(slots)
        .used;
  }

  // By one thread; a barrier of the block must follow.
  UNIFLUID_DEVICE void begin() const {
    for (uint32_t i = 0; i < slots_; ++i) {
      mbarrier_init(full_, i, kCopyWarps * kWarp);
      mbarrier_init(empty_, i, kWarps);
    }
  }
  UNIFLUID_DEVICE void advance(Place& at) const {
    if (++at.slot < slots_) return;
    at.slot = 0;
    at.parity ^= 1;
  }
  // The first of a warp that multiplies has parity 0, that of one that copies 1.
  UNIFLUID_DEVICE void wait_full(const Place& at) const {
    mbarrier_wait(full_, at.slot, at.parity);
  }
  UNIFLUID_DEVICE void wait_empty(const Place& at) const {
    mbarrier_wait(empty_, at.slot, at.parity);
  }
  // What this thread has copied is all of its part of the slot.
  UNIFLUID_DEVICE void fill(uint32_t slot) const { cp_async_arrive(full_, slot); }
  // By each warp that multiplies.
  UNIFLUID_DEVICE void release(uint32_t slot) const {
    __syncwarp();
    if (lane_index() == 0) mbarrier_arrive(empty_, slot);
  }

  const Shared<bf16> weights;

 private:
  const Shared<uint64_t> full_, empty_;
  const uint32_t slots_;
};

// Copies what the share of a product takes; `row_of(column, matrix)` is where a column lies. By all
// threads that copy. A thread has the same places in every slot of a pass: between two copies there
// are a few additions, as few warps must ask for all that memory can bring.
template <class RowOf>
UNIFLUID_DEVICE void copy_product(const Ring& ring, Place& at, const Share& s, int matrices,
                                  CachePolicy policy, RowOf row_of) {
  constexpr int kVector = 8;
  constexpr int kCopies = static_cast<int>(kSlotElements) / kVector / kCopyThreads;
  static_assert(kCopies * kVector * kCopyThreads == kSlotElements);
  const int all = padded(s.k);
#pragma unroll 1
  for (int pass = 0; pass < s.passes; ++pass) {
    const int first = pass * s.each, count = min(s.each, s.columns - first);
    const int vectors = s.depth / kVector;
    int row = copy_thread() / vectors, column = copy_thread() % vectors;
    const bf16* from[kCopies];
    uint32_t to[kCopies];
    int k[kCopies];
#pragma unroll
    for (int i = 0; i < kCopies; ++i) {
      const bool there = row < matrices * count;
      const int matrix = row < count ? 0 : matrices - 1;
      from[i] =
          row_of(s.first + first + (there ? row - matrix * count : 0), matrix) + column * kVector;
      to[i] = static_cast<uint32_t>(row * (s.depth + 8) + column * kVector);
      k[i] = there ? column * kVector : all;
      row += kCopyThreads / vectors;
      column += kCopyThreads % vectors;
      if (column >= vectors) {
        column -= vectors;
        ++row;
      }
    }
#pragma unroll 1
    for (int begin = 0; begin < s.k; begin += s.depth) {
      ring.wait_empty(at);
      const uint32_t slot = at.slot * kSlotElements;
#pragma unroll
      for (int i = 0; i < kCopies; ++i) {
        if (k[i] < all) cp_async16(ring.weights, slot + to[i], from[i], k[i] < s.k, policy);
        from[i] += s.depth;
        k[i] += s.depth;
      }
      ring.fill(at.slot);
      ring.advance(at);
    }
  }
}

// A warp's operands of a group: both halves of x's 8 rows and of its columns, in the order of k.
template <int kMatrices>
struct GroupFragments {
  uint32_t x[2][4], weights[kMatrices][2][4];

  UNIFLUID_DEVICE void load(uint32_t half, const Shared<bf16>& x_rows, uint32_t x_at,
                            const Shared<bf16>& columns, const uint32_t (&at)[kMatrices]) {
    ldmatrix_x4<false>(x[half], x_rows, x_at + half * 32);
#pragma unroll
    for (int m = 0; m < kMatrices; ++m)
      ldmatrix_x4<false>(weights[m][half], columns, at[m] + half * 32);
  }
  // A step of 16.
  UNIFLUID_DEVICE void multiply(int k, FragmentC (&sums)[kMatrices]) const {
    const int half = k / 2, in_half = k % 2 * 2;
    const FragmentA a{{x[half][in_half], 0, x[half][in_half + 1], 0}};
#pragma unroll
    for (int m = 0; m < kMatrices; ++m)
      mma(sums[m], a, FragmentB{{weights[m][half][in_half], weights[m][half][in_half + 1]}});
  }
};

// This warp's tile of a pass of `count` columns, which begins with column `tile` of the pass: the
// sums of `rows` rows of x. Nothing but products stands in the chain of products: the fragments of
// a group are fetched while the one before is multiplied, of the next slot too.
template <int kMatrices>
UNIFLUID_DEVICE void multiply_pass(const Ring& ring, Place& at, const Share& s, int count, int tile,
                                   const Shared<bf16>& x, uint32_t x_stride, int rows,
                                   FragmentC (&sums)[kMatrices]) {
  using Fragments = GroupFragments<kMatrices>;
  const int lane = lane_index(), stride = s.depth + 8;
  // Rows and columns that are not there are others again: nobody reads their sums.
  uint32_t x_at = static_cast<uint32_t>(min(lane % 8, rows - 1)) * x_stride +
                  static_cast<uint32_t>(lane / 8 * 8);
  uint32_t in_slot[kMatrices], columns[kMatrices];
#pragma unroll
  for (int m = 0; m < kMatrices; ++m)
    in_slot[m] = static_cast<uint32_t>((m * count + min(tile + lane % 8, count - 1)) * stride +
                                       lane / 8 * 8);
  const auto enter_slot = [&] {
    ring.wait_full(at);
#pragma unroll
    for (int m = 0; m < kMatrices; ++m) columns[m] = at.slot * kSlotElements + in_slot[m];
  };
  int left = padded(s.k) / kGroup, left_in_slot = s.depth / kGroup;
  enter_slot();
  // Two sets take turns.
  Fragments first, second;
  for (uint32_t half = 0; half < 2; ++half) first.load(half, x, x_at, ring.weights, columns);
  const auto advance = [&](const Fragments& now, Fragments& then) {
    now.multiply(0, sums);
    const uint32_t slot = at.slot;
    const bool leaves = --left_in_slot == 0;
    x_at += kGroup;
    if (leaves) {
      left_in_slot = s.depth / kGroup;
      ring.advance(at);
      enter_slot();
    } else {
#pragma unroll
      for (int m = 0; m < kMatrices; ++m) columns[m] += kGroup;
    }
    then.load(0, x, x_at, ring.weights, columns);
    now.multiply(1, sums);
    then.load(1, x, x_at, ring.weights, columns);
    now.multiply(2, sums);
    now.multiply(3, sums);
    if (leaves) ring.release(slot);
  };
  const auto multiply_last = [&](const Fragments& now) {
#pragma unroll
    for (int k = 0; k < kGroup / 16; ++k) now.multiply(k, sums);
  };
  for (;;) {
    if (--left == 0) {
      multiply_last(first);
      break;
    }
    advance(first, second);
    if (--left == 0) {
      multiply_last(second);
      break;
    }
    advance(second, first);
  }
  ring.release(at.slot);
  ring.advance(at);
}

// The share of a product of `rows` rows of x, whose depth is padded with zeros:
// finish(column, sums), by warps, for each pair of columns of a lane: elements 0 and 1 of the sums
// are those of row lane / 4. All warps that multiply come by; one without a tile frees slots.
template <int kMatrices, class Finish>
UNIFLUID_DEVICE void multiply_product(const Ring& ring, Place& at, const Share& s,
                                      const Shared<bf16>& x, uint32_t x_stride, int rows,
                                      Finish finish) {
  const int lane = lane_index(), tile = warp_index() * 8;
  for (int pass = 0; pass < s.passes; ++pass) {
    const int first = pass * s.each, count = min(s.each, s.columns - first);
    if (tile >= count) {
      for (int begin = 0; begin < s.k; begin += s.depth) {
        ring.wait_full(at);
        ring.release(at.slot);
        ring.advance(at);
      }
      continue;
    }
    FragmentC sums[kMatrices] = {};
    multiply_pass<kMatrices>(ring, at, s, count, tile, x, x_stride, rows, sums);
    const int column = tile + lane % 4 * 2;
    if (lane / 4 < rows && column < count) finish(s.first + first + column, sums);
  }
}

}  // namespace unifluid::cuda::step
