// Memory of a backend with an owner: single blocks, and a workspace for the tensors of one step.
#pragma once

#include <cstddef>
#include <cstdint>
#include <utility>
#include <vector>

#include "core/backend.h"

namespace unifluid {

// One block, released with its owner.
class Block {
 public:
  Block() = default;
  Block(Backend& backend, size_t bytes)
      : backend_(&backend), data_(backend.allocate(bytes)), bytes_(backend.allocated_size(bytes)) {}
  ~Block() { reset(); }
  Block(Block&& other) noexcept { *this = std::move(other); }
  Block& operator=(Block&& other) noexcept {
    if (this != &other) {
      reset();
      backend_ = std::exchange(other.backend_, nullptr);
      data_ = std::exchange(other.data_, nullptr);
      bytes_ = std::exchange(other.bytes_, 0);
    }
    return *this;
  }
  Block(const Block&) = delete;
  Block& operator=(const Block&) = delete;

  void reset() noexcept {
    if (data_) backend_->release(data_, bytes_);
    data_ = nullptr;
    bytes_ = 0;
  }
  void* data() const { return data_; }
  // What it takes: no less than was asked for.
  size_t bytes() const { return bytes_; }

 private:
  Backend* backend_ = nullptr;
  void* data_ = nullptr;
  size_t bytes_ = 0;
};

// Counts host memory that a result will occupy while it is built. Never throws; check
// host_available() first.
class HostShare {
 public:
  HostShare() = default;
  HostShare(Backend& backend, size_t bytes) : backend_(&backend), bytes_(bytes) {
    backend.hold_host(bytes);
  }
  ~HostShare() {
    if (backend_) backend_->release_host(bytes_);
  }
  HostShare(HostShare&& other) noexcept { *this = std::move(other); }
  HostShare& operator=(HostShare&& other) noexcept {
    std::swap(backend_, other.backend_);
    std::swap(bytes_, other.bytes_);
    return *this;
  }
  HostShare(const HostShare&) = delete;
  HostShare& operator=(const HostShare&) = delete;

  // Of them those that are the backend's memory as well.
  size_t backend_bytes() const { return backend_ && backend_->in_host_memory() ? bytes_ : 0; }

 private:
  Backend* backend_ = nullptr;
  size_t bytes_ = 0;
};

// Tensors that live until the scope they were made in ends: a stack over a few large blocks. What a
// step needed stays allocated for the next one, as a single block.
class Workspace {
 public:
  explicit Workspace(Backend& backend) : backend_(backend) {}

  // Uninitialized, in the backend's activation type. Throws INSUFFICIENT_MEMORY.
  Tensor tensor(int64_t rows, int64_t cols) {
    return tensor(rows, cols, backend_.activation_type());
  }
  Tensor tensor(int64_t rows, int64_t cols, DType type);

  // Everything made since is given back when this is destroyed.
  class Scope {
   public:
    explicit Scope(Workspace& workspace)
        : workspace_(workspace), block_(workspace.block_), used_(workspace.used_) {}
    ~Scope() { workspace_.rewind(block_, used_); }
    Scope(const Scope&) = delete;
    Scope& operator=(const Scope&) = delete;

   private:
    Workspace& workspace_;
    size_t block_, used_;
  };

  // Makes room for `bytes` in one contiguous block (allow 64 bytes of alignment per tensor), so a
  // step of that size cannot run out midway. Throws INSUFFICIENT_MEMORY. No scope may be open.
  void reserve(size_t bytes);
  // Gives blocks back to the backend if they exceed `keep` bytes, else makes one of them. No scope
  // may be open.
  void trim(size_t keep);
  size_t bytes() const;

 private:
  friend class Scope;
  void rewind(size_t block, size_t used);
  void add_block(size_t bytes, size_t wanted);

  Backend& backend_;
  std::vector<Block> blocks_;
  size_t block_ = 0;  // the one in use
  size_t used_ = 0;   // bytes of it
};

}  // namespace unifluid
