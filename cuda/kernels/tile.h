// A block's tile of a bfloat16 matrix product x w^T on tensor cores: its shape, its way through
// shared memory, and the products of a stage. Kernels say how their operands come there (rows of a
// matrix, windows of an image) and what becomes of the sums.
//
// An output is one float32 accumulator over k in ascending steps of 16, whatever the tile. Rows in
// shared memory are 8 elements longer than the tile is deep, so that the 8 rows an ldmatrix reads
// lie in different banks.
#pragma once

#include "cuda/device/cp_async.h"
#include "cuda/device/dependence.h"
#include "cuda/device/grid.h"
#include "cuda/device/mma.h"
#include "cuda/device/warp.h"

namespace unifluid::cuda {

template <int kRows_, int kColumns_, int kDepth_, int kWarpRows_, int kWarpColumns_, int kStages_>
struct Tile {
  static constexpr int kRows = kRows_, kColumns = kColumns_, kDepth = kDepth_;
  static constexpr int kWarpRows = kWarpRows_, kWarpColumns = kWarpColumns_, kStages = kStages_;
  static constexpr int kThreads = kWarpRows * kWarpColumns * kWarp;
  static constexpr int kStride = kDepth + 8;
  // elements of a stage, of x and of one matrix of weights
  static constexpr uint32_t kTileX = kRows * kStride, kTileW = kColumns * kStride;
  // m16 and n8 pieces of a warp
  static constexpr int kPiecesM = kRows / kWarpRows / 16, kPiecesN = kColumns / kWarpColumns / 8;
  static_assert(kPiecesM >= 1 && (kPiecesN == 1 || kPiecesN % 2 == 0) && kDepth % 32 == 0);

  static size_t shared_bytes(int matrices) {
    return SharedBytes{}
        .template take<bf16>(kStages * kTileX)
        .template take<bf16>(static_cast<size_t>(kStages * matrices) * kTileW)
        .used;
  }

  // Where in the tile this warp's pieces begin, and this thread's element `e` of a piece's sums.
  UNIFLUID_DEVICE static int warp_row() { return warp_index() / kWarpColumns * kPiecesM * 16; }
  UNIFLUID_DEVICE static int warp_column() { return warp_index() % kWarpColumns * kPiecesN * 8; }
  UNIFLUID_DEVICE static int row_of(int i, int e) {
    return warp_row() + 16 * i + lane_index() / 4 + 8 * (e / 2);
  }
  UNIFLUID_DEVICE static int column_of(int j, int e) {
    return warp_column() + 8 * j + lane_index() % 4 * 2 + e % 2;
  }
};

// Copies kRows rows of a matrix from `first_row` on, T::kDepth elements further at each step.
// Behind k they are zeros, and so are rows behind the matrix's last: these at a stage's first use,
// and they stay.
//
// A thread has one column and every kAtOnce-th row. Where few rows are multiplied this is most of
// what the kernel does besides waiting: all that a copy needs at each step is one addition.
template <class T, int kRows, bool kAligned>
class TileRows {
 public:
  UNIFLUID_DEVICE TileRows(const void* matrix, int64_t stride, int first_row, int all_rows, int k)
      : from_(static_cast<const bf16*>(matrix) + (first_row + row()) * stride + column()),
        stride_(stride),
        k_(k),
        left_(min(all_rows - first_row, kRows) - row()) {}

  // To the stage at `at`; steps in ascending order from 0.
  UNIFLUID_DEVICE void load(const Shared<bf16>& to, uint32_t at, int step) {
    const bool inside = step * T::kDepth + column() < k_;
    const bf16* from = from_;
    at += static_cast<uint32_t>(row() * T::kStride + column());
#pragma unroll
    for (int i = 0; i < (kRows + kAtOnce - 1) / kAtOnce; ++i) {
      const bool there = i * kAtOnce < left_;
      const bool fits = kRows % kAtOnce == 0 || row() + i * kAtOnce < kRows;
      if (there || (fits && step < T::kStages))
        cp_async16(to, at + static_cast<uint32_t>(i * kAtOnce * T::kStride), from, inside && there);
      from += kAtOnce * stride_;
    }
    from_ += T::kDepth;
  }

  // Somebody else copies so many steps.
  UNIFLUID_DEVICE void skip(int steps) { from_ += steps * T::kDepth; }

  // Asks for what comes after the steps so far, `columns` of each row at most, in the second-level
  // cache.
  UNIFLUID_DEVICE void prefetch(int steps, int columns) const {
    columns = min(columns, k_ - steps * T::kDepth);
    if (column() > 0 || columns <= 0) return;
#pragma unroll
    for (int i = 0; i < (kRows + kAtOnce - 1) / kAtOnce; ++i)
      if (i * kAtOnce < left_)
        prefetch_l2(from_ + i * kAtOnce * stride_, static_cast<uint32_t>(columns) * sizeof(bf16));
  }

 private:
  static constexpr int kRowThreads = T::kDepth / 8, kAtOnce = T::kThreads / kRowThreads;
  static_assert(T::kThreads % kRowThreads == 0);

  // Of the threads that copy, which may lie behind others (stream.h).
  UNIFLUID_DEVICE static int thread() { return static_cast<int>(threadIdx.x) % T::kThreads; }
  UNIFLUID_DEVICE static int row() { return thread() / kRowThreads; }
  UNIFLUID_DEVICE static int column() { return thread() % kRowThreads * 8; }

  const bf16* from_;
  const int64_t stride_;
  const int k_, left_;
};

// The same where rows cannot be copied in vectors: element by element.
template <class T, int kRows>
class TileRows<T, kRows, false> {
 public:
  UNIFLUID_DEVICE TileRows(const void* matrix, int64_t stride, int first_row, int all_rows, int k)
      : from_(static_cast<const bf16*>(matrix) + first_row * stride),
        stride_(stride),
        k_(k),
        rows_(all_rows - first_row) {}

  UNIFLUID_DEVICE void load(const Shared<bf16>& to, uint32_t at, int step) const {
    const int rows = step < T::kStages ? kRows : min(rows_, kRows);
    for (int i = static_cast<int>(threadIdx.x); i < rows * T::kDepth; i += T::kThreads) {
      const int row = i / T::kDepth, column = i % T::kDepth, k = step * T::kDepth + column;
      to.store(at + static_cast<uint32_t>(row * T::kStride + column),
               row < rows_ && k < k_ ? from_[row * stride_ + k] : bf16{0});
    }
  }

 private:
  const bf16* const from_;
  const int64_t stride_;
  const int k_, rows_;
};

// Runs the stages of a product: load_x(step, slot) and load_weights(step, slot) start the copies of
// a step's operands to stage `slot`, kStages - 1 steps before multiply(slot) takes them. Plain
// stores to shared memory do in place of copies. The first weights are on their way before the
// inputs are there (cuda/device/dependence.h).
template <class T, class LoadX, class LoadWeights, class Multiply>
UNIFLUID_DEVICE void each_stage(int steps, LoadX load_x, LoadWeights load_weights,
                                Multiply multiply) {
  for (int step = 0; step < T::kStages - 1 && step < steps; ++step)
    load_weights(step, static_cast<uint32_t>(step));
  wait_for_inputs();
  for (int step = 0; step < T::kStages - 1; ++step) {
    if (step < steps) load_x(step, static_cast<uint32_t>(step));
    cp_async_commit();
  }
  for (int step = 0; step < steps; ++step) {
    cp_async_wait<T::kStages - 2>();
    __syncthreads();  // the stage has come, and the one before is free
    const int next = step + T::kStages - 1;
    if (next < steps) {
      const uint32_t slot = static_cast<uint32_t>(next % T::kStages);
      load_weights(next, slot);
      load_x(next, slot);
    }
    cp_async_commit();
    multiply(static_cast<uint32_t>(step % T::kStages));
  }
}

// Bytes of weights that a block of a stream asks for behind those it copies, before it waits for
// its inputs: by calculation what memory brings in the two microseconds of a norm. Where launches
// do not begin early nothing is waited for, and these come at once.
inline constexpr int kWeightsAhead = 32 << 10;
template <class T, int kMatrices>
inline constexpr int kColumnsAhead =
    kWeightsAhead / (16 * kMatrices * T::kColumns) * 16 / static_cast<int>(sizeof(bf16));

// This warp's part of sums += x w^T for kMatrices weights whose tiles lie one after another: the
// stage at `x_at` of `x_tiles` and at `w_at` of `w_tiles`.
template <class T, int kMatrices>
UNIFLUID_DEVICE void multiply_stage(FragmentC (&sums)[kMatrices][T::kPiecesM][T::kPiecesN],
                                    const Shared<bf16>& x_tiles, uint32_t x_at,
                                    const Shared<bf16>& w_tiles, uint32_t w_at) {
  const int lane = lane_index(), row = T::warp_row(), column = T::warp_column();
#pragma unroll
  for (int k = 0; k < T::kDepth; k += 32) {
    FragmentA x[2][T::kPiecesM];
#pragma unroll
    for (int half = 0; half < 2; ++half)
#pragma unroll
      for (int i = 0; i < T::kPiecesM; ++i)
        ldmatrix_x4<false>(x[half][i].x, x_tiles,
                           x_at + static_cast<uint32_t>((row + 16 * i + lane % 16) * T::kStride +
                                                        k + 16 * half + lane / 16 * 8));
#pragma unroll
    for (int w = 0; w < kMatrices; ++w) {
      const uint32_t base = w_at + static_cast<uint32_t>(w) * T::kTileW;
      if constexpr (T::kPiecesN == 1) {
        // One piece of 8 columns: its four 8x8 matrices lie along k.
        uint32_t b[4];
        ldmatrix_x4<false>(
            b, w_tiles,
            base + static_cast<uint32_t>((column + lane % 8) * T::kStride + k + lane / 8 * 8));
#pragma unroll
        for (int i = 0; i < T::kPiecesM; ++i) {
          mma(sums[w][i][0], x[0][i], FragmentB{{b[0], b[1]}});
          mma(sums[w][i][0], x[1][i], FragmentB{{b[2], b[3]}});
        }
      } else {
#pragma unroll
        for (int half = 0; half < 2; ++half)
#pragma unroll
          for (int j = 0; j < T::kPiecesN; j += 2) {
            uint32_t b[4];
            ldmatrix_x4<false>(b, w_tiles,
                               base + static_cast<uint32_t>(
                                          (column + 8 * j + lane / 16 * 8 + lane % 8) * T::kStride +
                                          k + 16 * half + lane / 8 % 2 * 8));
#pragma unroll
            for (int i = 0; i < T::kPiecesM; ++i) {
              mma(sums[w][i][j], x[half][i], FragmentB{{b[0], b[1]}});
              mma(sums[w][i][j + 1], x[half][i], FragmentB{{b[2], b[3]}});
            }
          }
      }
    }
  }
}

}  // namespace unifluid::cuda
