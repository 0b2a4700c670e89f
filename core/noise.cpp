#include "core/noise.h"

#include <cmath>

#include "core/philox.h"

namespace unifluid {
namespace {

constexpr double kTwoPi = 6.283185307179586;

void normals(uint64_t seed, uint32_t cell, uint32_t step, Draw use, int64_t channels, float* out) {
  for (int64_t c = 0; c < channels; c += 4) {
    const PhiloxWords w =
        philox4x32(seed, static_cast<uint32_t>(c / 4), cell, step, static_cast<uint32_t>(use));
    float x[4];
    for (int pair = 0; pair < 4; pair += 2) {
      const double r = std::sqrt(-2 * std::log(uniform(w.word[pair])));
      const double angle = kTwoPi * uniform(w.word[pair + 1]);
      x[pair] = static_cast<float>(r * std::cos(angle));
      x[pair + 1] = static_cast<float>(r * std::sin(angle));
    }
    for (int64_t i = 0; i < 4 && c + i < channels; ++i) out[c + i] = x[i];
  }
}

uint32_t low(uint64_t counter) { return static_cast<uint32_t>(counter); }
uint32_t high(uint64_t counter) { return static_cast<uint32_t>(counter >> 32); }

// Uniform in [0, highest).
float level(uint64_t seed, uint64_t counter, Draw use, float highest) {
  const PhiloxWords w =
      philox4x32(seed, 0, low(counter), high(counter), static_cast<uint32_t>(use));
  return static_cast<float>(highest * uniform(w.word[0]));
}

}  // namespace

void start_noise(uint64_t seed, int32_t cell, int64_t channels, float* out) {
  normals(seed, static_cast<uint32_t>(cell), 0, Draw::start_noise, channels, out);
}

void step_noise(uint64_t seed, int32_t cell, int64_t step, int64_t channels, float* out) {
  normals(seed, static_cast<uint32_t>(cell), static_cast<uint32_t>(step), Draw::step_noise,
          channels, out);
}

void training_noise(uint64_t seed, uint64_t counter, int64_t channels, float* out) {
  normals(seed, low(counter), high(counter), Draw::training_noise, channels, out);
}

void context_noise(uint64_t seed, uint64_t counter, float highest, int64_t channels, float* out) {
  normals(seed, low(counter), high(counter), Draw::context_noise, channels, out);
  const float size = level(seed, counter, Draw::context_level, highest);
  for (int64_t c = 0; c < channels; ++c) out[c] *= size;
}

void latent_noise(uint64_t seed, uint64_t picture, uint64_t cell, float highest, int64_t channels,
                  float* out) {
  normals(seed, low(cell), high(cell), Draw::latent_noise, channels, out);
  const float size = level(seed, picture, Draw::latent_level, highest);
  for (int64_t c = 0; c < channels; ++c) out[c] *= size;
}

}  // namespace unifluid
