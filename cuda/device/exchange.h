// Values from one block of a grid to others without a barrier: 32 bits, a float or two bf16, travel
// with the number of the round that they belong to, in one word of 8 bytes, and whoever needs them
// looks at that word until the number is there. It takes one way to the second-level cache and back
// where a barrier takes three, and leaves the first-level cache as it is. (NCCL calls this protocol
// LL.)
//
// The words are zeroed before the launch, all blocks of which are resident; rounds count from 1.
// Nothing else is ordered: what was stored before a post is not seen by those who receive it.
#pragma once

#include "cuda/device/platform.h"

namespace unifluid::cuda {

struct alignas(8) Posted {
  float value;
  uint32_t round;
};

UNIFLUID_DEVICE void post(Posted* at, float value, uint32_t round) {
#ifdef UNIFLUID_SIMT
  *at = {value, round};
#else
  const uint64_t word = static_cast<uint64_t>(round) << 32 | __float_as_uint(value);
  asm volatile("st.relaxed.gpu.global.u64 [%0], %1;" ::"l"(at), "l"(word) : "memory");
#endif
}

// A word as it is now.
UNIFLUID_DEVICE Posted look(const Posted* at) {
#ifdef UNIFLUID_SIMT
  return *at;
#else
  uint64_t word;
  asm volatile("ld.relaxed.gpu.global.u64 %0, [%1];" : "=l"(word) : "l"(at) : "memory");
  return {__uint_as_float(static_cast<uint32_t>(word)), static_cast<uint32_t>(word >> 32)};
#endif
}

// Two words side by side as they are now; `at` aligned to 16 bytes.
UNIFLUID_DEVICE void look(const Posted* at, Posted (&now)[2]) {
#ifdef UNIFLUID_SIMT
  now[0] = at[0];
  now[1] = at[1];
#else
  uint64_t words[2];
  asm volatile("ld.relaxed.gpu.global.v2.u64 {%0,%1}, [%2];"
               : "=l"(words[0]), "=l"(words[1])
               : "l"(at)
               : "memory");
  for (int i = 0; i < 2; ++i)
    now[i] = {__uint_as_float(static_cast<uint32_t>(words[i])),
              static_cast<uint32_t>(words[i] >> 32)};
#endif
}

// `v`, computed no later than here: what is needed right after a wait, compilers would rather
// compute after it, where that takes fewer registers. V: 32 bits, or a pointer.
template <class V>
UNIFLUID_DEVICE V settled(V v) {
#ifndef UNIFLUID_SIMT
  if constexpr (sizeof(V) == 8)
    asm volatile("" : "+l"(v));
  else
    asm volatile("" : "+r"(v));
#endif
  return v;
}

// A thread's wait for another block.
class Watch {
 public:
  // Said by a thread that looked in vain, before it looks again. A wait without end becomes an
  // error of the launch: a look takes over 100 ns, so that one of some seconds is meant; time that
  // the GPU gives to others does not count. The simulation sees at once that nobody is left to
  // come.
#ifdef UNIFLUID_SIMT
  void look_again(const char* file = __builtin_FILE(), int line = __builtin_LINE()) {
    simt::spin({file, line});
  }
#else
  UNIFLUID_DEVICE void look_again() {
    constexpr uint32_t kMostLooks = 1u << 25;
    if (++looks_ == kMostLooks) __trap();
  }

 private:
  uint32_t looks_ = 0;
#endif
};

// Values of one round, waited for together.
template <int kCount>
UNIFLUID_DEVICE void receive(const Posted* const (&at)[kCount], uint32_t round,
                             float (&values)[kCount]) {
  Watch watch;
  for (;;) {
    uint32_t other = 0;
    for (int i = 0; i < kCount; ++i) {
      const Posted now = look(at[i]);
      values[i] = now.value;
      other |= now.round ^ round;
    }
    if (other == 0) return;
    watch.look_again();
  }
}
UNIFLUID_DEVICE float receive(const Posted* at, uint32_t round) {
  const Posted* const where[1] = {at};
  float value[1];
  receive(where, round, value);
  return value[0];
}

}  // namespace unifluid::cuda
