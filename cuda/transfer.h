// Bytes between host and device, through two pinned buffers that take turns: one is filled while
// the other travels.
#pragma once

#include <cuda_runtime.h>

#include <array>
#include <cstddef>
#include <cstdint>

namespace unifluid::cuda {

class Queue;

class Transfer {
 public:
  explicit Transfer(Queue& queue);
  ~Transfer();
  Transfer(const Transfer&) = delete;
  Transfer& operator=(const Transfer&) = delete;

  // Calls fill(to, first, bytes) for pieces of the `bytes` bytes at `device`, in order; pieces
  // begin at multiples of 8 MiB. Returns when all are on their way, behind the launches so far and
  // before those that follow.
  template <class Fill>
  void upload(void* device, size_t bytes, Fill fill) {
    begin();
    for (size_t first = 0; first < bytes; first += kBytes) {
      const size_t count = bytes - first < kBytes ? bytes - first : kBytes;
      fill(next_buffer(), first, count);
      send(static_cast<char*>(device) + first, count);
    }
  }
  // Calls take(from, first, bytes) for pieces, as `upload` does, once the launches so far are over.
  template <class Take>
  void download_pieces(const void* device, size_t bytes, Take take) {
    begin();
    for (size_t first = 0; first < bytes; first += kBytes) {
      const size_t count = bytes - first < kBytes ? bytes - first : kBytes;
      take(receive(static_cast<const uint8_t*>(device) + first, count), first, count);
    }
  }
  // Waits for the launches so far and copies.
  void download(const void* device, size_t bytes, void* host);

 private:
  struct Empty {};
  Transfer(Queue& queue, Empty) : queue_(queue) {}

  static constexpr size_t kBytes = size_t{8} << 20;
  void begin();
  void* next_buffer();
  void send(void* device, size_t bytes);
  const uint8_t* receive(const uint8_t* device, size_t bytes);

  Queue& queue_;
  std::array<void*, 2> buffers_{};
  std::array<cudaEvent_t, 2> sent_{};
  int current_ = 0;
};

}  // namespace unifluid::cuda
