#include "test/simt/hopper.h"

#include <array>

namespace simt {
namespace {

constexpr uint32_t kWarpgroup = 128;
constexpr size_t kSwizzleUnit = 1024;  // 8 rows of 128 bytes

size_t place_of(const void* data) {
  return static_cast<size_t>(static_cast<const unsigned char*>(data) - current->block->shared);
}

// Bits 4 to 6 of an address, which 16 bytes of a row, are mixed with bits 7 to 9, which row of 8.
size_t swizzled(size_t at) { return at ^ (at >> 7 & 7) << 4; }

Mbarrier& mbarrier_at(const void* barrier) {
  auto& all = current->block->mbarriers;
  const auto found = all.find(place_of(barrier));
  if (found == all.end()) fail("an mbarrier that was not initialized");
  return found->second;
}

void end_phase_if_complete(Mbarrier& b) {
  if (b.missing > 0 || b.bytes != 0) return;
  b.missing = b.arrivals;
  b.parity ^= 1;
}

}  // namespace

// ---- barriers and copies ----

void mbarrier_init(void* barrier, uint32_t arrivals) {
  if (place_of(barrier) % 8) fail("an mbarrier that is not aligned to 8 bytes");
  current->block->mbarriers[place_of(barrier)] = {arrivals, arrivals, 0, 0, {}};
}

void mbarrier_arrive(void* barrier, uint32_t bytes) {
  Mbarrier& b = mbarrier_at(barrier);
  if (b.missing == 0) fail("more arrivals at an mbarrier than a phase has");
  b.bytes += bytes;
  --b.missing;
  end_phase_if_complete(b);
}

void cp_async_arrive(void* barrier) {
  Thread& t = *current;
  Mbarrier& b = mbarrier_at(barrier);
  b.copies.push_back([copies = std::move(t.copies), &b, block = t.block] {
    for (const Copy& copy : copies) {
      make_copy(copy);
      const auto place = static_cast<size_t>(copy.to - block->shared);
      for (size_t i = 0; i < 8; ++i) {
        Shadow& s = block->shadow[place / 2 + i];
        s.pending = false;
        s.write_stamp = next_stamp++;
      }
    }
    if (b.missing == 0) fail("more arrivals at an mbarrier than a phase has");
    --b.missing;
  });
  t.copies.clear();
  t.groups.clear();
  t.uncommitted = 0;
}

void mbarrier_wait(void* barrier, uint32_t parity, Place place) {
  Mbarrier& b = mbarrier_at(barrier);
  while (b.parity == parity) {
    if (b.copies.empty()) {
      wait(State::spinning, place);
      continue;
    }
    const auto copy = std::move(b.copies.front());
    b.copies.erase(b.copies.begin());
    copy();
    end_phase_if_complete(b);
  }
}

void tensor_copy(void* to, const CUtensorMap* map, std::initializer_list<int> first,
                 void* barrier) {
  constexpr size_t kRowBytes = 128;
  if (place_of(to) % kSwizzleUnit) fail("a swizzled copy to a place not aligned to 1024 bytes");
  if (map->box[0] * 2 != kRowBytes) fail("a map whose rows are not 128 bytes");
  if (first.size() != map->rank) fail("a copy with more or fewer coordinates than its map has");
  const size_t bytes = size_t{map->box_elements()} * 2;
  if (place_of(to) + bytes > current->block->grid->shared) fail("a copy beyond shared memory");
  Shadow* shadow = shadow_of(to, 0, 1);
  for (size_t i = 0; i < bytes / 2; ++i) note_piped_write(shadow[i], kBulkCopy);
  std::memset(to, 0xff, bytes);
  Block* block = current->block;
  const size_t target = place_of(to);
  Mbarrier& b = mbarrier_at(barrier);
  std::array<int64_t, CUtensorMap::kMostDimensions> corner{};
  std::copy(first.begin(), first.end(), corner.begin());
  b.copies.push_back([block, target, bytes, map = *map, corner, &b, shadow] {
    for (uint32_t i = 0; i < map.box_elements(); ++i) {
      const uint32_t place[] = {i % map.box[0], i / map.box[0] % map.box[1],
                                i / map.box[0] / map.box[1]};
      bool inside = true;
      int64_t from = 0;
      for (size_t d = 0; d < CUtensorMap::kMostDimensions; ++d) {
        const int64_t at = corner[d] + place[d];
        inside = inside && at >= 0 && at < map.sizes[d];
        from += at * map.bytes[d];
      }
      unsigned char* element = block->shared + swizzled(target + size_t{i} * 2);
      if (inside)
        std::memcpy(element, map.data + from, 2);
      else
        std::memset(element, 0, 2);
    }
    for (size_t i = 0; i < bytes / 2; ++i) shadow[i].pending = false;
    b.bytes -= static_cast<int64_t>(bytes);
  });
}

void fence_proxy_async() { current->fence_stamp = next_stamp++; }

// ---- products ----

namespace {

// Where in shared memory a descriptor has pieces of 16 bytes: 8 elements along k of one row or
// column, or with `columns` 8 neighbours at one k.
struct Operand {
  size_t start, leading, stride;
  bool swizzle, columns;

  Operand(uint64_t descriptor, bool columns_)
      : start((descriptor & 0x3fff) << 4),
        leading((descriptor >> 16 & 0x3fff) << 4),
        stride((descriptor >> 32 & 0x3fff) << 4),
        swizzle(descriptor >> 62 == 1),
        columns(columns_) {
    if (descriptor >> 62 > 1) fail("a descriptor of a kind of swizzle that is not simulated");
    if (columns && !swizzle) fail("a descriptor of columns without swizzle is not simulated");
  }

  // The piece of row or column `i` that begins at k; with `columns` of i to i + 7.
  size_t piece(size_t i, size_t k) const {
    size_t at = start;
    if (columns)
      at += i / 64 * leading + i % 64 / 8 * 16 + k / 8 * stride + k % 8 * 128;
    else if (swizzle)
      at += i / 8 * stride + i % 8 * 128 + k / 8 * 16;
    else
      at += i / 8 * stride + i % 8 * 16 + k / 8 * leading;
    return swizzle ? swizzled(at) : at;
  }

  // Calls body(place of a piece, i, k) for all of `count` rows or columns.
  template <class Body>
  void each_piece(size_t count, Body body) const {
    for (size_t i = 0; i < count; i += columns ? 8 : 1)
      for (size_t k = 0; k < 16; k += columns ? 1 : 8) body(piece(i, k), i, k);
  }
};

float element(size_t place) {
  uint16_t bits;
  std::memcpy(&bits, current->block->shared + place, 2);
  return bf16_value(bits);
}

void read_operand(const Operand& operand, size_t count, float* to, size_t i_step, size_t k_step) {
  operand.each_piece(count, [&](size_t place, size_t i, size_t k) {
    for (size_t e = 0; e < 8; ++e)
      to[(operand.columns ? i + e : i) * i_step + (operand.columns ? k : k + e) * k_step] =
          element(place + 2 * e);
  });
}

// The reads of all threads of a warpgroup, noted by its first.
void note_product_reads(const Operand& operand, size_t count) {
  Block& block = *current->block;
  operand.each_piece(count, [&](size_t place, size_t, size_t) {
    if (place + 16 > block.grid->shared) fail("a product reads beyond shared memory");
    for (size_t e = 0; e < 8; ++e) {
      Shadow& s = block.shadow[place / 2 + e];
      if (s.pending) fail_race("read by a product before the wait of a copy", s);
      if (s.write_epoch < block.first_epoch) fail_race("read of what nothing wrote", s);
      if (s.writer != kBulkCopy) {
        if (block.threads[static_cast<size_t>(s.writer)]->fence_stamp <= s.write_stamp)
          fail_race("read by a product without a fence of the asynchronous proxy", s);
        if (!s.piped && s.write_epoch == block.epoch)
          fail_race("read by a product without a barrier after a write", s);
      }
      ++s.product_readers;
    }
  });
}

void end_product_reads(const Operand& operand, size_t count) {
  operand.each_piece(count, [&](size_t place, size_t, size_t) {
    for (size_t e = 0; e < 8; ++e) --current->block->shadow[place / 2 + e].product_readers;
  });
}

// The product at `index` of all threads from `first` on.
void run_product(size_t first, size_t index) {
  const auto& threads = current->block->threads;
  const auto part = [&](size_t t) -> const Product& { return threads[first + t]->products[index]; };
  const Product& p = part(0);
  for (size_t t = 1; t < kWarpgroup; ++t) {
    const Product& q = part(t);
    if (q.n != p.n || q.a_in_registers != p.a_in_registers || q.a_columns != p.a_columns ||
        q.b_columns != p.b_columns || q.a_descriptor != p.a_descriptor ||
        q.b_descriptor != p.b_descriptor)
      fail("threads of a warpgroup with different products");
  }
  const size_t n = static_cast<size_t>(p.n);
  std::array<float, 64 * 16> a;
  std::vector<float> b(16 * n), sums(n);
  const Operand b_operand(p.b_descriptor, p.b_columns);
  read_operand(b_operand, n, b.data(), 1, n);
  end_product_reads(b_operand, n);
  if (p.a_in_registers) {
    for (size_t t = 0; t < kWarpgroup; ++t)
      for (size_t i = 0; i < 4; ++i) {
        const size_t row = t / 32 * 16 + t % 32 / 4 + i % 2 * 8, k = t % 4 * 2 + i / 2 * 8;
        a[row * 16 + k] = bf16_value(static_cast<uint16_t>(part(t).a[i]));
        a[row * 16 + k + 1] = bf16_value(static_cast<uint16_t>(part(t).a[i] >> 16));
      }
  } else {
    const Operand a_operand(p.a_descriptor, p.a_columns);
    read_operand(a_operand, 64, a.data(), 16, 1);
    end_product_reads(a_operand, 64);
  }
  // As mma_m16n8k16: the sum over 16 first, each output's k in order. Or in reverse.
  const size_t reverse = rounds_otherwise() ? 15 : 0;
  for (size_t row = 0; row < 64; ++row) {
    std::fill(sums.begin(), sums.end(), 0.0f);
    for (size_t step = 0; step < 16; ++step) {
      const size_t k = step ^ reverse;
      for (size_t c = 0; c < n; ++c) sums[c] += a[row * 16 + k] * b[k * n + c];
    }
    const size_t lane = row / 16 * 32 + row % 8 * 4, half = row % 16 / 8 * 2;
    for (size_t c = 0; c < n; ++c) part(lane + c % 8 / 2).d[c / 8 * 4 + half + c % 2] += sums[c];
  }
}

}  // namespace

void warpgroup_product(float* d, int n, const uint32_t* a, uint64_t a_descriptor, bool a_columns,
                       uint64_t b_descriptor, bool b_columns) {
  Thread& t = *current;
  if (!t.products_fenced) fail("a product without a fence of its warpgroup before it");
  Product p{d, n, a != nullptr, a_columns, b_columns, {}, a_descriptor, b_descriptor};
  if (a) std::memcpy(p.a, a, sizeof p.a);
  t.products.push_back(p);
  ++t.uncommitted_products;
  if (t.linear % kWarpgroup) return;
  note_product_reads(Operand(b_descriptor, b_columns), static_cast<size_t>(n));
  if (!a) note_product_reads(Operand(a_descriptor, a_columns), 64);
}

void warpgroup_fence() { current->products_fenced = true; }

void warpgroup_commit() {
  current->product_groups.push_back(current->uncommitted_products);
  current->uncommitted_products = 0;
}

void warpgroup_wait(size_t pending, Place place) {
  Thread& me = *current;
  Block& block = *me.block;
  const size_t group = me.linear / kWarpgroup, first = group * kWarpgroup;
  if (group >= block.warpgroups.size()) fail("a warpgroup that is not whole");
  me.products_fenced = false;
  if (++block.warpgroups[group] < kWarpgroup) {
    wait(State::warpgroup_wait, place);
    return;
  }
  block.warpgroups[group] = 0;
  size_t done = 0, groups = 0;
  for (; groups + pending < me.product_groups.size(); ++groups) done += me.product_groups[groups];
  for (size_t t = 0; t < kWarpgroup; ++t) {
    const Thread& other = *block.threads[first + t];
    if (other.product_groups != me.product_groups || other.products.size() != me.products.size())
      fail("threads of a warpgroup with different products");
  }
  for (size_t i = 0; i < done; ++i) run_product(first, i);
  for (size_t t = 0; t < kWarpgroup; ++t) {
    Thread& other = *block.threads[first + t];
    other.products.erase(other.products.begin(),
                         other.products.begin() + static_cast<ptrdiff_t>(done));
    other.product_groups.erase(other.product_groups.begin(),
                               other.product_groups.begin() + static_cast<ptrdiff_t>(groups));
    if (&other != &me) make_ready(other);
  }
}

uint64_t shared_address(const void* data) { return place_of(data); }

}  // namespace simt

CUresult cuTensorMapEncodeTiled(CUtensorMap* map, CUtensorMapDataType, cuuint32_t rank, void* data,
                                const cuuint64_t* sizes, const cuuint64_t* strides,
                                const cuuint32_t* box, const cuuint32_t* element_strides,
                                CUtensorMapInterleave, CUtensorMapSwizzle, CUtensorMapL2promotion,
                                CUtensorMapFloatOOBfill) {
  constexpr cuuint64_t kMostSize = cuuint64_t{1} << 32, kMostStride = cuuint64_t{1} << 40;
  if (rank < 2 || rank > CUtensorMap::kMostDimensions || reinterpret_cast<uintptr_t>(data) % 16)
    return CUDA_ERROR_INVALID_VALUE;
  CUtensorMap made{static_cast<const unsigned char*>(data), rank, {1, 1, 1}, {2, 0, 0}, {1, 1, 1}};
  for (cuuint32_t i = 0; i < rank; ++i) {
    if (sizes[i] == 0 || sizes[i] > kMostSize || box[i] == 0 || box[i] > 256 ||
        element_strides[i] != 1)
      return CUDA_ERROR_INVALID_VALUE;
    made.sizes[i] = static_cast<int64_t>(sizes[i]);
    made.box[i] = box[i];
    if (i == 0) continue;
    if (strides[i - 1] % 16 || strides[i - 1] >= kMostStride) return CUDA_ERROR_INVALID_VALUE;
    made.bytes[i] = static_cast<int64_t>(strides[i - 1]);
  }
  if (box[0] * 2 > 128) return CUDA_ERROR_INVALID_VALUE;  // of a swizzle of 128 bytes
  *map = made;
  return CUDA_SUCCESS;
}
