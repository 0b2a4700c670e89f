// What every kernel of the diffusion head's sampling steps computes of an element, so that each has
// the same bits: a norm, and a step of the sampler.
#pragma once

#include <algorithm>

#include "cuda/kernels/diffusion_steps.h"
#include "cuda/kernels/diffusion_tile.h"

namespace unifluid::cuda::steps {

inline constexpr float kNormEps = 1e-6f;

// What is known of the parts of rows of this width.
template <class T>
inline StepsParts parts_of(int width) {
  const int whole = width / (kParts * kRun<T>);
  StepsParts parts{};
  parts.inverse_width = 1.0f / static_cast<float>(width);
  for (int part = 0; part < kParts; ++part) {
    const int size = whole * kRun<T> + std::clamp(width - run_of<T>(part, whole), 0, kRun<T>);
    parts.size[part] = static_cast<float>(size);
    parts.inverse[part] = 1.0f / static_cast<float>(std::max(size, 1));
  }
  return parts;
}

// What a norm does to a normalized piece of a row: v * scale + shift.
template <class T>
struct Affine {
  float scale[kSize<T>], shift[kSize<T>];
};
// What it is computed from.
template <class T>
struct AffineParts {
  Piece shift, scale, weights[kSize<T> / 4], biases[kSize<T> / 4];
};
// 1 + scale, shift
template <class T>
UNIFLUID_DEVICE Affine<T> modulated(const AffineParts<T>& parts) {
  Affine<T> a;
  for (int i = 0; i < kSize<T>; ++i) {
    a.scale[i] = 1.0f + element<T>(parts.scale, i);
    a.shift[i] = element<T>(parts.shift, i);
  }
  return a;
}
// (v * weight + bias) * scale + shift, of the elements 4 i on
template <class T>
UNIFLUID_DEVICE void learn(Affine<T>& a, const AffineParts<T>& parts, int i) {
  for (int e = 0; e < 4; ++e) {
    float &scale = a.scale[4 * i + e], &shift = a.shift[4 * i + e];
    shift = fmaf(element<float>(parts.biases[i], e), scale, shift);
    scale *= element<float>(parts.weights[i], e);
  }
}

// Of a row: mean, and inverse of the standard deviation.
struct Norm {
  float mean, inverse;
};
// From those of its parts, which lie at `at`: the sum of a part's elements, and of their squared
// distances from their mean.
UNIFLUID_DEVICE Norm norm_of(const StepsParts& parts, const Shared<float>& moments, uint32_t at) {
  float sums[kParts], squares_of[kParts];
#pragma unroll
  for (int two = 0; two < kParts; two += 2) {
    const Vector<float> v = moments.load_vector(at + static_cast<uint32_t>(two * 2));
    sums[two] = v.value[0];
    squares_of[two] = v.value[1];
    sums[two + 1] = v.value[2];
    squares_of[two + 1] = v.value[3];
  }
  float total = 0, squares = 0;
  for (int part = 0; part < kParts; ++part) total += sums[part];
  const float mean = total * parts.inverse_width;
  for (int part = 0; part < kParts; ++part) {
    const float away = fmaf(-parts.size[part], mean, sums[part]);
    squares += fmaf(away * away, parts.inverse[part], squares_of[part]);
  }
  return {mean, rsqrtf(fmaf(squares, parts.inverse_width, kNormEps))};
}

// A latent after a step, from the network's outputs: for the prompt's condition, for the empty
// one's where the token is guided, and the variance's where the step is `noisy`.
UNIFLUID_DEVICE float updated(const StepsParams& p, const DiffusionStep& step,
                              const StepsToken& token, bool noisy, float noise, float now,
                              const float (&outputs)[3]) {
  const float limit = token.x0_limit;
  // Of two operands fminf and fmaxf take the one that is a number. What is not finite becomes NaN,
  // as on the CPU: it must not end as a pixel.
  const auto limited = [limit](float v) {
    return fmaf(v, 0.0f, v < -limit ? -limit : v > limit ? limit : v);
  };
  float predicted = outputs[0];
  if (token.rows > 1) predicted = outputs[1] + token.guidance * (predicted - outputs[1]);
  if (p.flow) {
    float v = predicted;
    if (limit < INFINITY) v = (now - limited(now - step.tau * v)) / step.tau;
    return now - v / static_cast<float>(p.step_count);
  }
  const float x0 = limited(step.recip * now - step.recipm1 * predicted);
  float next = step.coef_x0 * x0 + step.coef_x * now;
  if (noisy) {
    const float f = 0.5f * (outputs[2] + 1.0f);
    const float log_variance = f * step.log_beta + (1.0f - f) * step.log_tilde;
    next += token.temperature * expf(0.5f * log_variance) * noise;
  }
  return next;
}

}  // namespace unifluid::cuda::steps
