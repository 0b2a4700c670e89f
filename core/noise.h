// The normal noise of the diffusion sampler (spec section 7): Philox words turned into normals by
// Box-Muller in float64, rounded to float32 at the end.
//
// Compiled once, for the plainest processor, and called by the kernels of every instruction set:
// the noise is the same on all of them. No standard header may come in here (cpu/simd.h).
#pragma once

#include <stdint.h>

namespace unifluid {

// The starting noise of the token at `cell`; out [channels].
void start_noise(uint64_t seed, int32_t cell, int64_t channels, float* out);

// The noise added after sampling step `step`, 0 being the first; out [channels].
void step_noise(uint64_t seed, int32_t cell, int64_t step, int64_t channels, float* out);

// The noise of one token at one timestep of a training step, named by `counter`; out [channels].
void training_noise(uint64_t seed, uint64_t counter, int64_t channels, float* out);

// The noise of an image token that a later one is trained to follow, named by `counter`: its level
// is drawn uniformly from [0, highest), each channel is normal; out [channels].
void context_noise(uint64_t seed, uint64_t counter, float highest, int64_t channels, float* out);

// The noise of one cell of the latents that an autoencoder's decoder is trained on: the level is
// drawn uniformly from [0, highest) for the `picture`, each channel of the `cell` is normal. Both
// are counters that have the step in their high half; out [channels].
void latent_noise(uint64_t seed, uint64_t picture, uint64_t cell, float highest, int64_t channels,
                  float* out);

}  // namespace unifluid
