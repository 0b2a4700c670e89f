// Activations and rotary angles, as the CPU has them: float32, no fast approximations. But for
// `power_of_two`, of attention in bfloat16.
#pragma once

#include "core/backend.h"
#include "cuda/device/platform.h"

namespace unifluid::cuda {

UNIFLUID_DEVICE float sigmoid(float x) { return 1.0f / (1.0f + expf(-x)); }

template <Activation kActivation>
UNIFLUID_DEVICE float activate(float x) {
  if constexpr (kActivation == Activation::silu) return x * sigmoid(x);
  if constexpr (kActivation == Activation::gelu_tanh)
    return 0.5f * x * (1.0f + tanhf(0.7978845608028654f * (x + 0.044715f * x * x * x)));
  if constexpr (kActivation == Activation::gelu_erf)
    return 0.5f * x * (1.0f + erff(x * 0.7071067811865476f));
  return x;
}

// Chosen at run time. Three functions at each of a tile's outputs would be most of a library.
UNIFLUID_DEVICE_CALLED float activate_any(Activation activation, float x) {
  if (activation == Activation::silu) return activate<Activation::silu>(x);
  if (activation == Activation::gelu_tanh) return activate<Activation::gelu_tanh>(x);
  return activate<Activation::gelu_erf>(x);
}
UNIFLUID_DEVICE float activate(Activation activation, float x) {
  return activation == Activation::none ? x : activate_any(activation, x);
}

// 2^x as the hardware has it, within two units in the last place; what would be denormal is 0.
UNIFLUID_DEVICE float power_of_two(float x) {
#ifdef UNIFLUID_SIMT
  return exp2f(x);
#else
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
#endif
}

UNIFLUID_DEVICE float soft_capped(float x, float cap) { return cap * tanhf(x / cap); }

// What the diffusion head sees of a timestep: cosines, then sines, of the time times these; period
// 10000.
inline constexpr int kTimeFeatures = 256;
UNIFLUID_DEVICE float time_frequency(int c) {
  // ln 10000
  return expf(-9.210340371976184f * static_cast<float>(c) / (kTimeFeatures / 2));
}

}  // namespace unifluid::cuda
