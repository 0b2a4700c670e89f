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
struct WarpgroupTile : TileCost {
  bool gated;   // halves of its columns are whole pieces of 8
  bool images;  // of convolutions too
};
inline constexpr WarpgroupTile kWarpgroupTiles[] = {{{128, 256, 1700}, true, true},
                                                    {{128, 144, 1500}, true, false},
                                                    {{128, 128, 1500}, true, true},
                                                    {{64, 64, 1200}, true, true},
                                                    {{64, 40, 1000}, false, false}};

}  // namespace unifluid::cuda
