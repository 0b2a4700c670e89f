// Barriers in shared memory (sm_90): a phase is over when so many threads have arrived, and so many
// bytes of bulk copies have come, as it expects. Phases have parity 0, 1, 0, ... A wait for a
// parity returns once the phase of that parity is over; before the first phase ends, the one
// "before" it, of parity 1, counts as over.
//
// Also the bulk copies of tensors that complete on them (cuda/tensor_map.h).
#pragma once

#include "cuda/device/shared.h"
#include "cuda/tensor_map.h"

namespace unifluid::cuda {

namespace mbarrier {
#ifdef UNIFLUID_SIMT
inline void* place(const Shared<uint64_t>& barriers, uint32_t i) {
  simt::shared_bounds(barriers.address(0), i, 1, barriers.count(), sizeof(uint64_t));
  return barriers.address(i);
}
#else
UNIFLUID_DEVICE uint32_t place(const Shared<uint64_t>& barriers, uint32_t i) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(barriers.address(i)));
}
#endif
}  // namespace mbarrier

// Before any use, by one thread; a barrier of the block must follow.
UNIFLUID_DEVICE void mbarrier_init(const Shared<uint64_t>& barriers, uint32_t i,
                                   uint32_t arrivals) {
#ifdef UNIFLUID_SIMT
  simt::mbarrier_init(mbarrier::place(barriers, i), arrivals);
#else
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(mbarrier::place(barriers, i)),
               "r"(arrivals)
               : "memory");
  // also for the bulk copies that will complete on it
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
#endif
}

UNIFLUID_DEVICE void mbarrier_arrive(const Shared<uint64_t>& barriers, uint32_t i) {
#ifdef UNIFLUID_SIMT
  simt::mbarrier_arrive(mbarrier::place(barriers, i), 0);
#else
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(mbarrier::place(barriers, i))
               : "memory");
#endif
}

// Arrives; the phase ends only after `bytes` more have been copied.
UNIFLUID_DEVICE void mbarrier_arrive_expecting(const Shared<uint64_t>& barriers, uint32_t i,
                                               uint32_t bytes) {
#ifdef UNIFLUID_SIMT
  simt::mbarrier_arrive(mbarrier::place(barriers, i), bytes);
#else
  asm volatile(
      "mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(mbarrier::place(barriers, i)),
      "r"(bytes)
      : "memory");
#endif
}

// Arrives once all cp.async that this thread has begun are done: they can be read by whoever has
// waited for the phase.
UNIFLUID_DEVICE void cp_async_arrive(const Shared<uint64_t>& barriers, uint32_t i) {
#ifdef UNIFLUID_SIMT
  simt::cp_async_arrive(mbarrier::place(barriers, i));
#else
  asm volatile(
      "cp.async.mbarrier.arrive.noinc.shared::cta.b64 [%0];" ::"r"(mbarrier::place(barriers, i))
      : "memory");
#endif
}

// `kWatched`: a wait without end becomes an error of the launch. Kernels that have no register left
// for it, whose products ptxas would serialize, do without.
#ifdef UNIFLUID_SIMT
template <bool kWatched = true>
inline void mbarrier_wait(const Shared<uint64_t>& barriers, uint32_t i, uint32_t parity,
                          const char* file = __builtin_FILE(), int line = __builtin_LINE()) {
  simt::mbarrier_wait(mbarrier::place(barriers, i), parity, {file, line});
}
#else
template <bool kWatched = true>
UNIFLUID_DEVICE void mbarrier_wait(const Shared<uint64_t>& barriers, uint32_t i, uint32_t parity) {
  // A try sleeps for a while by itself, so these are seconds.
  constexpr uint32_t kMostTries = 1u << 24;
  const uint32_t address = mbarrier::place(barriers, i);
  uint32_t over;
  for (uint32_t tries = 0;; ++tries) {
    asm volatile(
        "{\n"
        ".reg .pred p;\n"
        "mbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2;\n"
        "selp.u32 %0, 1, 0, p;\n"
        "}"
        : "=r"(over)
        : "r"(address), "r"(parity)
        : "memory");
    if (over) return;
    if (kWatched && tries == kMostTries) __trap();
  }
}
#endif

// Starts the copy of a map's box, whose first element is (row, column) of the tensor, to
// to[index ..], which begins at a multiple of 1024 bytes. Rows lie there as `swizzled`
// (cuda/device/wgmma.h) says; what lies outside of the tensor comes as zeros, and counts. By one
// thread.
UNIFLUID_DEVICE void copy_box(const Shared<bf16>& to, uint32_t index, const TensorMap& map,
                              int column, int row, const Shared<uint64_t>& barriers, uint32_t i) {
#ifdef UNIFLUID_SIMT
  simt::shared_bounds(to.address(0), index, map.box_elements(), to.count(), sizeof(bf16));
  simt::tensor_copy(to.address(index), &map, {column, row}, mbarrier::place(barriers, i));
#else
  const uint32_t target = static_cast<uint32_t>(__cvta_generic_to_shared(to.address(index)));
  const uint32_t barrier = mbarrier::place(barriers, i);
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes "
      "[%0], [%1, {%2, %3}], [%4];" ::"r"(target),
      "l"(&map), "r"(column), "r"(row), "r"(barrier)
      : "memory");
#endif
}

// The same of an image's map, from pixel (y, x) and a channel on.
UNIFLUID_DEVICE void copy_box(const Shared<bf16>& to, uint32_t index, const TensorMap& map,
                              int channel, int x, int y, const Shared<uint64_t>& barriers,
                              uint32_t i) {
#ifdef UNIFLUID_SIMT
  simt::shared_bounds(to.address(0), index, map.box_elements(), to.count(), sizeof(bf16));
  simt::tensor_copy(to.address(index), &map, {channel, x, y}, mbarrier::place(barriers, i));
#else
  const uint32_t target = static_cast<uint32_t>(__cvta_generic_to_shared(to.address(index)));
  const uint32_t barrier = mbarrier::place(barriers, i);
  asm volatile(
      "cp.async.bulk.tensor.3d.shared::cluster.global.tile.mbarrier::complete_tx::bytes "
      "[%0], [%1, {%2, %3, %4}], [%5];" ::"r"(target),
      "l"(&map), "r"(channel), "r"(x), "r"(y), "r"(barrier)
      : "memory");
#endif
}

// A place in a ring of kSlots barriers and the parity of its phase.
template <uint32_t kSlots>
struct RingPlace {
  uint32_t slot = 0, parity = 0;
  UNIFLUID_DEVICE void advance() {
    if (++slot == kSlots) {
      slot = 0;
      parity ^= 1;
    }
  }
};

}  // namespace unifluid::cuda
