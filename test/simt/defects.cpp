#include <array>
#include <map>

#include "cuda/device/cp_async.h"
#include "cuda/device/dependence.h"
#include "cuda/device/exchange.h"
#include "cuda/device/grid.h"
#include "cuda/device/mma.h"
#include "cuda/device/warp.h"
#include "test/simt/defect.h"

namespace unifluid::cuda {
namespace {

// Each thread reads what its neighbour wrote.
void missing_syncthreads(const Arguments& a) {
  SharedArena arena;
  const auto values = arena.take<float>(kThreads);
  values.store(threadIdx.x, a.in[threadIdx.x]);
  if (!a.wrong) __syncthreads();
  a.out[threadIdx.x] = values.load((threadIdx.x + 1) % kThreads);
}

// A barrier between writes and reads, but none before the next writes.
void missing_second_syncthreads(const Arguments& a) {
  SharedArena arena;
  const auto values = arena.take<float>(kThreads);
  float last = a.in[threadIdx.x];
  for (int round = 0; round < 2; ++round) {
    values.store(threadIdx.x, last);
    __syncthreads();
    last = values.load((threadIdx.x + 1) % kThreads);
    if (!a.wrong) __syncthreads();
  }
  a.out[threadIdx.x] = last;
}

// Shuffles do not order memory: lanes need __syncwarp.
void missing_syncwarp(const Arguments& a) {
  SharedArena arena;
  const auto values = arena.take<float>(kThreads);
  values.store(threadIdx.x, a.in[threadIdx.x]);
  if (a.wrong)
    __shfl_sync(kAllLanes, 0, 0);
  else
    __syncwarp();
  a.out[threadIdx.x] = values.load(threadIdx.x ^ 1);
}

void divergent_barrier(const Arguments& a) {
  if (!a.wrong || threadIdx.x < kThreads / 2) __syncthreads();
  a.out[threadIdx.x] = a.in[threadIdx.x];
}

void barrier_at_two_places(const Arguments& a) {
  if (a.wrong && threadIdx.x == 0)
    __syncthreads();
  else
    __syncthreads();
  a.out[threadIdx.x] = a.in[threadIdx.x];
}

void divergent_shuffle(const Arguments& a) {
  float v = a.in[threadIdx.x];
  if (!a.wrong || threadIdx.x % 2 == 0) v = __shfl_xor_sync(kAllLanes, v, 0);
  a.out[threadIdx.x] = v;
}

void shuffles_at_two_places(const Arguments& a) {
  float v = a.in[threadIdx.x];
  if (a.wrong && threadIdx.x % 2 == 0)
    v = __shfl_xor_sync(kAllLanes, v, 0);
  else
    v = __shfl_xor_sync(kAllLanes, v, 0);
  a.out[threadIdx.x] = v;
}

void missing_cp_async_wait(const Arguments& a) {
  SharedArena arena;
  const auto values = arena.take<float>(kThreads);
  if (threadIdx.x < kThreads / 4) cp_async16(values, threadIdx.x * 4, a.in + threadIdx.x * 4, true);
  cp_async_commit();
  if (a.wrong)
    cp_async_wait<1>();  // lets the only group be unfinished
  else
    cp_async_wait<0>();
  __syncthreads();
  a.out[threadIdx.x] = values.load(threadIdx.x);
  cp_async_wait<0>();
}

// It would still write after the block has ended, when its shared memory is another's.
void copy_that_nobody_waits_for(const Arguments& a) {
  SharedArena arena;
  const auto values = arena.take<float>(kThreads);
  if (threadIdx.x < kThreads / 4) cp_async16(values, threadIdx.x * 4, a.in + threadIdx.x * 4, true);
  cp_async_commit();
  if (!a.wrong) cp_async_wait<0>();
  a.out[threadIdx.x] = a.in[threadIdx.x];
}

// Waited for, but other threads read before a barrier.
void missing_barrier_after_cp_async(const Arguments& a) {
  SharedArena arena;
  const auto values = arena.take<float>(kThreads);
  if (threadIdx.x < kThreads / 4) cp_async16(values, threadIdx.x * 4, a.in + threadIdx.x * 4, true);
  cp_async_commit();
  cp_async_wait<0>();
  if (!a.wrong) __syncthreads();
  a.out[threadIdx.x] = values.load((threadIdx.x + 4) % kThreads);
}

void out_of_bounds_read(const Arguments& a) {
  SharedArena arena;
  const auto values = arena.take<float>(kThreads);
  arena.take<float>(kThreads);  // so that the read stays within the block's memory
  values.store(threadIdx.x, a.in[threadIdx.x]);
  __syncthreads();
  a.out[threadIdx.x] = values.load(threadIdx.x + (a.wrong ? 1 : 0));
}

void out_of_bounds_write(const Arguments& a) {
  SharedArena arena;
  const auto values = arena.take<float>(kThreads);
  values.store(threadIdx.x + (a.wrong ? kThreads / 2 : 0), a.in[threadIdx.x]);
  __syncthreads();
  a.out[threadIdx.x] = values.load(threadIdx.x);
}

void more_than_the_launch_has(const Arguments& a) {
  SharedArena arena;
  const auto values = arena.take<float>(a.wrong ? 4 * kThreads : kThreads);
  values.store(threadIdx.x, a.in[threadIdx.x]);
  a.out[threadIdx.x] = values.load(threadIdx.x);
}

void read_of_nothing(const Arguments& a) {
  SharedArena arena;
  const auto values = arena.take<float>(kThreads);
  if (!a.wrong || threadIdx.x > 0) values.store(threadIdx.x, a.in[threadIdx.x]);
  a.out[threadIdx.x] = values.load(threadIdx.x);
}

// A block's value reaches the others only through a barrier of the grid.
void missing_grid_barrier(const Arguments& a) {
  uint32_t round = 0;
  if (blockIdx.x == 1 && threadIdx.x == 0) a.out[kThreads] = a.in[0];
  if (!a.wrong) team_barrier(a.arrivals, gridDim.x, round);
  if (blockIdx.x == 0) a.out[threadIdx.x] = threadIdx.x == 0 ? a.out[kThreads] : a.in[threadIdx.x];
}

void divergent_grid_barrier(const Arguments& a) {
  uint32_t round = 0;
  if (!a.wrong || blockIdx.x == 0) team_barrier(a.arrivals, gridDim.x, round);
  if (blockIdx.x == 0) a.out[threadIdx.x] = a.in[threadIdx.x];
}

// A block waits for a value of a round that the other does not post.
void missing_post(const Arguments& a) {
  Posted* box = reinterpret_cast<Posted*>(a.arrivals);
  if (blockIdx.x == 1) {
    if (threadIdx.x == 0) post(box, a.in[0], a.wrong ? 1 : 2);
    return;
  }
  const float received = receive(box, 2);
  a.out[threadIdx.x] = threadIdx.x == 0 ? received : a.in[threadIdx.x];
}

int twisted(int i, int shift) { return shift == -1 ? i ^ 1 : (i + shift) % int{kThreads}; }

void missing_wait_for_inputs(const Arguments& a) {
  if (threadIdx.x > 0 || !a.wrong) wait_for_inputs();
  a.out[threadIdx.x] = a.in[threadIdx.x];
}

const std::map<std::string, Defect>& defects() {
  static const std::map<std::string, Defect> all = [] {
    std::map<std::string, Defect> all = hopper_defects();
    all.insert({
        {"missing __syncthreads", {missing_syncthreads, 1}},
        {"missing __syncthreads before the next writes", {missing_second_syncthreads, 2}},
        {"missing __syncwarp", {missing_syncwarp, -1}},
        {"divergent barrier", {divergent_barrier, 0}},
        {"barrier at two places", {barrier_at_two_places, 0}},
        {"divergent shuffle", {divergent_shuffle, 0}},
        {"shuffles at two places", {shuffles_at_two_places, 0}},
        {"missing cp.async wait", {missing_cp_async_wait, 0}},
        {"a copy that nobody waits for", {copy_that_nobody_waits_for, 0}},
        {"missing barrier after a cp.async wait", {missing_barrier_after_cp_async, 4}},
        {"out-of-bounds shared read", {out_of_bounds_read, 0}},
        {"out-of-bounds shared write", {out_of_bounds_write, 0}},
        {"more shared memory than the launch has", {more_than_the_launch_has, 0}},
        {"shared memory that nothing wrote", {read_of_nothing, 0}},
        {"missing grid barrier", {missing_grid_barrier, 0, true}},
        {"divergent grid barrier", {divergent_grid_barrier, 0, true}},
        {"missing post", {missing_post, 0, true}},
        {"missing wait for inputs",
         {.kernel = missing_wait_for_inputs, .shift = 0, .dependent = true}},
    });
    return all;
  }();
  return all;
}

}  // namespace

std::vector<std::string> defect_names() {
  std::vector<std::string> names;
  for (const auto& [name, defect] : defects()) names.push_back(name);
  return names;
}

Outcome run_defect(const std::string& name, bool wrong, uint64_t seed) {
  const Defect& defect = defects().at(name);
  alignas(16) std::array<float, kThreads> in;
  std::array<float, kThreads + 1> out;
  for (uint32_t i = 0; i < kThreads; ++i) in[i] = 1.0f + static_cast<float>(i);
  out.fill(-1);
  alignas(8) uint32_t arrivals[2] = {};
  struct Context {
    Arguments arguments;
    void (*kernel)(const Arguments&);
  } context{{wrong, out.data(), in.data(), arrivals}, defect.kernel};
  Outcome outcome;
  outcome.error = simt::run_grid(
      dim3(defect.cooperative ? 2 : 1), dim3(defect.threads), defect.shared, defect.cooperative,
      defect.dependent, seed,
      [](void* pointer) {
        const Context& c = *static_cast<Context*>(pointer);
        c.kernel(c.arguments);
      },
      &context);
  outcome.right = true;
  for (int i = 0; i < int{kThreads}; ++i)
    outcome.right &=
        out[static_cast<size_t>(i)] == in[static_cast<size_t>(twisted(i, defect.shift))];
  return outcome;
}

}  // namespace unifluid::cuda
