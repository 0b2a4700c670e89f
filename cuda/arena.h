// Device memory of one backend's weights and tensors: a caching arena over its share of the device.
//
// All work of a backend is on one stream, or joined to it (cuda/queue.h), so that a block may be
// given out again at once: what the former owner still has queued runs before what the next one
// will.
#pragma once

#include <atomic>
#include <cstddef>
#include <limits>
#include <map>
#include <utility>
#include <vector>

namespace unifluid::cuda {

class DeviceMemory;
class Queue;

class Arena {
 public:
  Arena(Queue& queue, DeviceMemory& memory);
  ~Arena();
  Arena(const Arena&) = delete;
  Arena& operator=(const Arena&) = delete;

  // Aligned to 256 bytes. Throws INSUFFICIENT_MEMORY.
  void* allocate(size_t bytes);
  void release(void* memory, size_t bytes) noexcept;
  // For as long as the arena lives, in the block of `reserve_forever` as long as that has room.
  void* allocate_forever(size_t bytes);
  // One block for pieces of `bytes` in all, each rounded up to kBlockAlignment (cuda/size_class.h).
  void reserve_forever(size_t bytes);

  // Bytes that can still be allocated: what is kept for reuse counts. Any thread.
  size_t available() const;
  // Bytes that were released and are kept. Any thread.
  size_t cached() const { return cached_bytes_; }

 private:
  void* from_device(size_t bytes, const char* purpose);
  void* block_forever(size_t bytes);
  // At least `wanted` bytes, if there are as many. Nothing may run that uses them.
  void free_cached(size_t wanted = std::numeric_limits<size_t>::max()) noexcept;

  Queue& queue_;
  DeviceMemory& memory_;
  std::multimap<size_t, void*> cached_;  // released, by size
  std::atomic<size_t> cached_bytes_{0};
  std::vector<std::pair<void*, size_t>> forever_;
  unsigned char* slab_ = nullptr;  // the rest of the block of `reserve_forever`
  size_t slab_left_ = 0;
};

}  // namespace unifluid::cuda
