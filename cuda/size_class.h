// What a block of a GPU's memory takes, as the arena (cuda/arena.h) hands it out and as the core
// counts on it before it asks for one.
#pragma once

#include <algorithm>
#include <cstddef>

namespace unifluid::cuda {

// Of all blocks, in bytes.
inline constexpr size_t kBlockAlignment = 256;

// A block that was released serves requests of down to seven eighths of its size: sizes are rounded
// up to eighths of their power of two, so that those of one kind of sequence coincide.
inline size_t size_class(size_t bytes) {
  size_t step = kBlockAlignment;
  while (step * 16 <= bytes) step *= 2;
  return (std::max<size_t>(bytes, 1) + step - 1) / step * step;
}

}  // namespace unifluid::cuda
