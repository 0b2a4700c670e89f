#include "core/memory.h"

#include <algorithm>

namespace unifluid {

namespace {
constexpr size_t kAlignment = 64;
constexpr size_t kSmallestBlock = size_t{1} << 20;
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
    // Doubling keeps the number of blocks small while a first step finds out what it needs, up to a
    // size where the waste would count.
    const size_t grown = std::min(this->bytes(), size_t{64} << 20);
    const size_t wanted = std::max({bytes, grown, kSmallestBlock});
    // What is only for later must not be what memory lacks.
    blocks_.emplace_back(backend_, wanted <= backend_.available() ? wanted : bytes);
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

void Workspace::trim(size_t keep) {
  const size_t total = bytes();
  if (total <= keep && blocks_.size() <= 1) return;
  backend_.synchronize();  // nothing may still be reading them
  blocks_.clear();
  block_ = 0;
  used_ = 0;
  if (total <= keep) blocks_.emplace_back(backend_, total);
}

size_t Workspace::bytes() const {
  size_t total = 0;
  for (const Block& block : blocks_) total += block.bytes();
  return total;
}

}  // namespace unifluid
