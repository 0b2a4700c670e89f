#include "test/simt/execution.h"

#include <algorithm>
#include <cstdio>
#include <random>

namespace simt {

thread_local uint64_t next_stamp = 1;
thread_local Thread* current __attribute__((tls_model("initial-exec"))) = nullptr;

namespace {

// The scheduler of this thread's launch.
struct Scheduler {
  void* stack = nullptr;
  std::vector<Thread*> ready;
  void (*call)(void*) = nullptr;
  void* context = nullptr;
};
thread_local Scheduler scheduler;
thread_local uint64_t next_epoch = 1;

std::string text(Place place) {
  // The name of the file is enough; folders differ from machine to machine.
  const std::string file(place.file);
  const size_t slash = file.rfind('/');
  return (slash == std::string::npos ? file : file.substr(slash + 1)) + ":" +
         std::to_string(place.line);
}

std::string name(const Thread& t) {
  const auto triple = [](uint3 v) {
    return std::to_string(v.x) + "," + std::to_string(v.y) + "," + std::to_string(v.z);
  };
  return "block " + triple(t.block->index) + " thread " + triple(t.index);
}

void release_block(Block& block) {
  block.arrived = 0;
  block.epoch = next_epoch++;
  for (auto& t : block.threads)
    if (t->state == State::block_barrier) make_ready(*t);
}

void run_thread(void* argument) {
  Thread& t = *static_cast<Thread*>(argument);
  scheduler.call(scheduler.context);
  if (!t.copies.empty()) fail("the thread ended with a cp.async that it did not wait for");
  if (t.block->grid->dependent && !t.inputs_awaited)
    fail("the thread of a dependent launch ended without a wait for its inputs");
  if (!t.products.empty()) fail("the thread ended with a product that it did not wait for");
  t.state = State::done;
  Block& block = *t.block;
  ++block.ended;
  --block.grid->alive;
  Warp& warp = block.warps[t.warp];
  warp.gone |= 1u << t.lane;
  if (block.arrived > 0 && block.arrived + block.ended == block.threads.size())
    fail("a divergent barrier: this thread ended without it while others wait there");
  t.fiber.pause(scheduler.stack);
}

}  // namespace

void make_ready(Thread& t) {
  t.state = State::ready;
  scheduler.ready.push_back(&t);
}

void fail(const std::string& what) {
  Thread& t = *current;
  if (t.block->grid->error.empty()) t.block->grid->error = what + " (" + name(t) + ")";
  t.state = State::done;
  for (;;) t.fiber.pause(scheduler.stack);
}

void wait(State state, Place place) {
  Thread& t = *current;
  t.state = state;
  t.place = place;
  t.fiber.pause(scheduler.stack);
}

void block_barrier(Place place) {
  Thread& t = *current;
  Block& block = *t.block;
  t.place = place;
  for (const auto& other : block.threads)
    if (other->state == State::block_barrier &&
        (other->place.line != place.line || std::strcmp(other->place.file, place.file) != 0))
      fail("a divergent barrier: this thread is at " + text(place) + ", another at " +
           text(other->place));
    else if (other->state == State::block_barrier)
      break;  // all that wait are at one place
  if (block.ended > 0)
    fail("a divergent barrier at " + text(place) + ": other threads have ended without it");
  ++block.arrived;
  if (block.arrived == block.threads.size()) {
    release_block(block);
    return;
  }
  wait(State::block_barrier, place);
}

void part_barrier(uint32_t threads, Place place) {
  Thread& t = *current;
  Block& block = *t.block;
  if (t.linear >= threads || threads > block.threads.size() || threads % 32)
    fail("a barrier of a part of a block by a thread outside of it, at " + text(place));
  t.place = place;
  t.in_part = true;
  for (const auto& other : block.threads) {
    if (other->state == State::done && other->linear < threads)
      fail("a divergent barrier at " + text(place) + ": other threads have ended without it");
    if (other->state != State::part_barrier) continue;
    if (other->place.line != place.line || std::strcmp(other->place.file, place.file) != 0)
      fail("a divergent barrier: this thread is at " + text(place) + ", another at " +
           text(other->place));
  }
  if (++block.part_arrived < threads) return wait(State::part_barrier, place);
  block.part_arrived = 0;
  block.epoch = next_epoch++;
  for (auto& other : block.threads)
    if (other->state == State::part_barrier) make_ready(*other);
}

void wait_for_inputs() { current->inputs_awaited = true; }

void spin(Place place) {
  if (!current->block->grid->cooperative)
    fail("a wait for other blocks in a launch that is not cooperative");
  wait(State::spinning, place);
}

void warp_operation(uint32_t mask, const void* operation, void* payload,
                    void (*combine)(void* const*, uint32_t), Place place) {
  Thread& t = *current;
  Block& block = *t.block;
  Warp& warp = block.warps[t.warp];
  mask &= warp.lanes;
  if (!(mask >> t.lane & 1)) fail("a warp-wide operation by a lane outside of its mask");
  if (warp.gone & mask) fail("a warp-wide operation with lanes that have ended");
  t.operation = operation;
  t.payload = payload;
  t.place = place;
  Thread* lanes[32] = {};
  for (uint32_t lane = 0; lane < 32; ++lane) {
    if (!(mask >> lane & 1)) continue;
    lanes[lane] = block.threads[t.warp * 32 + lane].get();
    if (!(warp.arrived >> lane & 1)) continue;
    const Place other = lanes[lane]->place;
    if (lanes[lane]->operation != operation || other.line != place.line)
      fail("lanes of a warp at different operations: " + text(place) + " and " + text(other));
  }
  warp.arrived |= 1u << t.lane;
  if ((warp.arrived & mask) != mask) {
    wait(State::warp_operation, place);
    return;
  }
  void* payloads[32] = {};
  for (uint32_t lane = 0; lane < 32; ++lane)
    if (lanes[lane]) payloads[lane] = lanes[lane]->payload;
  if (combine) combine(payloads, mask);
  warp.arrived &= ~mask;
  for (uint32_t lane = 0; lane < 32; ++lane)
    if (lanes[lane] && lanes[lane] != &t) make_ready(*lanes[lane]);
}

namespace {
constexpr char kSyncWarp = 0;
}

void sync_warp(uint32_t mask, Place place) {
  warp_operation(
      mask, &kSyncWarp, nullptr,
      [](void* const*, uint32_t) { current->block->warps[current->warp].epoch = next_epoch++; },
      place);
}

// ---- shared memory ----

void fail_shared(const char* what, uint32_t index, uint32_t count) {
  fail(std::string("shared memory ") + what + ": element " + std::to_string(index) + " of " +
       std::to_string(count));
}

void fail_race(const char* what, const Shadow& shadow) {
  const ptrdiff_t at = &shadow - current->block->shadow.data();
  fail(std::string("shared memory: ") + what + ", byte " + std::to_string(2 * at) +
       ", last written by thread " + std::to_string(shadow.writer));
}

unsigned char* shared_take(uint32_t at, uint32_t bytes) {
  const size_t size = current->block->grid->shared;
  if (size_t{at} + bytes > size)
    fail("shared memory out of bounds: the launch has " + std::to_string(size) +
         " bytes and the kernel takes " + std::to_string(size_t{at} + bytes));
  return current->block->shared + at;
}

// ---- asynchronous copies ----

void cp_async(void* to, const void* from, bool valid) {
  if (reinterpret_cast<uintptr_t>(to) % 16 || (valid && reinterpret_cast<uintptr_t>(from) % 16))
    fail("a cp.async of 16 bytes with an address that is not aligned to them");
  Shadow* s = shadow_of(to, 0, 1);
  const bool piped = !current->block->mbarriers.empty() && !current->in_part;
  for (int i = 0; i < 8; ++i) {
    if (piped)
      note_piped_write(s[i], static_cast<int32_t>(current->linear));
    else
      note_write(s[i]);
    s[i].pending = true;
  }
  std::memset(to, 0xff, 16);
  current->copies.push_back(
      {static_cast<unsigned char*>(to), static_cast<const unsigned char*>(from), valid});
  ++current->uncommitted;
}

void cp_async_commit() {
  current->groups.push_back(current->uncommitted);
  current->uncommitted = 0;
}

void make_copy(const Copy& copy) {
  if (copy.valid)
    std::memcpy(copy.to, copy.from, 16);
  else
    std::memset(copy.to, 0, 16);
}

void cp_async_wait(size_t pending) {
  Thread& t = *current;
  size_t done = 0;
  while (t.groups.size() > pending) {
    done += t.groups.front();
    t.groups.erase(t.groups.begin());
  }
  for (size_t i = 0; i < done; ++i) {
    const Copy& copy = t.copies[i];
    make_copy(copy);
    Shadow* s = shadow_of(copy.to, 0, 1);
    for (int k = 0; k < 8; ++k) {
      s[k].pending = false;
      if (s[k].piped)
        s[k].write_stamp = next_stamp++;
      else
        note_write(s[k]);
    }
  }
  t.copies.erase(t.copies.begin(), t.copies.begin() + static_cast<ptrdiff_t>(done));
}

// ---- tensor cores ----

namespace {

struct MatrixRows {
  const void* row;
  uint32_t* out;
  int matrices;
  bool transpose;
};

void combine_ldmatrix(void* const* payloads, uint32_t) {
  MatrixRows* lanes[32];
  for (int l = 0; l < 32; ++l) lanes[l] = static_cast<MatrixRows*>(payloads[l]);
  for (int m = 0; m < lanes[0]->matrices; ++m) {
    uint16_t matrix[8][8];
    for (int r = 0; r < 8; ++r) std::memcpy(matrix[r], lanes[m * 8 + r]->row, 16);
    for (int l = 0; l < 32; ++l) {
      const int r = l / 4, c = l % 4 * 2;
      const uint32_t low = lanes[l]->transpose ? matrix[c][r] : matrix[r][c];
      const uint32_t high = lanes[l]->transpose ? matrix[c + 1][r] : matrix[r][c + 1];
      lanes[l]->out[m] = low | high << 16;
    }
  }
}

struct WarpProduct {
  float* c;
  const uint32_t *a, *b;
};

float low(uint32_t word) { return bf16_value(static_cast<uint16_t>(word)); }
float high(uint32_t word) { return bf16_value(static_cast<uint16_t>(word >> 16)); }

void combine_mma(void* const* payloads, uint32_t) {
  float a[16][16], b[8][16];
  for (int l = 0; l < 32; ++l) {
    const WarpProduct& p = *static_cast<WarpProduct*>(payloads[l]);
    const int g = l / 4, t = l % 4 * 2;
    for (int half = 0; half < 2; ++half) {
      a[g][t + 8 * half] = low(p.a[2 * half]);
      a[g][t + 8 * half + 1] = high(p.a[2 * half]);
      a[g + 8][t + 8 * half] = low(p.a[2 * half + 1]);
      a[g + 8][t + 8 * half + 1] = high(p.a[2 * half + 1]);
      b[g][t + 8 * half] = low(p.b[half]);
      b[g][t + 8 * half + 1] = high(p.b[half]);
    }
  }
  for (int l = 0; l < 32; ++l) {
    float* c = static_cast<WarpProduct*>(payloads[l])->c;
    const int g = l / 4, t = l % 4 * 2;
    for (int i = 0; i < 4; ++i) {
      const float* row = a[g + 8 * (i / 2)];
      const float* column = b[t + i % 2];
      float sum = 0;
      for (int k = 0; k < 16; ++k) sum += row[k] * column[k];
      c[i] += sum;
    }
  }
}

}  // namespace

void ldmatrix(uint32_t* out, int matrices, bool transpose, const void* row) {
  if (reinterpret_cast<uintptr_t>(row) % 16) fail("a row of ldmatrix that is not aligned to 16");
  MatrixRows payload{row, out, matrices, transpose};
  warp_operation(0xffffffffu, reinterpret_cast<const void*>(&combine_ldmatrix), &payload,
                 combine_ldmatrix, {"ldmatrix", 0});
}

void mma_m16n8k16(float* c, const uint32_t* a, const uint32_t* b) {
  WarpProduct payload{c, a, b};
  warp_operation(0xffffffffu, reinterpret_cast<const void*>(&combine_mma), &payload, combine_mma,
                 {"mma", 0});
}

// ---- launches ----

namespace {

// Blocks whose run is over, for the next ones: shadows need no clearing, stacks are warm.
thread_local std::vector<std::unique_ptr<Block>> spare;

std::unique_ptr<Block> make_block(Grid& grid, uint3 index) {
  std::unique_ptr<Block> block;
  if (spare.empty()) {
    block = std::make_unique<Block>();
  } else {
    block = std::move(spare.back());
    spare.pop_back();
  }
  block->grid = &grid;
  block->index = index;
  block->first_epoch = block->epoch = next_epoch++;
  block->arrived = block->ended = block->part_arrived = 0;
  block->mbarriers.clear();
  // Poison: NaN of both types. A piece's end is the arena's for the bounds of `Shared`.
  constexpr size_t kAlignment = 1024;
  block->arena.assign(grid.shared + kAlignment, 0xff);
  const auto base = reinterpret_cast<uintptr_t>(block->arena.data());
  block->shared = block->arena.data() + (kAlignment - base % kAlignment) % kAlignment;
  if (block->shadow.size() < grid.shared / 2 + 1) block->shadow.resize(grid.shared / 2 + 1);
  const uint32_t count = grid.block.x * grid.block.y * grid.block.z;
  block->warps.assign((count + 31) / 32, Warp{});
  for (uint32_t w = 0; w < block->warps.size(); ++w) {
    const uint32_t lanes = std::min(32u, count - w * 32);
    block->warps[w] = {next_epoch++, 0, lanes == 32 ? 0xffffffffu : (1u << lanes) - 1, 0};
  }
  block->warpgroups.assign(count / 128, 0);
  block->threads.resize(count);
  for (uint32_t i = 0; i < count; ++i) {
    auto& t = block->threads[i];
    if (!t) t = std::make_unique<Thread>();
    t->index = {i % grid.block.x, i / grid.block.x % grid.block.y, i / grid.block.x / grid.block.y};
    t->linear = i;
    t->lane = i % 32;
    t->warp = i / 32;
    t->block = block.get();
    t->uncommitted = 0;
    t->copies.clear();
    t->groups.clear();
    t->products.clear();
    t->product_groups.clear();
    t->uncommitted_products = 0;
    t->products_fenced = false;
    t->fence_stamp = 0;
    t->inputs_awaited = false;
    t->in_part = false;
    t->fiber.prepare(run_thread, t.get());
  }
  return block;
}

void describe_deadlock(Grid& grid, const std::vector<std::unique_ptr<Block>>& blocks) {
  for (const auto& block : blocks)
    for (const auto& t : block->threads)
      if (t->state != State::done) {
        grid.error = "a divergent barrier: " + name(*t) + " waits at " + text(t->place) +
                     " for threads that never come";
        return;
      }
}

// Runs the threads of these blocks to their ends, or to an error.
void run_blocks(Grid& grid, std::vector<std::unique_ptr<Block>>& blocks, std::mt19937_64& random) {
  Scheduler outer = scheduler;
  scheduler.ready.clear();
  for (auto& block : blocks)
    for (auto& t : block->threads) make_ready(*t);
  grid.alive = scheduler.ready.size();
  std::vector<Thread*> turn;
  constexpr int kIdleTurns = 1000;
  int idle = 0;
  while (grid.error.empty()) {
    if (scheduler.ready.empty()) {
      if (grid.alive > 0) describe_deadlock(grid, blocks);
      break;
    }
    turn.swap(scheduler.ready);
    std::shuffle(turn.begin(), turn.end(), random);
    size_t spun = 0;
    for (Thread* t : turn) {
      current = t;
      t->fiber.resume(&scheduler.stack);
      if (!grid.error.empty()) break;
      if (t->state != State::spinning) continue;
      ++spun;
      make_ready(*t);
    }
    // A turn in which all have looked in vain may have brought one of them a step further.
    idle = spun == turn.size() ? idle + 1 : 0;
    if (idle > kIdleTurns && grid.error.empty())
      grid.error =
          name(*turn.front()) + " waits at " + text(turn.front()->place) + " for what nobody posts";
    turn.clear();
  }
  current = nullptr;
  scheduler.ready = std::move(outer.ready);
}

}  // namespace

std::string run_grid(dim3 grid_size, dim3 block_size, size_t shared, bool cooperative,
                     bool dependent, uint64_t seed, void (*call)(void*), void* context) {
  Grid grid{grid_size, block_size, shared, cooperative, dependent, 0, {}};
  std::mt19937_64 random(seed);
  scheduler.call = call;
  scheduler.context = context;
  std::vector<uint3> order;
  for (unsigned z = 0; z < grid_size.z; ++z)
    for (unsigned y = 0; y < grid_size.y; ++y)
      for (unsigned x = 0; x < grid_size.x; ++x) order.push_back({x, y, z});
  std::shuffle(order.begin(), order.end(), random);
  std::vector<std::unique_ptr<Block>> blocks;
  for (size_t i = 0; i < order.size() && grid.error.empty(); ++i) {
    blocks.push_back(make_block(grid, order[i]));
    if (cooperative && i + 1 < order.size()) continue;
    run_blocks(grid, blocks, random);
    if (!grid.error.empty()) break;  // what such a block left behind is not used again
    for (auto& block : blocks) spare.push_back(std::move(block));
    blocks.clear();
  }
  return grid.error;
}

}  // namespace simt
