// What a sampling step makes of a latent (spec section 6), for all kernels of the diffusion head's
// steps.
#pragma once

#include "cuda/kernels/diffusion_steps.h"

namespace unifluid::cuda::steps {

// A latent after a step. `prompted`, `other`: the network's outputs for the prompt's condition and
// for the empty prompt's (the first once more where there is none); `fraction`: its output for the
// variance, and `noise`, where the step has noise. What is not finite becomes NaN, as on the CPU:
// it must not end as a pixel.
UNIFLUID_DEVICE float next_latent(const StepsParams& p, const DiffusionStep& step,
                                  const StepsToken& token, float now, float prompted, float other,
                                  float fraction, float noise) {
  const float limit = token.x0_limit;
  // Of two operands fminf and fmaxf take the one that is a number.
  const auto limited = [limit](float v) {
    return fmaf(v, 0.0f, v < -limit ? -limit : v > limit ? limit : v);
  };
  float predicted = prompted;
  if (token.rows > 1) predicted = other + token.guidance * (predicted - other);
  if (p.flow) {
    float v = predicted;
    if (limit < INFINITY) v = (now - limited(now - step.tau * v)) / step.tau;
    return now - v / static_cast<float>(p.step_count);
  }
  const float x0 = limited(step.recip * now - step.recipm1 * predicted);
  float next = step.coef_x0 * x0 + step.coef_x * now;
  if (step.noise) {
    const float f = 0.5f * (fraction + 1.0f);
    const float log_variance = f * step.log_beta + (1.0f - f) * step.log_tilde;
    next += token.temperature * expf(0.5f * log_variance) * noise;
  }
  return next;
}

}  // namespace unifluid::cuda::steps
