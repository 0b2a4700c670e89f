#include "cuda/readback.h"

#include <algorithm>
#include <cstring>

#include "core/error.h"
#include "cuda/queue.h"

namespace unifluid::cuda {

Readback::~Readback() {
  for (const Piece& piece : pieces_) {
    if (piece.copied) cudaEventDestroy(piece.copied);
    if (piece.pinned) cudaFreeHost(piece.pinned);
  }
}

// A copy that was never finished may still be under way.
void Readback::grow(Piece& piece, size_t count) {
  constexpr size_t kLeast = 1024;
  if (!piece.copied)
    check(cudaEventCreateWithFlags(&piece.copied, cudaEventDisableTiming), "creating an event");
  if (count <= piece.capacity) return;
  const size_t capacity = std::max(kLeast, 2 * count);
  void* pinned = nullptr;
  check(cudaMallocHost(&pinned, capacity * sizeof(int32_t)), "allocating pinned memory");
  if (piece.pinned) {
    cudaEventSynchronize(piece.copied);
    cudaFreeHost(piece.pinned);
  }
  piece.pinned = static_cast<int32_t*>(pinned);
  piece.capacity = capacity;
}

uint64_t Readback::begin(const int32_t* ids, size_t count, int32_t* host) {
  queue_.flush();
  Piece& piece = pieces_[++latest_ % pieces_.size()];
  piece.ticket = 0;
  grow(piece, count);
  queue_.check_work(cudaMemcpyAsync(piece.pinned, ids, count * sizeof(int32_t),
                                    cudaMemcpyDeviceToHost, queue_.stream()),
                    "copying token ids from the device");
  queue_.check_work(cudaEventRecord(piece.copied, queue_.stream()), "recording an event");
  piece.host = host;
  piece.count = count;
  return piece.ticket = latest_;
}

void Readback::finish(uint64_t ticket) {
  Piece& piece = pieces_[ticket % pieces_.size()];
  if (ticket == 0 || piece.ticket != ticket)
    throw Error(error_code::kInternal,
                "finish_read() called with a ticket that is not outstanding");
  piece.ticket = 0;
  queue_.check_work(cudaEventSynchronize(piece.copied), "running a step");
  std::memcpy(piece.host, piece.pinned, piece.count * sizeof(int32_t));
}

}  // namespace unifluid::cuda
