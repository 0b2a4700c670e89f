// The device memory that one backend may have: all that cudaMalloc takes for it is counted here,
// weights, tensors, scratch and staging, against one limit.
//
// What the driver takes by itself is not: the context, the code of kernels, which comes when they
// first run, and graphs. CUDA does not tell how much that is; kept free for it is what
// `usable_memory` leaves out.
#pragma once

#include <atomic>
#include <cstddef>

#include "cuda/fault.h"

namespace unifluid::cuda {

// Bytes of `free` ones of a device that a backend takes at most.
size_t usable_memory(size_t free);

// `free` and what is usable of it, of the current device. Throws DEVICE_ERROR.
struct Room {
  size_t free, usable;
};
Room room_of_device();

class DeviceMemory {
 public:
  // `max_memory`: bytes that may be held; 0: what the device has. Chooses the device.
  DeviceMemory(int device, size_t max_memory, Fault& fault);
  DeviceMemory(const DeviceMemory&) = delete;
  DeviceMemory& operator=(const DeviceMemory&) = delete;

  // Aligned to 256 bytes. Null where the limit or the device has no such piece left. Throws
  // DEVICE_ERROR.
  void* allocate(size_t bytes);
  // `bytes`: as many as were asked for. Null is nothing to release.
  void release(void* memory, size_t bytes) noexcept;
  // Throws INSUFFICIENT_MEMORY; `bytes` were needed for `purpose`, and `own` of what is held could
  // have been given up.
  [[noreturn]] void refuse(size_t bytes, const char* purpose, size_t own) const;

  // Any thread.
  size_t held() const { return held_; }
  size_t left() const;

 private:
  Fault& fault_;
  const size_t limit_;
  std::atomic<size_t> held_{0};
};

}  // namespace unifluid::cuda
