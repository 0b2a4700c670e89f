// What blocks of one grid do together, and hints to the second-level cache.
#pragma once

#include "cuda/device/exchange.h"
#include "cuda/device/platform.h"

namespace unifluid::cuda {

// A barrier of all threads of `members` blocks of a grid that was launched cooperatively.
// `arrivals` is their own counter in global memory, zeroed before the launch; `round` counts this
// thread's barriers from 0. What any of the blocks wrote to global memory before the barrier is
// seen by all of them after it, where it is read by `load_fresh` or was never read before.
UNIFLUID_DEVICE void team_barrier(uint32_t* arrivals, uint32_t members, uint32_t& round) {
  __syncthreads();
  ++round;
  if (threadIdx.x == 0) {
    const uint32_t wanted = round * members;
    Watch watch;
#ifdef UNIFLUID_SIMT
    for (++*arrivals; *arrivals < wanted;) watch.look_again();
#else
    asm volatile("red.release.gpu.global.add.u32 [%0], 1;" ::"l"(arrivals) : "memory");
    for (;;) {
      uint32_t arrived;
      asm volatile("ld.acquire.gpu.global.u32 %0, [%1];"
                   : "=r"(arrived)
                   : "l"(arrivals)
                   : "memory");
      if (arrived >= wanted) break;
      watch.look_again();
    }
#endif
  }
  __syncthreads();
}

// A float that another block wrote in this launch: read past the first-level cache.
UNIFLUID_DEVICE float load_fresh(const float* at) {
#ifdef UNIFLUID_SIMT
  return *at;
#else
  return __ldcg(at);
#endif
}

// Four words at once, aligned to 16 bytes.
UNIFLUID_DEVICE uint4 load_fresh(const uint4* at) {
#ifdef UNIFLUID_SIMT
  return *at;
#else
  return __ldcg(at);
#endif
}

// Four words that nobody writes during the launch.
UNIFLUID_DEVICE uint4 load_constant(const uint4* at) {
#ifdef UNIFLUID_SIMT
  return *at;
#else
  return __ldg(at);
#endif
}

UNIFLUID_DEVICE float load_constant(const float* at) {
#ifdef UNIFLUID_SIMT
  return *at;
#else
  return __ldg(at);
#endif
}

// Asks for the line of `at` in the second-level cache; no effect on results.
UNIFLUID_DEVICE void prefetch_l2(const void* at) {
#ifdef UNIFLUID_SIMT
  (void)at;
#else
  asm volatile("prefetch.global.L2 [%0];" ::"l"(at));
#endif
}

}  // namespace unifluid::cuda
