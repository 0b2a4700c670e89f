// Device memory of one backend: a caching arena over cudaMalloc.
//
// All work of a backend is on one stream, so that a block may be given out again at once: what the
// former owner still has queued runs before what the next one will.
#pragma once

#include <atomic>
#include <cstddef>
#include <limits>
#include <map>
#include <vector>

namespace unifluid::cuda {

class Queue;

class Arena {
 public:
  // `max_memory`: bytes that may be held, given out or not; 0: what the device has.
  Arena(Queue& queue, size_t max_memory);
  ~Arena();
  Arena(const Arena&) = delete;
  Arena& operator=(const Arena&) = delete;

  // Aligned to 256 bytes. Throws INSUFFICIENT_MEMORY.
  void* allocate(size_t bytes);
  void release(void* memory, size_t bytes) noexcept;
  // For as long as the arena lives; small pieces share blocks.
  void* allocate_forever(size_t bytes);

  // Any thread.
  size_t allocated() const { return allocated_; }
  size_t available() const;

 private:
  void* from_device(size_t bytes);
  // At least `wanted` bytes, if there are as many. Nothing may run that uses them.
  void free_cached(size_t wanted = std::numeric_limits<size_t>::max()) noexcept;
  [[noreturn]] void refuse(size_t bytes) const;

  Queue& queue_;
  const size_t limit_;
  std::atomic<size_t> allocated_{0};     // given out
  std::multimap<size_t, void*> cached_;  // released, by size
  size_t cached_bytes_ = 0;
  std::vector<void*> forever_;
  unsigned char* slab_ = nullptr;  // the rest of the latest shared block
  size_t slab_left_ = 0;
};

}  // namespace unifluid::cuda
