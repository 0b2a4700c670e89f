// What kernels see of the thread pool. Plain function pointers, because kernels are compiled per
// instruction set and must not instantiate shared templates (cpu/simd.h).
#pragma once

#include <cstddef>
#include <cstdint>

namespace unifluid::cpu {

class Parallel {
 public:
  // Which thread of the pool runs a task: 0 (the caller's) to threads() - 1.
  using Task = void (*)(void* context, int64_t index, int thread);

  virtual int threads() const = 0;
  // Runs task(context, i, thread) for every i in [0, count), and returns when all have ended. Tasks
  // are handed out in order, one by one. Not reentrant. With one task or one thread: in the caller.
  virtual void run(int64_t count, Task task, void* context) = 0;
  // Waits until all threads() threads of the running call have arrived; only within a `run` whose
  // count is threads(), in which case every thread runs exactly one task.
  virtual void barrier() = 0;
  // Scratch memory of a thread, at least `bytes`, aligned to 64, its contents undefined at the
  // start of each task; it grows and stays. Null where memory is short, and never else: not for 0
  // bytes either.
  virtual void* scratch(int thread, size_t bytes) = 0;

 protected:
  ~Parallel() = default;
};

}  // namespace unifluid::cpu
