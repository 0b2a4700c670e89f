#include "cpu/thread_pool.h"

#include <chrono>
#include <cstdlib>
#include <string>
#include <system_error>

#include "core/error.h"
#include "cpu/system_memory.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace unifluid::cpu {
namespace {

constexpr uint32_t kClosed = 0xffffffffu;   // no task may be taken
constexpr uint32_t kOneEach = 0xfffffffeu;  // thread i runs task i

// How long a worker looks for the next run before it sleeps. Waking a sleeper costs about as much.
constexpr std::chrono::microseconds kSpin{60};

inline void pause() {
#if defined(__x86_64__)
  _mm_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

// Looks before giving way. What a barrier waits for comes within a microsecond, or else the other
// thread has no processor: if it waits for ours, every further look is lost time. (Sampling an
// image token with both threads on one processor beside a busy neighbour: 17 ms at 4096, 2.0 at
// 256, 1.2 at 64. Alone: 0.37 at any of them.)
constexpr int kPauses = 64;

// Waits for something that another running thread is about to do; after a while it gives way.
template <class Condition>
void spin_until(Condition condition) {
  for (int i = 0; !condition(); ++i) {
    if (i < kPauses)
      pause();
    else
      std::this_thread::yield();
  }
}

constexpr uint64_t make_ticket(uint32_t run, uint32_t next) {
  return (static_cast<uint64_t>(run) << 32) | next;
}

}  // namespace

ThreadPool::ThreadPool(int threads)
    : threads_(threads < 1 ? 1 : threads), ticket_(make_ticket(0, kClosed)) {
  scratch_.resize(static_cast<size_t>(threads_));
  workers_.reserve(static_cast<size_t>(threads_ - 1));
  try {
    for (int i = 1; i < threads_; ++i) workers_.emplace_back([this, i] { work(i); });
  } catch (const std::system_error& error) {
    const std::string started = std::to_string(workers_.size() + 1);
    stop();
    throw Error(error_code::kDevice, "expected " + std::to_string(threads_) +
                                         " threads but the system gave " + started + ": " +
                                         error.what());
  } catch (...) {  // such as memory: threads that have begun must be joined
    stop();
    throw;
  }
}

ThreadPool::~ThreadPool() {
  stop();
  for (const Scratch& scratch : scratch_) std::free(scratch.memory);
}

void ThreadPool::stop() {
  stopping_.store(true);
  run_.fetch_add(1);
  run_.notify_all();
  for (std::thread& worker : workers_) worker.join();
  workers_.clear();
}

void ThreadPool::run(int64_t count, Task task, void* context) {
  if (threads_ == 1 || count <= 1) {
    for (int64_t i = 0; i < count; ++i) task(context, i, 0);
    return;
  }
  const uint32_t run = run_.load(std::memory_order_relaxed) + 1;
  const bool one_each = count == threads_;
  ticket_.store(make_ticket(run, kClosed), std::memory_order_seq_cst);
  // Release: a worker that sees one of these also sees that the ticket was closed before.
  task_.store(task, std::memory_order_release);
  context_.store(context, std::memory_order_release);
  count_.store(count, std::memory_order_release);
  finished_.store(0, std::memory_order_relaxed);
  ticket_.store(make_ticket(run, one_each ? kOneEach : 0), std::memory_order_seq_cst);
  run_.store(run, std::memory_order_seq_cst);
  run_.notify_all();
  take_tasks(run, 0);
  spin_until([&] { return finished_.load(std::memory_order_acquire) == count; });
}

void ThreadPool::take_tasks(uint32_t run, int thread) {
  uint64_t ticket = ticket_.load(std::memory_order_acquire);
  for (;;) {
    const uint32_t next = static_cast<uint32_t>(ticket);
    if (static_cast<uint32_t>(ticket >> 32) != run || next == kClosed) return;
    // If another run has begun since the ticket was read, these may be its values. Then the ticket
    // is seen closed, or later still, and the exchange below fails.
    const int64_t count = count_.load(std::memory_order_acquire);
    const Task task = task_.load(std::memory_order_acquire);
    void* const context = context_.load(std::memory_order_acquire);
    if (next == kOneEach) {
      // The run cannot end without this thread, so the values are its own.
      task(context, thread, thread);
      finished_.fetch_add(1, std::memory_order_acq_rel);
      return;
    }
    if (next >= count) return;
    if (!ticket_.compare_exchange_weak(ticket, ticket + 1, std::memory_order_acq_rel,
                                       std::memory_order_acquire))
      continue;
    task(context, next, thread);
    finished_.fetch_add(1, std::memory_order_acq_rel);
    ticket = ticket_.load(std::memory_order_acquire);
  }
}

void ThreadPool::work(int thread) {
  uint32_t seen = 0;
  for (;;) {
    const auto until = std::chrono::steady_clock::now() + kSpin;
    while (run_.load(std::memory_order_acquire) == seen) {
      for (int i = 0; i < 32; ++i) pause();
      if (std::chrono::steady_clock::now() > until) {
        run_.wait(seen, std::memory_order_acquire);
        break;
      }
    }
    const uint32_t run = run_.load(std::memory_order_acquire);
    if (stopping_.load()) return;
    if (run == seen) continue;
    seen = run;
    take_tasks(run, thread);
  }
}

void ThreadPool::barrier() {
  if (threads_ == 1) return;
  const uint32_t number = barriers_.load(std::memory_order_relaxed);
  if (arrived_.fetch_add(1, std::memory_order_acq_rel) + 1 == threads_) {
    arrived_.store(0, std::memory_order_relaxed);
    barriers_.store(number + 1, std::memory_order_release);
  } else {
    spin_until([&] { return barriers_.load(std::memory_order_acquire) != number; });
  }
}

void* ThreadPool::scratch(int thread, size_t bytes) {
  Scratch& scratch = scratch_[static_cast<size_t>(thread)];
  if (bytes > scratch.bytes || !scratch.memory) {
    std::free(scratch.memory);
    scratch.memory = allocate_aligned(bytes);
    scratch.bytes = scratch.memory ? bytes : 0;
  }
  return scratch.memory;
}

}  // namespace unifluid::cpu
