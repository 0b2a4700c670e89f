// Asynchronous copies of 16 bytes from global to shared memory (sm_80 and later). Copies that a
// thread started become readable to it after its wait, and to other threads after a barrier that
// follows it.
//
// In the simulation a copy is done when it is waited for; till then its target is poison.
#pragma once

#include "cuda/device/shared.h"

namespace unifluid::cuda {

// to[index ..] gets 16 bytes of `from`, or zeros where not `valid` (`from` is then not read). Both
// sides aligned to 16 bytes.
template <class T>
UNIFLUID_DEVICE void cp_async16(const Shared<T>& to, uint32_t index, const T* from, bool valid) {
#ifdef UNIFLUID_SIMT
  simt::shared_bounds(to.address(0), index, 16 / sizeof(T), to.count(), sizeof(T));
  simt::cp_async(to.address(index), from, valid);
#else
  const uint32_t address = static_cast<uint32_t>(__cvta_generic_to_shared(to.address(index)));
  const int bytes = valid ? 16 : 0;
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(address), "l"(from), "r"(bytes)
               : "memory");
#endif
}

// How long the second-level cache is to keep what is read: see `keep_shortly`.
using CachePolicy = uint64_t;

// Of what is read once: it goes before anything that was read without a policy.
UNIFLUID_DEVICE CachePolicy keep_shortly() {
  CachePolicy policy = 0;
#if !defined(UNIFLUID_SIMT) && __CUDA_ARCH__ >= 800
  asm("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(policy));
#endif
  return policy;
}

template <class T>
UNIFLUID_DEVICE void cp_async16(const Shared<T>& to, uint32_t index, const T* from, bool valid,
                                CachePolicy policy) {
#ifdef UNIFLUID_SIMT
  (void)policy;
  cp_async16(to, index, from, valid);
#else
  const uint32_t address = static_cast<uint32_t>(__cvta_generic_to_shared(to.address(index)));
  const int bytes = valid ? 16 : 0;
  asm volatile("cp.async.cg.shared.global.L2::cache_hint [%0], [%1], 16, %2, %3;" ::"r"(address),
               "l"(from), "r"(bytes), "l"(policy)
               : "memory");
#endif
}

// Ends a group of copies.
UNIFLUID_DEVICE void cp_async_commit() {
#ifdef UNIFLUID_SIMT
  simt::cp_async_commit();
#else
  asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}

// Waits until at most `kPending` of this thread's latest groups are unfinished.
template <int kPending>
UNIFLUID_DEVICE void cp_async_wait() {
#ifdef UNIFLUID_SIMT
  simt::cp_async_wait(kPending);
#else
  asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
#endif
}

}  // namespace unifluid::cuda
