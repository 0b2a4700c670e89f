// Launches that begin before the one in front of them has ended (Queue::launch_dependent): what a
// kernel needs that no kernel of the list writes, such as weights, is on its way by the time that
// its inputs are there, and no launch waits for the last one's end.
//
// Such a kernel calls `wait_for_inputs` in every thread. Before that it writes nothing, as the
// launch in front may still read what is overwritten, and reads weights, and what was staged by
// `load_staged`: memory that no launch of this kind writes. The others write weights in training;
// what follows one of them is not begun before its end, and neither are those behind. Since every
// launch waits for the one before it, it comes after all of them. Where a kernel is launched
// otherwise both functions do nothing.
#pragma once

#include "cuda/device/types.h"

namespace unifluid::cuda {

// Returns when all launches before this one are over and what they wrote can be read.
UNIFLUID_DEVICE void wait_for_inputs() {
#ifdef UNIFLUID_SIMT
  simt::wait_for_inputs();
#elif __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

// The next launch may begin once all blocks have said this or ended: its blocks come to lie beside
// these where a processor has room. No block waits for a place that it takes.
UNIFLUID_DEVICE void let_dependents_start() {
#if !defined(UNIFLUID_SIMT) && __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

// An element of what the host staged. The first-level cache may hold what an earlier list had
// there, so it is read past it. Made of whole words of 8 bytes.
template <class T>
UNIFLUID_DEVICE T load_staged(const T* at) {
#ifdef UNIFLUID_SIMT
  return *at;
#else
  static_assert(sizeof(T) % sizeof(uint2) == 0);
  constexpr int kWords = sizeof(T) / sizeof(uint2);
  uint2 words[kWords];
#pragma unroll
  for (int i = 0; i < kWords; ++i) words[i] = __ldcg(reinterpret_cast<const uint2*>(at) + i);
  T value;
  memcpy(&value, words, sizeof value);
  return value;
#endif
}

}  // namespace unifluid::cuda
