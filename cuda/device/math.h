// Activations and functions of the hardware.
#pragma once

#include "core/backend.h"
#include "cuda/device/platform.h"

namespace unifluid::cuda {

UNIFLUID_DEVICE float sigmoid(float x) { return 1.0f / (1.0f + expf(-x)); }

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

// 1 / x likewise, within one unit in the last place, of normal numbers and infinity.
UNIFLUID_DEVICE float reciprocal(float x) {
#ifdef UNIFLUID_SIMT
  return 1.0f / x;
#else
  float y;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
#endif
}

// x sigmoid(y): two functions of the hardware, within six units in the last place of x.
UNIFLUID_DEVICE float times_sigmoid(float x, float y) {
  constexpr float kLog2E = 1.4426950408889634f;
  return x * reciprocal(1.0f + power_of_two(y * -kLog2E));
}

template <Activation kActivation>
UNIFLUID_DEVICE float activate(float x) {
  if constexpr (kActivation == Activation::silu) return times_sigmoid(x, x);
  // (1 + tanh y) / 2 is sigmoid(2 y), which loses nothing where it is small.
  if constexpr (kActivation == Activation::gelu_tanh)
    return times_sigmoid(x, 1.5957691216057308f * fmaf(0.044715f * x * x, x, x));
  if constexpr (kActivation == Activation::gelu_erf)
    return 0.5f * x * (1.0f + erff(x * 0.7071067811865476f));
  return x;
}

// Chosen at run time. Three functions at each of a tile's outputs would be most of a library, so
// that only the one that decoders and SigLIP have is copied there.
UNIFLUID_DEVICE_CALLED float4 activate_other(Activation activation, float4 x) {
  float* const values[4] = {&x.x, &x.y, &x.z, &x.w};
  for (float* v : values)
    *v = activation == Activation::silu ? activate<Activation::silu>(*v)
                                        : activate<Activation::gelu_erf>(*v);
  return x;
}
UNIFLUID_DEVICE float4 activate(Activation activation, float4 x) {
  if (activation == Activation::none) return x;
  if (activation != Activation::gelu_tanh) return activate_other(activation, x);
  constexpr auto kGelu = Activation::gelu_tanh;
  return make_float4(activate<kGelu>(x.x), activate<kGelu>(x.y), activate<kGelu>(x.z),
                     activate<kGelu>(x.w));
}

// NaN of an infinite x, which is the trace of a broken weight: the cap would hide it. What is added
// to all others is 0.
UNIFLUID_DEVICE float soft_capped(float x, float cap) {
  return fmaf(x, 0.0f, cap * tanhf(x / cap));
}

// What the diffusion head sees of a timestep: cosines, then sines, of the time times these; period
// 10000.
inline constexpr int kTimeFeatures = 256;
UNIFLUID_DEVICE float time_frequency(int c) {
  // ln 10000
  return expf(-9.210340371976184f * static_cast<float>(c) / (kTimeFeatures / 2));
}

}  // namespace unifluid::cuda
