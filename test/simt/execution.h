// A functional model of a CUDA grid on the host: each thread a fiber, blocks with shared memory,
// barriers, warps that act together. It finds mistakes that a device would let pass:
//
//  - a barrier that some threads of a block do not reach, or reach at another place
//  - two threads on one element of shared memory, one of them writing, with no barrier between
//  - shared memory read that nothing wrote, or outside of its piece
//  - the target of a cp.async read before its wait
//  - lanes of a warp at different warp-wide operations
//  - threads that wait for what nobody will post
//  - a launch that depends on the one in front of it and does not wait for it
//
// Threads run in an order shuffled by a seed, one at a time, each until it must wait. What a launch
// did wrong is its error, with file and line; the launch ends there.
#pragma once

#include <cstdint>
#include <cstring>
#include <functional>
#include <memory>
#include <string>
#include <unordered_map>
#include <vector>

#include "test/simt/fiber.h"

struct uint3 {
  unsigned x, y, z;
};
struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
};

namespace simt {

struct Place {
  const char* file;
  int line;
};

enum class State : uint8_t {
  ready,
  spinning,
  block_barrier,
  part_barrier,
  warp_operation,
  warpgroup_wait,
  done
};

struct Copy {
  unsigned char* to;
  const unsigned char* from;
  bool valid;
};

// A product that a warpgroup has begun (test/simt/hopper.h): this thread's part.
struct Product {
  float* d;
  int n;
  bool a_in_registers, a_columns, b_columns;
  uint32_t a[4];
  uint64_t a_descriptor, b_descriptor;
};

// A barrier in shared memory, and the copies that complete on it.
struct Mbarrier {
  uint32_t arrivals, missing;  // of a phase; of this one
  int64_t bytes;               // expected, less those that have come
  uint32_t parity;             // of the phase that goes on
  std::vector<std::function<void()>> copies;
};

struct Block;
struct Grid;

struct Thread {
  uint3 index;
  uint32_t linear, lane, warp;
  Block* block;
  State state;
  Place place;
  const void* operation;       // which warp-wide one
  void* payload;               // its operands and results
  std::vector<Copy> copies;    // cp.async, not yet done
  std::vector<size_t> groups;  // copies in each committed group
  size_t uncommitted;
  std::vector<Product> products;  // not yet done; groups as those of copies
  std::vector<size_t> product_groups;
  size_t uncommitted_products;
  bool products_fenced;  // since the latest wait
  uint64_t fence_stamp;  // of its latest fence of the asynchronous proxy
  bool inputs_awaited;
  bool in_part;  // of those who meet at barriers of a part of the block
  Fiber fiber;
};

struct Warp {
  uint64_t epoch;        // counts its __syncwarp
  uint32_t arrived;      // lanes at a warp-wide operation
  uint32_t lanes, gone;  // it has; have ended
};

// What is known of two bytes of shared memory. Epochs are never used twice, so that a new block
// need not clear this.
struct Shadow {
  uint64_t write_epoch = 0, write_warp_epoch = 0;
  uint64_t read_epoch = 0, read_warp_epoch = 0;
  int32_t writer = 0, reader = 0;  // threads; kMany: several of one warp; kManyWarps
  uint32_t reader_warp = 0;
  bool pending = false;  // target of a copy that was not waited for
  bool piped = false;    // written by a copy whose readers wait at a barrier in shared memory
  uint64_t write_stamp = 0;
  uint32_t product_readers = 0;  // products that read it and may still run
};
// The writer of a bulk copy is none of the threads.
inline constexpr int32_t kMany = -1, kManyWarps = -2, kBulkCopy = -3;

struct Block {
  Grid* grid;
  uint3 index;
  uint64_t first_epoch, epoch;  // counts its barriers
  uint32_t arrived, ended;
  uint32_t part_arrived;
  std::vector<Warp> warps;
  std::vector<uint32_t> warpgroups;                // threads of each at its wait
  std::unordered_map<size_t, Mbarrier> mbarriers;  // by their place in shared memory
  unsigned char* shared;
  std::vector<Shadow> shadow;
  std::vector<std::unique_ptr<Thread>> threads;
  std::vector<unsigned char> arena;
};

struct Grid {
  dim3 grid, block;
  size_t shared;
  bool cooperative, dependent;
  uint64_t alive = 0;  // threads that have not ended
  std::string error;
};

// The running thread. Always set while a kernel runs.
extern thread_local Thread* current __attribute__((tls_model("initial-exec")));

// Counts writes to shared memory and fences.
extern thread_local uint64_t next_stamp;

// Ends the launch with an error.
[[noreturn]] void fail(const std::string& what);
void wait(State state, Place place);
void make_ready(Thread& t);
void block_barrier(Place place);
// Of the first `threads` threads of the block: one such part a block. To the check of races it is a
// barrier of all, so that the others may write only what comes by copies that are waited for at a
// barrier in shared memory.
void part_barrier(uint32_t threads, Place place);
// In a launch that may begin before the one in front of it has ended.
void wait_for_inputs();
// Lets others run before the thread looks again for what it waits for.
void spin(Place place);
// Waits until all lanes of `mask` are at this operation; the last one runs combine(payloads).
void warp_operation(uint32_t mask, const void* operation, void* payload,
                    void (*combine)(void* const* payloads, uint32_t mask), Place place);
void sync_warp(uint32_t mask, Place place);

// ---- shared memory ----

[[noreturn]] void fail_shared(const char* what, uint32_t index, uint32_t count);
[[noreturn]] void fail_race(const char* what, const Shadow& shadow);
unsigned char* shared_take(uint32_t at, uint32_t bytes);

inline void shared_bounds(const void*, uint32_t index, uint32_t n, uint32_t count, size_t) {
  if (index + n > count || index + n < index) fail_shared("out of bounds", index, count);
}

inline Shadow* shadow_of(const void* data, uint32_t index, size_t size) {
  Block& block = *current->block;
  const size_t at =
      static_cast<size_t>(static_cast<const unsigned char*>(data) - block.shared) + index * size;
  return block.shadow.data() + at / 2;
}

inline void note_read(Shadow& s) {
  const Thread& t = *current;
  const Block& block = *t.block;
  if (s.pending) fail_race("read before the wait of a copy", s);
  if (s.write_epoch < block.first_epoch) fail_race("read of what nothing wrote", s);
  if (s.piped) return;
  const int32_t me = static_cast<int32_t>(t.linear);
  const uint64_t warp_epoch = block.warps[t.warp].epoch;
  if (s.write_epoch == block.epoch && s.writer != me &&
      (static_cast<uint32_t>(s.writer) / 32 != t.warp || s.write_warp_epoch == warp_epoch))
    fail_race("read without a barrier after a write", s);
  if (s.read_epoch != block.epoch) {
    s.read_epoch = block.epoch;
    s.reader = me;
    s.reader_warp = t.warp;
  } else if (s.reader != me) {
    s.reader = s.reader != kManyWarps && s.reader_warp == t.warp ? kMany : kManyWarps;
  }
  s.read_warp_epoch = warp_epoch;
}

inline void note_write(Shadow& s) {
  if (s.product_readers) fail_race("write while a product may read", s);
  const Thread& t = *current;
  const Block& block = *t.block;
  const int32_t me = static_cast<int32_t>(t.linear);
  const uint64_t warp_epoch = block.warps[t.warp].epoch;
  if (s.write_epoch == block.epoch && s.writer != me &&
      (static_cast<uint32_t>(s.writer) / 32 != t.warp || s.write_warp_epoch == warp_epoch))
    fail_race("write without a barrier after a write", s);
  if (s.read_epoch == block.epoch && s.reader != me &&
      (s.reader == kManyWarps || s.reader_warp != t.warp || s.read_warp_epoch == warp_epoch))
    fail_race("write without a barrier after a read", s);
  s.write_epoch = block.epoch;
  s.write_warp_epoch = warp_epoch;
  s.writer = me;
  s.write_stamp = next_stamp++;
  s.pending = s.piped = false;
}

// A copy begins to write here. Its readers wait at a barrier in shared memory, which says nothing
// to the epochs; what is written must not be in use.
inline void note_piped_write(Shadow& s, int32_t writer) {
  if (s.product_readers) fail_race("write while a product may read", s);
  if (s.pending) fail_race("write before an earlier copy was waited for", s);
  s.writer = writer;
  s.write_epoch = current->block->epoch;
  s.pending = s.piped = true;
}

inline void shared_read(const void* data, uint32_t index, uint32_t n, uint32_t count, size_t size) {
  shared_bounds(data, index, n, count, size);
  Shadow* s = shadow_of(data, index, size);
  for (size_t i = 0; i < (n * size + 1) / 2; ++i) note_read(s[i]);
}
inline void shared_write(const void* data, uint32_t index, uint32_t n, uint32_t count,
                         size_t size) {
  shared_bounds(data, index, n, count, size);
  Shadow* s = shadow_of(data, index, size);
  for (size_t i = 0; i < (n * size + 1) / 2; ++i) note_write(s[i]);
}

// Reads the first and the last of `bytes`, of which there are some.
inline void touch(const void* at, uint32_t bytes) {
  const volatile char* const first = static_cast<const char*>(at);
  (void)first[0];
  (void)first[bytes - 1];
}

// ---- asynchronous copies and tensor cores ----

void cp_async(void* to, const void* from, bool valid);
void make_copy(const Copy& copy);
void cp_async_commit();
void cp_async_wait(size_t pending);
void ldmatrix(uint32_t* out, int matrices, bool transpose, const void* row);
void mma_m16n8k16(float* c, const uint32_t* a, const uint32_t* b);

inline uint16_t bf16_bits(float v) {
  uint32_t bits;
  std::memcpy(&bits, &v, 4);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return static_cast<uint16_t>(bits >> 16 | 0x40);
  return static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}
inline float bf16_value(uint16_t bits) {
  const uint32_t wide = static_cast<uint32_t>(bits) << 16;
  float v;
  std::memcpy(&v, &wide, 4);
  return v;
}

// ---- launches ----

// Runs a grid; `call(context)` is the kernel with its arguments. Returns the error, or nothing.
std::string run_grid(dim3 grid, dim3 block, size_t shared, bool cooperative, bool dependent,
                     uint64_t seed, void (*call)(void* context), void* context);

}  // namespace simt
