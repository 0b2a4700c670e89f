// What tiles cost, for the choice among those of many rows: by calculation, not measured.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>

namespace unifluid::cuda {

struct TileCost {
  int rows, columns;  // of all weights together
  double products;    // multiply-adds a clock of a processor that has nothing else to wait for

  // Clocks of the busiest processor for each element of k. Operands come from the second-level
  // cache, 64 bytes a clock.
  double of(int64_t tiles, int processors) const {
    constexpr double kBytes = 64, kElementBytes = 2;
    const double load = kElementBytes * (rows + columns) / kBytes;
    const double turns = std::ceil(static_cast<double>(tiles) / processors);
    return turns * std::max(load, rows * columns / products);
  }
};

// The tiles of warpgroups on Hopper (product_warpgroups.h).
inline constexpr TileCost kWarpgroupTiles[] = {{128, 256, 1700}, {128, 128, 1500}, {64, 64, 1200}};

}  // namespace unifluid::cuda
