// Counter-based randomness (spec section 7): every number is named by a seed and what it is for, so
// one seed gives one image whatever the device, the batch and its neighbours.
//
// Philox4x32-10 of "Parallel random numbers: as easy as 1, 2, 3" (Salmon et al., 2011).
// Kernels use core/noise.h, which includes no standard header.
#pragma once

#include <cstdint>
#include <vector>

namespace unifluid {

// The last counter word: what a draw is for.
// Those from 4 on belong to training (core/train).
enum class Draw : uint32_t {
  order = 0,
  start_noise = 1,
  step_noise = 2,
  text = 3,
  training_noise = 4,
  training_time = 5,
  training_order = 6,
  context_noise = 7,
  context_level = 8,
  latent_noise = 9,
  latent_level = 10,
};

struct PhiloxWords {
  uint32_t word[4];
};

// Key: the low and the high half of the seed.
PhiloxWords philox4x32(uint64_t seed, uint32_t c0, uint32_t c1, uint32_t c2, uint32_t c3);

// ((word >> 8) + 0.5) / 2^24, in (0, 1).
double uniform(uint32_t word);

// A permutation of the cells 0 .. n-1 by Fisher-Yates: the cell drawn first comes first. In
// training an order is named by its example and step as well.
std::vector<int32_t> random_order(uint64_t seed, int32_t n, Draw use = Draw::order, uint32_t c1 = 0,
                                  uint32_t c2 = 0);

// The number that decides token `index` of a sampled text.
double text_uniform(uint64_t seed, uint32_t index);

}  // namespace unifluid
