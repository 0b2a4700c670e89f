// How the rows of prompts are shared out among the steps of the decoder.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

namespace unifluid {

// Rows of prefixes in one step, so that long prompts do not hold up the sequences that are running;
// a bidirectional prefix longer than this still goes at once.
inline constexpr int64_t kPrefillRows = 512;

// Rows of a prefix that are still to be run.
struct PendingRows {
  int64_t left;      // all of them
  int64_t together;  // the first, which see each other in both directions

  // Rows for the next step, when at most `budget` may run: a bidirectional part goes at once, since
  // its rows need each other's keys in every layer.
  int64_t next(int64_t budget) const { return std::min(left, std::max(together, budget)); }
  void run(int64_t rows) {
    left -= rows;
    together = std::max<int64_t>(0, together - rows);
  }
};

// Most decoder rows in any step while these prefixes are processed in order, beside `others`
// streams already past theirs (one row each).
int64_t largest_step_of(std::vector<PendingRows> prefixes, int64_t others);

}  // namespace unifluid
