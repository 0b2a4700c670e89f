// Token ids on their way to the host while the device goes on: a ring of pinned pieces, each with
// an event behind its copy.
#pragma once

#include <cuda_runtime.h>

#include <array>
#include <cstddef>
#include <cstdint>

#include "core/backend.h"

namespace unifluid::cuda {

class Queue;

class Readback {
 public:
  explicit Readback(Queue& queue) : queue_(queue) {}
  ~Readback();
  Readback(const Readback&) = delete;
  Readback& operator=(const Readback&) = delete;

  // As Backend::begin_read and finish_read. Issues the launches so far.
  uint64_t begin(const int32_t* ids, size_t count, int32_t* host);
  // Throws DEVICE_ERROR where something before the copy failed.
  void finish(uint64_t ticket);

 private:
  struct Piece {
    int32_t* pinned = nullptr;
    size_t capacity = 0;  // ids
    cudaEvent_t copied = nullptr;
    uint64_t ticket = 0;  // 0: none
    int32_t* host = nullptr;
    size_t count = 0;
  };
  void grow(Piece& piece, size_t count);

  Queue& queue_;
  uint64_t latest_ = 0;
  std::array<Piece, Backend::kOpenReads> pieces_;
};

}  // namespace unifluid::cuda
