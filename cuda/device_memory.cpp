#include "cuda/device_memory.h"

#include <cuda_runtime.h>

#include <algorithm>
#include <string>

#include "core/error.h"
#include "cuda/size_class.h"

namespace unifluid::cuda {
namespace {

constexpr size_t kReserve = size_t{256} << 20;

size_t limit_of(int device, size_t max_memory) {
  check(cudaSetDevice(device), "selecting the device");
  const size_t usable = room_of_device().usable;
  return max_memory ? std::min(max_memory, usable) : usable;
}

}  // namespace

size_t usable_memory(size_t free) { return free > 2 * kReserve ? free - kReserve : free / 2; }

Room room_of_device() {
  size_t free = 0, total = 0;
  check(cudaMemGetInfo(&free, &total), "reading the free memory");
  return {free, usable_memory(free)};
}

DeviceMemory::DeviceMemory(int device, size_t max_memory, Fault& fault)
    : fault_(fault), limit_(limit_of(device, max_memory)) {}

size_t DeviceMemory::left() const { return limit_ - std::min<size_t>(limit_, held_); }

void* DeviceMemory::allocate(size_t bytes) {
  const size_t taken = device_bytes(bytes);
  if (taken > left()) return nullptr;
  void* memory = nullptr;
  const cudaError_t status = cudaMalloc(&memory, bytes);
  if (status == cudaErrorMemoryAllocation) {
    cudaGetLastError();  // a failed allocation leaves the device as it was
    return nullptr;
  }
  fault_.check(status, "allocating memory");
  held_ += taken;
  return memory;
}

void DeviceMemory::release(void* memory, size_t bytes) noexcept {
  if (!memory) return;
  cudaFree(memory);
  held_ -= device_bytes(bytes);
}

void DeviceMemory::refuse(size_t bytes, const char* purpose, size_t own) const {
  // Others may have taken what the limit would allow.
  size_t free = 0, total = 0;
  if (cudaMemGetInfo(&free, &total) != cudaSuccess) free = 0;
  throw Error(error_code::kInsufficientMemory, "expected to allocate " + std::to_string(bytes) +
                                                   " bytes of GPU memory for " + purpose + " but " +
                                                   std::to_string(std::min(left(), free) + own) +
                                                   " are available");
}

}  // namespace unifluid::cuda
