#include "core/memory.h"

#include <algorithm>
#include <exception>

#include "core/error.h"

namespace unifluid {

namespace {
constexpr size_t kAlignment = 64;
constexpr size_t kSmallestBlock = size_t{1} << 20;
constexpr size_t kMostForLater = size_t{64} << 20;
}  // namespace

Tensor Workspace::tensor(int64_t rows, int64_t cols, DType type) {
  const size_t bytes =
      (static_cast<size_t>(rows) * static_cast<size_t>(cols) * size_of(type) + kAlignment - 1) /
      kAlignment * kAlignment;
  while (block_ < blocks_.size() && used_ + bytes > blocks_[block_].bytes()) {
    ++block_;
    used_ = 0;
  }
  if (block_ == blocks_.size()) {
    add_block(bytes, std::min(this->bytes(), kMostForLater));
    used_ = 0;
  }
  void* data = static_cast<char*>(blocks_[block_].data()) + used_;
  used_ += bytes;
  return Tensor(data, type, rows, cols);
}

void Workspace::rewind(size_t block, size_t used) {
  block_ = block;
  used_ = used;
}

// Doubling keeps the number of blocks small while a first step finds out what it needs, up to a
// size where the waste would count.
void Workspace::add_block(size_t bytes, size_t wanted) {
  const size_t most = std::max({bytes, wanted, kSmallestBlock});
  // What is only for later must not be what memory lacks.
  const bool fits = backend_.allocated_size(most) <= backend_.available();
  if (fits && most > bytes) {
    try {
      blocks_.emplace_back(backend_, most);
      return;
    } catch (const std::exception& error) {  // what is available others may take
      if (!lacks_memory(error)) throw;
    }
  }
  blocks_.emplace_back(backend_, bytes);
}

void Workspace::reserve(size_t bytes) {
  if (!blocks_.empty() && blocks_.front().bytes() >= bytes) return;
  const size_t held = this->bytes();
  trim(0);
  add_block(bytes, held + std::min(held, kMostForLater));
}

void Workspace::trim(size_t keep) {
  const size_t total = bytes();
  if (total <= keep && blocks_.size() <= 1) return;
  backend_.synchronize();  // nothing may still be reading them
  blocks_.clear();
  block_ = 0;
  used_ = 0;
  if (total > keep) return;
  // Only tidying: whoever needs memory next asks for it, and is told if there is none.
  try {
    blocks_.emplace_back(backend_, total);
  } catch (const std::exception& error) {
    if (!lacks_memory(error)) throw;
  }
}

size_t Workspace::bytes() const {
  size_t total = 0;
  for (const Block& block : blocks_) total += block.bytes();
  return total;
}

}  // namespace unifluid
