#include "core/prefill.h"

namespace unifluid {

int64_t largest_step_of(std::vector<PendingRows> prefixes, int64_t others) {
  int64_t most = others + static_cast<int64_t>(prefixes.size());
  size_t done = 0;  // those before are written by now, a row each
  while (done < prefixes.size()) {
    int64_t rows = others + static_cast<int64_t>(done);
    int64_t budget = kPrefillRows;
    for (size_t i = done; i < prefixes.size() && budget > 0; ++i) {
      const int64_t count = prefixes[i].next(budget);
      prefixes[i].run(count);
      rows += count;
      budget -= count;
    }
    while (done < prefixes.size() && prefixes[done].left == 0) ++done;
    most = std::max(most, rows);
  }
  return most;
}

}  // namespace unifluid
