// The threads that kernels run on.
//
// Workers are made once. They spin for a moment after a run ends, because the next operation of a
// forward pass follows within microseconds, and then sleep: an idle pool uses no processor time.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <thread>
#include <vector>

#include "cpu/parallel.h"

namespace unifluid::cpu {

class ThreadPool final : public Parallel {
 public:
  // `threads` counts the calling thread, which is thread 0 of every run. Throws DEVICE_ERROR where
  // the system gives no more threads, and std::bad_alloc.
  explicit ThreadPool(int threads);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int threads() const override { return threads_; }
  void run(int64_t count, Task task, void* context) override;
  void barrier() override;
  void* scratch(int thread, size_t bytes) override;

 private:
  struct Scratch {
    void* memory = nullptr;
    size_t bytes = 0;
  };

  void work(int thread);
  // Runs tasks of run `run` until none is left to take.
  void take_tasks(uint32_t run, int thread);
  void stop();

  const int threads_;
  std::vector<std::thread> workers_;
  std::vector<Scratch> scratch_;

  // The run in progress. These change only while the ticket is closed.
  std::atomic<Task> task_{nullptr};
  std::atomic<void*> context_{nullptr};
  std::atomic<int64_t> count_{0};

  // High half: number of the run. Low half: the next task, or kClosed, or kOneEach. A task is taken
  // by replacing the ticket, which fails for a worker that woke up too late for its run; so a run
  // ends when its tasks have, and never waits for a sleeper that got none.
  alignas(64) std::atomic<uint64_t> ticket_;
  alignas(64) std::atomic<int64_t> finished_{0};
  alignas(64) std::atomic<uint32_t> run_{0};  // what workers wait for; the ticket's high half
  alignas(64) std::atomic<int> arrived_{0};
  alignas(64) std::atomic<uint32_t> barriers_{0};
  std::atomic<bool> stopping_{false};
};

}  // namespace unifluid::cpu
