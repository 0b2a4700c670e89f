#include "cuda/transfer.h"

#include <cstring>

#include "cuda/queue.h"

namespace unifluid::cuda {

// By way of another constructor, after which a failure here leaves a transfer to be destroyed.
Transfer::Transfer(Queue& queue) : Transfer(queue, Empty{}) {
  for (size_t i = 0; i < buffers_.size(); ++i) {
    check(cudaMallocHost(&buffers_[i], kBytes), "allocating pinned memory");
    check(cudaEventCreateWithFlags(&sent_[i], cudaEventDisableTiming), "creating an event");
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
                    "copying to the device");
  return buffers_[static_cast<size_t>(current_)];
}

void Transfer::send(void* device, size_t bytes) {
  const size_t at = static_cast<size_t>(current_);
  queue_.check_work(
      cudaMemcpyAsync(device, buffers_[at], bytes, cudaMemcpyHostToDevice, queue_.stream()),
      "copying to the device");
  queue_.check_work(cudaEventRecord(sent_[at], queue_.stream()), "recording an event");
}

const uint8_t* Transfer::receive(const uint8_t* device, size_t bytes) {
  void* buffer = next_buffer();
  queue_.check_work(cudaMemcpyAsync(buffer, device, bytes, cudaMemcpyDeviceToHost, queue_.stream()),
                    "copying from the device");
  queue_.check_work(cudaStreamSynchronize(queue_.stream()), "copying from the device");
  return static_cast<const uint8_t*>(buffer);
}

void Transfer::download(const void* device, size_t bytes, void* host) {
  download_pieces(device, bytes, [&](const uint8_t* piece, size_t first, size_t count) {
    std::memcpy(static_cast<uint8_t*>(host) + first, piece, count);
  });
}

}  // namespace unifluid::cuda
