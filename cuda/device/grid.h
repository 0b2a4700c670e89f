// What blocks of one grid do together, and hints to the second-level cache.
#pragma once

#include "cuda/device/exchange.h"
#include "cuda/device/platform.h"
#include "cuda/device/warp.h"

namespace unifluid::cuda {

// A barrier of `members` blocks of a grid that was launched cooperatively: of all their threads, or
// in each block of Threads, with thread 0 among them (warp.h). `arrivals` is their own counter in
// global memory, zeroed before the launch; `round` counts this thread's barriers from 0. What any
// of those who come wrote to global memory before the barrier is seen by all of them after it,
// where it is read by `load_fresh` or was never read before.
template <class Threads>
UNIFLUID_DEVICE void team_barrier_of(uint32_t* arrivals, uint32_t members, uint32_t& round) {
  Threads::meet();
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
  Threads::meet();
}
UNIFLUID_DEVICE void team_barrier(uint32_t* arrivals, uint32_t members, uint32_t& round) {
  team_barrier_of<WholeBlock<>>(arrivals, members, round);
}

// A barrier of all threads of a cluster of blocks (sm_90), which share a part of the chip. What any
// of them wrote to global memory before it is seen by all after it, where it is read by
// `load_fresh`. `arrivals` and `round` are those of `team_barrier`, for the simulation.
template <uint32_t kMembers>
UNIFLUID_DEVICE void cluster_barrier([[maybe_unused]] uint32_t* arrivals,
                                     [[maybe_unused]] uint32_t& round) {
#ifdef UNIFLUID_SIMT
  team_barrier(arrivals, kMembers, round);
#elif defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("barrier.cluster.arrive.release;\nbarrier.cluster.wait.acquire;" ::: "memory");
#endif
}

// What another block wrote in this launch, one number or two or four words aligned to their size:
// read past the first-level cache.
template <class T>
UNIFLUID_DEVICE T load_fresh(const T* at) {
#ifdef UNIFLUID_SIMT
  return *at;
#else
  return __ldcg(at);
#endif
}
UNIFLUID_DEVICE bf16 load_fresh(const bf16* at) { return {load_fresh(&at->bits)}; }

// The same of what nobody writes during the launch.
template <class T>
UNIFLUID_DEVICE T load_constant(const T* at) {
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

// Lines of `count` elements from `at` on, by `threads` together, of which this is `thread`.
template <class T>
UNIFLUID_DEVICE void prefetch_l2(const T* at, int count, int thread, int threads) {
  constexpr int kLine = 128 / sizeof(T);
  for (int i = thread * kLine; i < count; i += threads * kLine) prefetch_l2(at + i);
}

// The same of `bytes` from `at` on, both multiples of 16. The simulation reads both ends of it, so
// that tools see what lies outside of memory.
UNIFLUID_DEVICE void prefetch_l2(const void* at, uint32_t bytes) {
#if defined(UNIFLUID_SIMT)
  simt::touch(at, bytes);
#elif __CUDA_ARCH__ >= 900
  asm volatile("cp.async.bulk.prefetch.L2.global [%0], %1;" ::"l"(at), "r"(bytes));
#else
  (void)at;
  (void)bytes;
#endif
}

}  // namespace unifluid::cuda
