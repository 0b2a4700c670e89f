// Sine and cosine, for rotary embedding and the diffusion head's timesteps.
#pragma once

#include "cpu/simd.h"

namespace unifluid::cpu::UNIFLUID_ISA {

struct SinCos {
  Vec sin, cos;
};

// To about 1e-7 absolute for magnitudes up to 8192: quarter turns are subtracted in three parts
// whose products with their number are exact, then the polynomials of Cephes' sinf and cosf.
UNIFLUID_INLINE SinCos sin_cos_reduced(Vec x) {
  const Vec n = round(mul(x, set1(0.636619772367581343f)));
  Vec r = fnma(n, set1(1.5703125f), x);
  r = fnma(n, set1(4.837512969970703125e-4f), r);
  r = fnma(n, set1(7.54978995489188216e-8f), r);
  const Vec z = mul(r, r);
  Vec s = fma(z, set1(-1.9515295891e-4f), set1(8.3321608736e-3f));
  s = fma(s, z, set1(-1.6666654611e-1f));
  s = fma(mul(s, z), r, r);
  Vec c = fma(z, set1(2.443315711809948e-5f), set1(-1.388731625493765e-3f));
  c = fma(c, z, set1(4.166664568298827e-2f));
  c = fma(mul(z, z), c, fnma(set1(0.5f), z, set1(1.0f)));
  // The quarter turn modulo 4, by floats: n / 4 - 3/8 rounds down.
  const Vec quarter = fnma(set1(4.0f), round(fma(n, set1(0.25f), set1(-0.375f))), n);
  const Mask first = less(quarter, set1(0.5f)), second = less(quarter, set1(1.5f)),
             third = less(quarter, set1(2.5f));
  const Vec minus_s = sub(zero(), s), minus_c = sub(zero(), c);
  return {select(first, s, select(second, c, select(third, minus_s, minus_c))),
          select(first, c, select(second, minus_s, select(third, minus_c, s)))};
}

// For any finite x: libm's, lane by lane, where one is beyond 8192.
UNIFLUID_INLINE SinCos sin_cos(Vec x) {
  if (max_of(abs(x)) <= 8192.0f) return sin_cos_reduced(x);
  float angle[kLanes], sine[kLanes], cosine[kLanes];
  store(angle, x);
  for (int i = 0; i < kLanes; ++i) {
    sine[i] = __builtin_sinf(angle[i]);
    cosine[i] = __builtin_cosf(angle[i]);
  }
  return {load(sine), load(cosine)};
}

// The frequencies of rotary embedding, as transformers has them; out [head_dim / 2].
UNIFLUID_INLINE void rope_frequencies(float theta, int64_t head_dim, float* out) {
  const float d = static_cast<float>(head_dim);
  for (int64_t c = 0; c < head_dim / 2; ++c) {
    const float exponent = static_cast<float>(2 * c) / d;
    out[c] = 1.0f / static_cast<float>(__builtin_pow(theta, exponent));
  }
}

inline constexpr int64_t kTimeFeatures = 256;

// What the diffusion head sees of a timestep: a sinusoid, cosines first, period 10000; out
// [kTimeFeatures].
UNIFLUID_INLINE void time_sinusoid(float time, float* out) {
  constexpr int64_t kHalf = kTimeFeatures / 2;
  float lane[kLanes];
  for (int i = 0; i < kLanes; ++i) lane[i] = static_cast<float>(i);
  for (int64_t c = 0; c < kHalf; c += kLanes) {
    const Vec index = add(load(lane), set1(static_cast<float>(c)));
    // ln 10000
    const Vec frequency = exp(div(mul(set1(-9.210340371976184f), index), set1(float{kHalf})));
    const SinCos turned = sin_cos(mul(set1(time), frequency));
    store(out + c, turned.cos);
    store(out + kHalf + c, turned.sin);
  }
}

}  // namespace unifluid::cpu::UNIFLUID_ISA
