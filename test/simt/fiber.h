// Fibers: stacks that take turns on one operating-system thread. Each thread of a simulated block
// is one.
#pragma once

#include <cstddef>

namespace simt {

class Fiber {
 public:
  Fiber() = default;
  ~Fiber();
  Fiber(const Fiber&) = delete;
  Fiber& operator=(const Fiber&) = delete;

  // Makes the fiber begin with entry(argument) when it is switched to. `entry` must not return.
  void prepare(void (*entry)(void*), void* argument);
  // Runs this fiber from the scheduler until it calls `pause`.
  void resume(void** scheduler);
  // Back to the scheduler, from within this fiber.
  void pause(void* scheduler);

 private:
  void* stack_ = nullptr;
  void* at_ = nullptr;  // the stack pointer while it does not run
};

}  // namespace simt
