// What a block of a GPU's memory takes, as the driver and the arena (cuda/arena.h) hand it out and
// as the core counts on it before it asks for one. lib/memory.ts follows the same rules.
#pragma once

#include <algorithm>
#include <cstddef>

namespace unifluid::cuda {

// Of all blocks, in bytes.
inline constexpr size_t kBlockAlignment = 256;

inline size_t rounded_up(size_t bytes, size_t unit) { return (bytes + unit - 1) / unit * unit; }

// What cudaMalloc takes of the device: whole pages of 2 MiB, of which blocks of up to half a page
// share one.
inline size_t device_bytes(size_t bytes) {
  constexpr size_t kPage = size_t{2} << 20;
  return rounded_up(std::max<size_t>(bytes, 1), bytes > kPage / 2 ? kPage : kBlockAlignment);
}

// A block that was released serves smaller requests of the same class: sizes are rounded up to
// eighths of their power of two and to what the device gives, so that those of one kind of sequence
// coincide.
inline size_t size_class(size_t bytes) {
  size_t step = kBlockAlignment;
  while (step * 16 <= bytes) step *= 2;
  return device_bytes(rounded_up(std::max<size_t>(bytes, 1), step));
}

}  // namespace unifluid::cuda
