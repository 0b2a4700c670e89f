#include "cuda/arena.h"

#include <algorithm>
#include <iterator>
#include <limits>

#include "cuda/device_memory.h"
#include "cuda/queue.h"
#include "cuda/size_class.h"

namespace unifluid::cuda {
namespace {

constexpr size_t kLargest = std::numeric_limits<size_t>::max() / 2;
constexpr const char* kWeights = "weights";
constexpr const char* kTensors = "caches and activations";

}  // namespace

Arena::Arena(Queue& queue, DeviceMemory& memory) : queue_(queue), memory_(memory) {
  queue.on_shortage([this] { free_cached(); });
}

Arena::~Arena() {
  queue_.on_shortage(nullptr);
  free_cached();
  for (const auto& [block, bytes] : forever_) memory_.release(block, bytes);
}

size_t Arena::available() const { return memory_.left() + cached_bytes_; }

void Arena::free_cached(size_t wanted) noexcept {
  for (size_t freed = 0; freed < wanted && !cached_.empty();) {
    const auto largest = std::prev(cached_.end());
    freed += largest->first;
    cached_bytes_ -= largest->first;
    memory_.release(largest->second, largest->first);
    cached_.erase(largest);
  }
}

void* Arena::from_device(size_t bytes, const char* purpose) {
  const size_t taken = device_bytes(bytes);
  if (taken > memory_.left() && !cached_.empty()) {
    queue_.synchronize();  // what is freed may still be in use
    free_cached(taken - memory_.left());
  }
  void* memory = memory_.allocate(bytes);
  if (!memory && !cached_.empty()) {
    queue_.synchronize();
    free_cached();
    memory = memory_.allocate(bytes);
  }
  if (!memory) memory_.refuse(bytes, purpose, cached_bytes_);
  return memory;
}

void* Arena::allocate(size_t bytes) {
  if (bytes > kLargest || bytes > available()) memory_.refuse(bytes, kTensors, cached_bytes_);
  const size_t size = size_class(bytes);
  if (const auto found = cached_.find(size); found != cached_.end()) {
    void* memory = found->second;
    cached_.erase(found);
    cached_bytes_ -= size;
    return memory;
  }
  return from_device(size, kTensors);
}

void Arena::release(void* memory, size_t bytes) noexcept {
  if (!memory) return;
  const size_t size = size_class(bytes);
  try {
    cached_.emplace(size, memory);
    cached_bytes_ += size;
  } catch (...) {
    // It stays held. Freeing it would not be safe: cudaFree waits for what the device was given,
    // not for launches that are gathered and not issued yet.
  }
}

void* Arena::block_forever(size_t bytes) {
  forever_.push_back({nullptr, bytes});
  forever_.back().first = from_device(bytes, kWeights);
  return forever_.back().first;
}

void* Arena::allocate_forever(size_t bytes) {
  if (bytes > kLargest) memory_.refuse(bytes, kWeights, cached_bytes_);
  const size_t size = rounded_up(std::max<size_t>(bytes, 1), kBlockAlignment);
  if (size > slab_left_) return block_forever(size);
  unsigned char* memory = slab_;
  slab_ += size;
  slab_left_ -= size;
  return memory;
}

void Arena::reserve_forever(size_t bytes) {
  if (bytes > kLargest) memory_.refuse(bytes, kWeights, cached_bytes_);
  slab_ = static_cast<unsigned char*>(block_forever(bytes));
  slab_left_ = bytes;
}

}  // namespace unifluid::cuda
