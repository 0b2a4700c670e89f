// Philox4x32-10 and normals by Box-Muller in float64 (spec section 7), as core/philox.h and
// core/noise.h have them: the same draws under the same names.
#pragma once

#include "core/philox.h"
#include "cuda/device/platform.h"

namespace unifluid::cuda {

UNIFLUID_DEVICE void philox(uint64_t seed, uint32_t (&c)[4]) {
  uint32_t k0 = static_cast<uint32_t>(seed), k1 = static_cast<uint32_t>(seed >> 32);
  for (int round = 0; round < 10; ++round) {
    const uint64_t p0 = uint64_t{0xD2511F53u} * c[0], p1 = uint64_t{0xCD9E8D57u} * c[2];
    const uint32_t n0 = static_cast<uint32_t>(p1 >> 32) ^ c[1] ^ k0;
    const uint32_t n2 = static_cast<uint32_t>(p0 >> 32) ^ c[3] ^ k1;
    c[1] = static_cast<uint32_t>(p1);
    c[3] = static_cast<uint32_t>(p0);
    c[0] = n0;
    c[2] = n2;
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
}

UNIFLUID_DEVICE double uniform_of(uint32_t word) { return ((word >> 8) + 0.5) / 16777216.0; }

// The normals of channels 4 * quad .. 4 * quad + 3 of the draw named by (cell, step, use).
UNIFLUID_DEVICE void normals(uint64_t seed, uint32_t quad, uint32_t cell, uint32_t step, Draw use,
                             float (&out)[4]) {
  uint32_t words[4] = {quad, cell, step, static_cast<uint32_t>(use)};
  philox(seed, words);
  for (int pair = 0; pair < 4; pair += 2) {
    const double r = sqrt(-2.0 * log(uniform_of(words[pair])));
    const double angle = 6.283185307179586 * uniform_of(words[pair + 1]);
    out[pair] = static_cast<float>(r * cos(angle));
    out[pair + 1] = static_cast<float>(r * sin(angle));
  }
}

}  // namespace unifluid::cuda
