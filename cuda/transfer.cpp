#include "cuda/transfer.h"

#include <algorithm>
#include <cstring>

#include "cuda/queue.h"

namespace unifluid::cuda {

// By way of another constructor, after which a failure here leaves a transfer to be destroyed.
Transfer::Transfer(Queue& queue) : Transfer(queue, Empty{}) {
  for (size_t i = 0; i < buffers_.size(); ++i) {
    check(cudaMallocHost(&buffers_[i], kBytes), "to allocate pinned memory");
    check(cudaEventCreateWithFlags(&sent_[i], cudaEventDisableTiming), "to make an event");
  }
}

Transfer::~Transfer() {
  for (cudaEvent_t event : sent_)
    if (event) cudaEventDestroy(event);
  for (void* buffer : buffers_)
    if (buffer) cudaFreeHost(buffer);
}

void Transfer::begin() { queue_.flush(); }

void* Transfer::next_buffer() {
  current_ = 1 - current_;
  queue_.check_work(cudaEventSynchronize(sent_[static_cast<size_t>(current_)]),
                    "to take a transfer");
  return buffers_[static_cast<size_t>(current_)];
}

void Transfer::send(void* device, size_t bytes) {
  const size_t at = static_cast<size_t>(current_);
  queue_.check_work(
      cudaMemcpyAsync(device, buffers_[at], bytes, cudaMemcpyHostToDevice, queue_.stream()),
      "to take a transfer");
  queue_.check_work(cudaEventRecord(sent_[at], queue_.stream()), "to record an event");
}

void Transfer::download(const void* device, size_t bytes, void* host) {
  queue_.flush();
  for (size_t first = 0; first < bytes; first += kBytes) {
    const size_t count = std::min(bytes - first, kBytes);
    void* buffer = next_buffer();
    queue_.check_work(cudaMemcpyAsync(buffer, static_cast<const char*>(device) + first, count,
                                      cudaMemcpyDeviceToHost, queue_.stream()),
                      "to give a transfer");
    queue_.check_work(cudaStreamSynchronize(queue_.stream()), "to give a transfer");
    std::memcpy(static_cast<char*>(host) + first, buffer, count);
  }
}

}  // namespace unifluid::cuda
