// The sampling schedules of the diffusion head (spec section 6), as the backend takes them.
#pragma once

#include <cstdint>
#include <vector>

#include "core/backend.h"
#include "core/training_backend.h"

namespace unifluid {

// Ancestral sampling in `steps` of `total` timesteps with the cosine schedule, respaced as IDDPM
// (2102.09672) does; the noisiest step first. 1 <= steps <= total.
std::vector<DiffusionStep> ddpm_steps(int64_t total, int64_t steps);

// Equal Euler steps of a rectified flow (2209.03003) from tau = 1 down to 1 / steps; the network
// sees timesteps * tau. steps >= 1.
std::vector<DiffusionStep> flow_steps(int64_t timesteps, int64_t steps);

// Every timestep of the diffusion in training. `weight_cap` bounds the weight (1 - bar) / bar of a
// timestep's square error from above; 1: all weigh the same.
std::vector<TrainingStep> training_steps(int64_t total, float weight_cap);

// The timestep `time`, 0 to `timesteps`, of a rectified flow in training.
TrainingStep flow_training_step(float time, int64_t timesteps);

}  // namespace unifluid
