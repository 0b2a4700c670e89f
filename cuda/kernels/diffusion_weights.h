// The parts of the square matrices that one block of the diffusion head's sampling steps multiplies
// by, in the order in which it needs them (diffusion_steps.cu says why).
//
// A unit is a tile of the block's columns of one matrix. A lane copies just what it reads itself,
// so that waiting for its own copies is enough.
#pragma once

#include "cuda/device/cp_async.h"
#include "cuda/kernels/diffusion_steps.h"
#include "cuda/kernels/diffusion_tile.h"

namespace unifluid::cuda::steps {

template <class T>
class WeightStream {
 public:
  // The block's columns [first_column, first_column + columns) of every matrix.
  UNIFLUID_DEVICE WeightStream(const StepsParams& params, SharedArena& arena, int first_column,
                               int columns)
      : p(params),
        share(params.width),
        first_column(first_column),
        columns(columns),
        slot_columns(min(params.columns, kTileColumns)),
        tiles((columns + kTileColumns - 1) / kTileColumns),
        units(2 * params.depth * tiles) {
    memory = arena.take<uint32_t>(static_cast<uint32_t>(p.slots) * slot_words());
    if (p.slots >= units) {
      staying = units;
    } else {
      ring = p.slots >= kRing ? kRing : 0;
      staying = p.slots - ring;
    }
    streamed_left = ring ? p.steps * (units - staying) : 0;
  }

  // Starts the first copies, and waits for those of units that stay.
  UNIFLUID_DEVICE void begin() {
    for (int unit = 0; unit < units && staying > 0; ++unit)
      if (stays(unit)) copy_unit(unit, staying_before(unit));
    cp_async_commit();
    for (int i = 0; i < kRing; ++i) copy_next(staying + i);
    cp_async_wait<kRing>();
  }

  // The unit of a tile of product 0, 1, 2, ..: mlp0 and mlp2 of the first block, the second, ..
  UNIFLUID_DEVICE int unit_of(int product, int tile) const { return product * tiles + tile; }

  // The slot of a unit whose turn it is, or -1: it is to be read from global memory.
  UNIFLUID_DEVICE int acquire(int unit) const {
    if (stays(unit)) return staying_before(unit);
    if (ring == 0) return -1;
    cp_async_wait<kRing - 1>();
    return staying + ring_at;
  }
  // This lane's piece i of a column of the unit in `slot`.
  UNIFLUID_DEVICE Piece piece(int slot, int i, int column) const {
    return load_piece(memory, index_of(slot, i, column));
  }
  // After the last read of the unit by this thread.
  UNIFLUID_DEVICE void release(int unit) {
    if (ring == 0 || stays(unit)) return;
    copy_next(staying + ring_at);
    ring_at = (ring_at + 1) % kRing;
  }

 private:
  UNIFLUID_DEVICE uint32_t slot_words() const {
    return static_cast<uint32_t>(kWarps * share.each * slot_columns * 16);
  }
  UNIFLUID_DEVICE uint32_t index_of(int slot, int i, int column) const {
    const int piece = (warp_index() * share.each + i) * slot_columns + column;
    return static_cast<uint32_t>(slot) * slot_words() +
           static_cast<uint32_t>(piece * 16 + lane_index() % 4 * 4);
  }
  // How many of the units before `unit` stay.
  UNIFLUID_DEVICE int staying_before(int unit) const { return unit * staying / units; }
  UNIFLUID_DEVICE bool stays(int unit) const {
    return staying_before(unit + 1) > staying_before(unit);
  }

  UNIFLUID_DEVICE void copy_unit(int unit, int slot) const {
    const int product = unit / tiles, first = unit % tiles * kTileColumns;
    const StepsBlock& block = p.blocks[product / 2];
    const T* weight = static_cast<const T*>(product % 2 ? block.mlp2 : block.mlp0);
    for (int i = 0; i < share.count; ++i) {
      const int k = (share.first + i) * kDepth<T> + lane_index() % 4 * kSize<T>;
      for (int column = lane_index() / 4; column < slot_columns; column += 8) {
        const bool valid = first + column < columns && k < p.width;
        const T* from = weight + static_cast<int64_t>(first_column + first + column) * p.width + k;
        cp_async16(memory, index_of(slot, i, column),
                   reinterpret_cast<const uint32_t*>(valid ? from : weight), valid);
      }
    }
  }
  UNIFLUID_DEVICE void copy_next(int slot) {
    if (streamed_left > 0) {
      --streamed_left;
      while (stays(next_streamed)) next_streamed = (next_streamed + 1) % units;
      copy_unit(next_streamed, slot);
      next_streamed = (next_streamed + 1) % units;
    }
    cp_async_commit();  // an empty group too counts for the waits
  }

  const StepsParams& p;
  const DepthShare<T> share;
  const int first_column, columns;
  const int slot_columns, tiles, units;
  Shared<uint32_t> memory;    // [slots, slot_words]
  int staying = 0, ring = 0;  // slots of either kind
  int ring_at = 0, next_streamed = 0, streamed_left = 0;
};

}  // namespace unifluid::cuda::steps
