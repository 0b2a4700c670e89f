#include "core/philox.h"

#include <cstddef>
#include <utility>

namespace unifluid {

PhiloxWords philox4x32(uint64_t seed, uint32_t c0, uint32_t c1, uint32_t c2, uint32_t c3) {
  uint32_t k0 = static_cast<uint32_t>(seed), k1 = static_cast<uint32_t>(seed >> 32);
  for (int round = 0; round < 10; ++round) {
    const uint64_t p0 = uint64_t{0xD2511F53u} * c0, p1 = uint64_t{0xCD9E8D57u} * c2;
    c0 = static_cast<uint32_t>(p1 >> 32) ^ c1 ^ k0;
    c1 = static_cast<uint32_t>(p1);
    c2 = static_cast<uint32_t>(p0 >> 32) ^ c3 ^ k1;
    c3 = static_cast<uint32_t>(p0);
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
  return {{c0, c1, c2, c3}};
}

double uniform(uint32_t word) { return ((word >> 8) + 0.5) * 0x1p-24; }

std::vector<int32_t> random_order(uint64_t seed, int32_t n, Draw use, uint32_t c1, uint32_t c2) {
  std::vector<int32_t> order(static_cast<size_t>(n));
  for (int32_t i = 0; i < n; ++i) order[i] = i;
  PhiloxWords words{};
  for (int32_t i = n - 1, draw = 0; i > 0; --i, ++draw) {
    if (draw % 4 == 0) words = philox4x32(seed, draw / 4, c1, c2, static_cast<uint32_t>(use));
    const uint64_t j = (uint64_t{words.word[draw % 4]} * static_cast<uint64_t>(i + 1)) >> 32;
    std::swap(order[i], order[j]);
  }
  return order;
}

double text_uniform(uint64_t seed, uint32_t index) {
  return uniform(philox4x32(seed, index, 0, 0, static_cast<uint32_t>(Draw::text)).word[0]);
}

}  // namespace unifluid
