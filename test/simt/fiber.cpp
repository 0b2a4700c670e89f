#include "test/simt/fiber.h"

#include <sys/mman.h>

#include <cstdint>
#include <new>

// simt_switch(save, load): pushes what a called function must keep, stores the stack pointer in
// *save, takes the one in `load`, and returns there. ucontext would make two system calls a switch.
#if defined(__x86_64__)
asm(R"(
.text
.p2align 4
.type simt_switch, @function
simt_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size simt_switch, .-simt_switch
.p2align 4
.type simt_begin, @function
simt_begin:
  movq %r12, %rdi
  callq *%r13
  ud2
.size simt_begin, .-simt_begin
)");
#elif defined(__aarch64__)
asm(R"(
.text
.p2align 4
.type simt_switch, %function
simt_switch:
  stp x29, x30, [sp, #-160]!
  stp x19, x20, [sp, #16]
  stp x21, x22, [sp, #32]
  stp x23, x24, [sp, #48]
  stp x25, x26, [sp, #64]
  stp x27, x28, [sp, #80]
  stp d8, d9, [sp, #96]
  stp d10, d11, [sp, #112]
  stp d12, d13, [sp, #128]
  stp d14, d15, [sp, #144]
  mov x9, sp
  str x9, [x0]
  mov sp, x1
  ldp x19, x20, [sp, #16]
  ldp x21, x22, [sp, #32]
  ldp x23, x24, [sp, #48]
  ldp x25, x26, [sp, #64]
  ldp x27, x28, [sp, #80]
  ldp d8, d9, [sp, #96]
  ldp d10, d11, [sp, #112]
  ldp d12, d13, [sp, #128]
  ldp d14, d15, [sp, #144]
  ldp x29, x30, [sp], #160
  ret
.size simt_switch, .-simt_switch
.p2align 4
.type simt_begin, %function
simt_begin:
  mov x0, x19
  blr x20
  brk #1
.size simt_begin, .-simt_begin
)");
#else
#error "the simulated CUDA library knows x86-64 and AArch64"
#endif

extern "C" {
void simt_switch(void** save, void* load);
void simt_begin();
}

namespace simt {
namespace {

// Pages are committed as they are touched. A kernel's locals are small; fragments of a large tile
// take a few KiB.
constexpr size_t kStackBytes = size_t{128} << 10;
constexpr size_t kGuardBytes = size_t{16} << 10;

void* make_stack() {
  void* stack = mmap(nullptr, kStackBytes, PROT_READ | PROT_WRITE,
                     MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (stack == MAP_FAILED) throw std::bad_alloc();
  mprotect(stack, kGuardBytes, PROT_NONE);
  return stack;
}

}  // namespace

Fiber::~Fiber() {
  if (stack_) munmap(stack_, kStackBytes);
}

void Fiber::prepare(void (*entry)(void*), void* argument) {
  if (!stack_) stack_ = make_stack();
  auto* top = reinterpret_cast<uintptr_t*>(static_cast<char*>(stack_) + kStackBytes - 64);
#if defined(__x86_64__)
  // As simt_switch pops them: r15, r14, r13, r12, rbx, rbp, then where to return.
  top -= 7;  // the stack is aligned when simt_begin calls
  top[0] = top[1] = 0;
  top[2] = reinterpret_cast<uintptr_t>(entry);
  top[3] = reinterpret_cast<uintptr_t>(argument);
  top[4] = top[5] = 0;
  top[6] = reinterpret_cast<uintptr_t>(&simt_begin);
#else
  top -= 20;  // x29, x30, x19, x20, ...
  for (int i = 0; i < 20; ++i) top[i] = 0;
  top[1] = reinterpret_cast<uintptr_t>(&simt_begin);
  top[2] = reinterpret_cast<uintptr_t>(argument);
  top[3] = reinterpret_cast<uintptr_t>(entry);
#endif
  at_ = top;
}

void Fiber::resume(void** scheduler) { simt_switch(scheduler, at_); }

void Fiber::pause(void* scheduler) { simt_switch(&at_, scheduler); }

}  // namespace simt
