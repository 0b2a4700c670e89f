#include "cuda/arena.h"

#include <algorithm>
#include <iterator>
#include <limits>

#include "cuda/device_memory.h"
#include "cuda/queue.h"
#include "cuda/size_class.h"

namespace unifluid::cuda {
namespace {

// Small weights, such as norms, share blocks. They double from the first size to the last, so that
// little is left over in a small model and few blocks are needed in a large one.
constexpr size_t kFirstSlab = size_t{256} << 10, kLastSlab = size_t{4} << 20;
constexpr size_t kLargest = std::numeric_limits<size_t>::max() / 2;
constexpr const char* kWeights = "weights";
constexpr const char* kTensors = "caches and activations";

size_t rounded_up(size_t bytes) {
  return (std::max<size_t>(bytes, 1) + kBlockAlignment - 1) / kBlockAlignment * kBlockAlignment;
}

}  // namespace

Arena::Arena(Queue& queue, DeviceMemory& memory)
    : queue_(queue), memory_(memory), next_slab_(kFirstSlab) {
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
  if (bytes > memory_.left() && !cached_.empty()) {
    queue_.synchronize();  // what is freed may still be in use
    free_cached(bytes - memory_.left());
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
  if (bytes > kLargest || bytes > available()) memory_.refuse(bytes, kWeights, cached_bytes_);
  const size_t size = rounded_up(bytes);
  if (size > next_slab_ / 4) return block_forever(size);
  if (size > slab_left_) {
    // The last pieces may be all that there is room for.
    const size_t slab = available() >= next_slab_ ? next_slab_ : size;
    slab_ = static_cast<unsigned char*>(block_forever(slab));
    slab_left_ = slab;
    next_slab_ = std::min(2 * next_slab_, kLastSlab);
  }
  unsigned char* memory = slab_;
  slab_ += size;
  slab_left_ -= size;
  return memory;
}

}  // namespace unifluid::cuda
