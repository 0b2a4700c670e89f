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

// Units 0, 1, .. in turn, of which `staying` of `units` stay, evenly between the others: unit u
// does where u * staying / units rises behind it. Slot and remainder of that division go along.
struct UnitCursor {
  int units, staying;
  int unit = 0, slot = 0, rest = 0;

  UNIFLUID_DEVICE bool stays() const { return rest + staying >= units; }
  UNIFLUID_DEVICE void advance() {
    const bool stayed = stays(), last = unit + 1 == units;
    rest += staying - (stayed ? units : 0);
    slot = last ? 0 : slot + (stayed ? 1 : 0);
    unit = last ? 0 : unit + 1;
  }
};

// kEach: the runs of depth of every warp, where that is known, with whole runs and one tile.
template <class T, int kEach = 0>
class WeightStream {
 public:
  // The block's columns [first_column, first_column + columns) of every matrix; `blocks` as
  // Worker::blocks, there before `begin`.
  UNIFLUID_DEVICE WeightStream(const StepsParams& params, SharedArena& arena,
                               const Shared<uint64_t>& blocks, int first_column, int columns)
      : p(params),
        share(params.width),
        blocks(blocks),
        columns(columns),
        slot_columns(min(params.columns, kTileColumns)),
        tiles((columns + kTileColumns - 1) / kTileColumns) {
    const int units = 2 * params.depth * tiles;
    memory = arena.take<uint32_t>(static_cast<uint32_t>(p.slots) * slot_words());
    const int piece = warp_index() * share.each * slot_columns + lane_index() / 4;
    own_words = static_cast<uint32_t>(piece * 16 + lane_index() % 4 * 4);
    own_depth = share.first * kDepth<T> + lane_index() % 4 * kSize<T>;
    own_elements = static_cast<int64_t>(first_column + lane_index() / 4) * p.width + own_depth;
    int staying = units;
    if (p.slots < units) {
      ring = p.slots >= kRing ? kRing : 0;
      staying = p.slots - ring;
    }
    reading = streamed = {units, staying};
    streamed_left = ring ? p.steps * (units - staying) : 0;
  }

  // Starts the first copies, and waits for those of units that stay.
  UNIFLUID_DEVICE void begin() {
    for (UnitCursor all = reading;;) {
      if (all.units == 0 || all.staying == 0) break;
      if (all.stays()) copy_unit(all.unit, all.slot);
      all.advance();
      if (all.unit == 0) break;
    }
    cp_async_commit();
    for (int i = 0; i < kRing; ++i) copy_next(reading.staying + i);
    cp_async_wait<kRing>();
  }

  // Units are the tiles of products 0, 1, 2, ..: mlp0 and mlp2 of the first block, the second, ..;
  // again in every step.

  // The slot of the next unit, or -1: it is to be read from global memory.
  UNIFLUID_DEVICE int acquire() const {
    if (reading.stays()) return reading.slot;
    if (ring == 0) return -1;
    cp_async_wait<kRing - 1>();
    return reading.staying + ring_at;
  }
  // This lane's piece i of column lane / 4 or lane / 4 + 8 (`high`) of the unit in `slot`.
  UNIFLUID_DEVICE Piece piece(int slot, int i, bool high) const {
    return load_piece(memory, static_cast<uint32_t>(slot) * slot_words() + own_words +
                                  static_cast<uint32_t>(i * slot_columns * 16 + (high ? 128 : 0)));
  }
  // After the last read of the unit by this thread.
  UNIFLUID_DEVICE void release() {
    const bool streams = ring > 0 && !reading.stays();
    reading.advance();
    if (!streams) return;
    copy_next(reading.staying + ring_at);
    ring_at = (ring_at + 1) % kRing;
  }

 private:
  UNIFLUID_DEVICE uint32_t slot_words() const {
    return static_cast<uint32_t>(kWarps * share.each * slot_columns * 16);
  }

  UNIFLUID_DEVICE void copy_unit(int unit, int slot) const {
    // Most blocks have one tile of columns, and a division takes long.
    const int product = kEach > 0 || tiles == 1 ? unit : unit / tiles;
    const int first = (unit - product * tiles) * kTileColumns;
    const T* from = reinterpret_cast<const T*>(blocks.load(steps_field(
                        product / 2, product % 2 ? StepsField::mlp2 : StepsField::mlp0))) +
                    own_elements + static_cast<int64_t>(first) * p.width;
    uint32_t to = static_cast<uint32_t>(slot) * slot_words() + own_words;
    const int column = first + lane_index() / 4;
    // Columns that are none are not read.
    if (column >= columns) return;
    const bool high = column + 8 < min(columns, first + kTileColumns);
    const T* from_high = from + 8 * static_cast<int64_t>(p.width);
    if constexpr (kEach > 0) {
#pragma unroll
      for (int i = 0; i < kEach; ++i) {
        const uint32_t at = to + static_cast<uint32_t>(i * slot_columns * 16);
        cp_async16(memory, at, reinterpret_cast<const uint32_t*>(from + i * kDepth<T>), true);
        if (high)
          cp_async16(memory, at + 128, reinterpret_cast<const uint32_t*>(from_high + i * kDepth<T>),
                     true);
      }
      return;
    }
    int k = own_depth;
#pragma unroll 2
    for (int i = 0; i < share.count; ++i) {
      const bool valid = k < p.width;
      cp_async16(memory, to, reinterpret_cast<const uint32_t*>(from), valid);
      if (high) cp_async16(memory, to + 128, reinterpret_cast<const uint32_t*>(from_high), valid);
      k += kDepth<T>;
      from += kDepth<T>;
      from_high += kDepth<T>;
      to += static_cast<uint32_t>(slot_columns * 16);
    }
  }
  UNIFLUID_DEVICE void copy_next(int slot) {
    if (streamed_left > 0) {
      --streamed_left;
      while (streamed.stays()) streamed.advance();
      copy_unit(streamed.unit, slot);
      streamed.advance();
    }
    cp_async_commit();  // an empty group too counts for the waits
  }

  const StepsParams& p;
  const DepthShare<T> share;
  const Shared<uint64_t> blocks;
  const int columns, slot_columns, tiles;
  Shared<uint32_t> memory;  // [slots, slot_words]
  // Of a lane's first piece: in a slot, in the depth of a matrix, in a matrix.
  uint32_t own_words;
  int own_depth;
  int64_t own_elements;
  int ring = 0;  // slots of it; `staying` are before them
  int ring_at = 0, streamed_left = 0;
  UnitCursor reading, streamed;
};

}  // namespace unifluid::cuda::steps
