#include "cuda/arena.h"

#include <algorithm>
#include <iterator>
#include <limits>
#include <string>

#include "core/error.h"
#include "cuda/queue.h"

namespace unifluid::cuda {
namespace {

constexpr size_t kAlignment = 256;
// Small weights, such as norms, share blocks of this size.
constexpr size_t kSlab = size_t{4} << 20;
// Left to the context: code of kernels that is loaded when they first run, scratch, graphs.
constexpr size_t kReserve = size_t{256} << 20;
constexpr size_t kLargest = std::numeric_limits<size_t>::max() / 2;

size_t device_limit(size_t max_memory) {
  size_t free = 0, total = 0;
  check(cudaMemGetInfo(&free, &total), "to tell its free memory");
  const size_t usable = free > 2 * kReserve ? free - kReserve : free / 2;
  return max_memory ? std::min(max_memory, usable) : usable;
}

// A cached block serves requests of down to seven eighths of its size: sizes are rounded up to
// eighths of their power of two, so that those of one kind of sequence coincide.
size_t size_class(size_t bytes) {
  size_t step = kAlignment;
  while (step * 16 <= bytes) step *= 2;
  return (std::max<size_t>(bytes, 1) + step - 1) / step * step;
}

}  // namespace

Arena::Arena(Queue& queue, size_t max_memory) : queue_(queue), limit_(device_limit(max_memory)) {
  queue.on_shortage([this] { free_cached(); });
}

Arena::~Arena() {
  queue_.on_shortage(nullptr);
  free_cached();
  for (void* memory : forever_) cudaFree(memory);
}

size_t Arena::available() const { return limit_ - std::min<size_t>(limit_, allocated_); }

void Arena::refuse(size_t bytes) const {
  throw Error(error_code::kInsufficientMemory, "expected to allocate " + std::to_string(bytes) +
                                                   " bytes of GPU memory but " +
                                                   std::to_string(available()) + " are available");
}

void Arena::free_cached(size_t wanted) noexcept {
  for (size_t freed = 0; freed < wanted && !cached_.empty();) {
    const auto largest = std::prev(cached_.end());
    freed += largest->first;
    cached_bytes_ -= largest->first;
    cudaFree(largest->second);
    cached_.erase(largest);
  }
}

void* Arena::from_device(size_t bytes) {
  const size_t held = allocated_ + cached_bytes_ + bytes;
  if (held > limit_ && !cached_.empty()) {
    queue_.synchronize();  // what is freed may still be in use
    free_cached(held - limit_);
  }
  void* memory = nullptr;
  cudaError_t status = cudaMalloc(&memory, bytes);
  if (status == cudaErrorMemoryAllocation && !cached_.empty()) {
    queue_.synchronize();
    free_cached();
    status = cudaMalloc(&memory, bytes);
  }
  if (status == cudaErrorMemoryAllocation) {
    cudaGetLastError();  // a failed allocation leaves the device as it was
    refuse(bytes);
  }
  check(status, "to allocate memory");
  return memory;
}

void* Arena::allocate(size_t bytes) {
  if (bytes > kLargest || bytes > available()) refuse(bytes);
  const size_t size = size_class(bytes);
  void* memory;
  if (const auto found = cached_.find(size); found != cached_.end()) {
    memory = found->second;
    cached_.erase(found);
    cached_bytes_ -= size;
  } else {
    memory = from_device(size);
  }
  allocated_ += size;
  return memory;
}

void Arena::release(void* memory, size_t bytes) noexcept {
  if (!memory) return;
  const size_t size = size_class(bytes);
  allocated_ -= size;
  try {
    cached_.emplace(size, memory);
    cached_bytes_ += size;
  } catch (...) {
    cudaFree(memory);  // waits for the device, which is safe if slow
  }
}

void* Arena::allocate_forever(size_t bytes) {
  if (bytes > kLargest || bytes > available()) refuse(bytes);
  const size_t size = (std::max<size_t>(bytes, 1) + kAlignment - 1) / kAlignment * kAlignment;
  if (size > kSlab / 4) {
    forever_.push_back(nullptr);
    forever_.back() = from_device(size);
    allocated_ += size;
    return forever_.back();
  }
  if (size > slab_left_) {
    forever_.push_back(nullptr);
    forever_.back() = from_device(kSlab);
    slab_ = static_cast<unsigned char*>(forever_.back());
    slab_left_ = kSlab;
    allocated_ += kSlab;
  }
  unsigned char* memory = slab_;
  slab_ += size;
  slab_left_ -= size;
  return memory;
}

}  // namespace unifluid::cuda
