// Bulk copies, barriers in shared memory and products of warpgroups, used wrong.
#include "cuda/device/cp_async.h"
#include "cuda/device/mbarrier.h"
#include "cuda/device/warp.h"
#include "cuda/device/wgmma.h"
#include "test/simt/defect.h"

namespace unifluid::cuda {
namespace {

// ---- copies: two rows of 128 bytes, which are the floats of `in` ----

CUtensorMap map_of(const float* in) {
  return {reinterpret_cast<const unsigned char*>(in),
          2,
          {kBoxColumns, 2, 1},
          {2, 128, 0},
          {kBoxColumns, 2, 1}};
}
constexpr uint32_t kBoxBytes = 2 * 128;
constexpr uint32_t kBox = kBoxBytes / sizeof(bf16);

// Float i of the box: pieces of 4 floats are swizzled.
float box_float(const Shared<bf16>& box, uint32_t i) {
  const uint32_t row = i / 32, column = i % 32 * 2;
  const uint32_t at = swizzled(row, column);
  const uint32_t low = box.load(at).bits, high = box.load(at + 1).bits;
  return __uint_as_float(low | high << 16);
}

void copy_and_read(const Arguments& a, bool wait, uint32_t bytes) {
  SharedArena arena;
  const auto box = arena.take<bf16>(kBox);
  const auto barriers = arena.take<uint64_t>(1);
  if (threadIdx.x == 0) mbarrier_init(barriers, 0, 1);
  __syncthreads();
  const CUtensorMap map = map_of(a.in);
  if (threadIdx.x == 0) {
    mbarrier_arrive_expecting(barriers, 0, bytes);
    copy_box(box, 0, map, 0, 0, barriers, 0);
  }
  __syncthreads();
  if (wait) mbarrier_wait(barriers, 0, 0);
  a.out[threadIdx.x] = box_float(box, threadIdx.x);
}
void missing_wait_for_a_copy(const Arguments& a) { copy_and_read(a, !a.wrong, kBoxBytes); }
void bytes_that_never_come(const Arguments& a) {
  copy_and_read(a, true, a.wrong ? 2 * kBoxBytes : kBoxBytes);
}

// ---- a block of two kinds of warps ----

using Part = FirstThreads<kThreads / 2>;
bool in_part() { return threadIdx.x < Part::kCount; }

// The others copy, and arrive when their copies are done; the part waits for that.
void missing_wait_for_an_arrival(const Arguments& a) {
  SharedArena arena;
  const auto values = arena.take<float>(kThreads);
  const auto barriers = arena.take<uint64_t>(1);
  if (threadIdx.x == 0) mbarrier_init(barriers, 0, kThreads - Part::kCount);
  __syncthreads();
  if (!in_part()) {
    const uint32_t piece = threadIdx.x - Part::kCount;
    if (piece < kThreads / 4) cp_async16(values, piece * 4, a.in + piece * 4, true);
    cp_async_arrive(barriers, 0);
    return;
  }
  if (!a.wrong) mbarrier_wait(barriers, 0, 0);
  for (uint32_t i = threadIdx.x; i < kThreads; i += Part::kCount) a.out[i] = values.load(i);
}

// A ring of one place, which the others fill with one half of `in` after the other.
void read_ring(const Arguments& a, bool wait_until_free, bool read_before_free) {
  SharedArena arena;
  const auto values = arena.take<float>(Part::kCount);
  const auto full = arena.take<uint64_t>(1), free = arena.take<uint64_t>(1);
  if (threadIdx.x == 0) {
    mbarrier_init(full, 0, kThreads - Part::kCount);
    mbarrier_init(free, 0, Part::kCount);
  }
  __syncthreads();
  RingPlace<1> place;
  for (uint32_t first = 0; first < kThreads; first += Part::kCount, place.advance()) {
    if (!in_part()) {
      if (wait_until_free) mbarrier_wait(free, 0, place.parity ^ 1);
      const uint32_t i = (threadIdx.x - Part::kCount) * 4;
      if (i < Part::kCount) cp_async16(values, i, a.in + first + i, true);
      cp_async_arrive(full, 0);
      continue;
    }
    mbarrier_wait(full, 0, place.parity);
    if (!read_before_free) mbarrier_arrive(free, 0);
    __syncwarp();
    a.out[first + threadIdx.x] = values.load(threadIdx.x);
    __syncwarp();
    if (read_before_free) mbarrier_arrive(free, 0);
  }
}
void missing_wait_for_a_free_place(const Arguments& a) { read_ring(a, !a.wrong, true); }
void place_freed_before_it_is_read(const Arguments& a) { read_ring(a, true, !a.wrong); }

// The part exchanges values; the others come by no barrier of it.
void exchange_in_part(const Arguments& a, bool meet, bool all_come) {
  SharedArena arena;
  const auto values = arena.take<float>(kThreads);
  if (!in_part()) return;
  for (uint32_t i = threadIdx.x; i < kThreads; i += Part::kCount) values.store(i, a.in[i]);
  if (!all_come && threadIdx.x == 5) return;
  if (meet) Part::meet();
  for (uint32_t i = threadIdx.x; i < kThreads; i += Part::kCount)
    a.out[i] = values.load((i + 1) % kThreads);
}
void missing_barrier_of_a_part(const Arguments& a) { exchange_in_part(a, !a.wrong, true); }
void divergent_barrier_of_a_part(const Arguments& a) { exchange_in_part(a, true, !a.wrong); }

// ---- products: the transpose of `in`, as the identity times a tile of eight rows ----

struct Product {
  FragmentA identity;  // [64, 16]
  FragmentC sums[1] = {};

  Product() {
    // Of warp 0, whose rows are 0 to 15: 1 in x[0] and x[3] where the row is the column.
    const uint32_t lane = threadIdx.x % 32, pair = lane % 4 * 2;
    const uint32_t one = threadIdx.x >= 32      ? 0u
                         : lane / 4 == pair     ? 0x3f80u
                         : lane / 4 == pair + 1 ? 0x3f800000u
                                                : 0u;
    identity = {{one, 0, 0, one}};
  }
  // in[i] where output i takes it from.
  static void fill(const Shared<bf16>& tile, const float* in) {
    if (threadIdx.x >= kThreads) return;
    const uint32_t lane = threadIdx.x % 32, half = threadIdx.x / 32;
    const uint32_t n = lane % 4 * 2, k = lane / 4 + 8 * half;
    for (uint32_t other = 0; other < 2; ++other)
      tile.store(k / 8 * 64 + (n + other) * 8 + k % 8, from_float<bf16>(in[threadIdx.x]));
  }
  void begin(const Shared<bf16>& tile) {
    warpgroup_mma<false>(sums, identity, descriptor::of_eight_rows(tile));
  }
  void store(float* out) const {
    if (threadIdx.x >= 32) return;
    out[threadIdx.x] = sums[0].x[0];
    out[32 + threadIdx.x] = sums[0].x[2];
  }
};
constexpr uint32_t kTile = 8 * 16;

struct Steps {
  bool proxy_fence = true, barrier = true, fence = true;
  bool wait = true, store_first = false;
  bool one_differs = false, half_leaves = false;
};
void multiply(const Arguments& a, Steps steps) {
  SharedArena arena;
  const auto tile = arena.take<bf16>(kTile), twin = arena.take<bf16>(kTile);
  Product::fill(tile, a.in);
  Product::fill(twin, a.in);
  if (steps.proxy_fence) fence_async_proxy();
  if (steps.barrier) __syncthreads();
  if (steps.half_leaves && threadIdx.x >= kWarpgroup / 2) return;
  Product product;
  if (steps.fence) warpgroup_fence();
  product.begin(steps.one_differs && threadIdx.x == 5 ? twin : tile);
  warpgroup_commit();
  if (steps.store_first) product.store(a.out);
  if (steps.wait) warpgroup_wait<0>();
  if (!steps.store_first) product.store(a.out);
}
void missing_proxy_fence(const Arguments& a) { multiply(a, {.proxy_fence = !a.wrong}); }
void missing_barrier(const Arguments& a) { multiply(a, {.barrier = !a.wrong}); }
void missing_fence(const Arguments& a) { multiply(a, {.fence = !a.wrong}); }
void missing_wait(const Arguments& a) { multiply(a, {.wait = !a.wrong}); }
void accumulators_too_early(const Arguments& a) { multiply(a, {.store_first = a.wrong}); }
void different_products(const Arguments& a) { multiply(a, {.one_differs = a.wrong}); }
void half_of_a_warpgroup(const Arguments& a) { multiply(a, {.half_leaves = a.wrong}); }

// The tile is written again by cp.async; the product that reads it must have been waited for.
void copy_over_a_product(const Arguments& a) {
  SharedArena arena;
  const auto tile = arena.take<bf16>(kTile);
  const auto barriers = arena.take<uint64_t>(1);
  Product::fill(tile, a.in);
  if (threadIdx.x == 0) mbarrier_init(barriers, 0, 1);
  fence_async_proxy();
  __syncthreads();
  Product product;
  warpgroup_fence();
  product.begin(tile);
  warpgroup_commit();
  if (!a.wrong) warpgroup_wait<0>();
  __syncthreads();
  if (threadIdx.x < kTile / 8)
    cp_async16(tile, threadIdx.x * 8, reinterpret_cast<const bf16*>(a.in), true);
  cp_async_commit();
  cp_async_wait<0>();
  if (a.wrong) warpgroup_wait<0>();
  product.store(a.out);
}

Defect by_a_warpgroup(void (*kernel)(const Arguments&)) {
  return {kernel, 0, false, kWarpgroup, 1024};
}

}  // namespace

std::map<std::string, Defect> hopper_defects() {
  return {
      {"missing wait for a bulk copy", {missing_wait_for_a_copy, 0}},
      {"bytes that never come", {bytes_that_never_come, 0}},
      {"missing wait for an arrival of copies", {missing_wait_for_an_arrival, 0}},
      {"missing wait for a free place", {missing_wait_for_a_free_place, 0}},
      {"a place freed before it is read", {place_freed_before_it_is_read, 0}},
      {"missing barrier of a part", {missing_barrier_of_a_part, 1}},
      {"divergent barrier of a part", {divergent_barrier_of_a_part, 1}},
      {"a copy over what a product reads", by_a_warpgroup(copy_over_a_product)},
      {"missing fence of the asynchronous proxy", by_a_warpgroup(missing_proxy_fence)},
      {"missing barrier before a product", by_a_warpgroup(missing_barrier)},
      {"missing fence before a product", by_a_warpgroup(missing_fence)},
      {"missing wait for a product", by_a_warpgroup(missing_wait)},
      {"accumulators before the wait", by_a_warpgroup(accumulators_too_early)},
      {"different products of a warpgroup", by_a_warpgroup(different_products)},
      {"half of a warpgroup", by_a_warpgroup(half_of_a_warpgroup)},
  };
}

}  // namespace unifluid::cuda
