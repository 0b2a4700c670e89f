// What becomes of the system's memory running out where JavaScript cannot bring it about.
#include <cstdlib>
#include <new>
#include <vector>

#include "core/memory.h"
#include "cpu/thread_pool.h"
#include "test/addon/helpers.h"

namespace {

// Allocations of this thread until one fails; -1: none does.
thread_local int64_t until_failure = -1;

}  // namespace

// The addon's own: its exports hide it from everybody else.
void* operator new(size_t size) {
  const bool fails = until_failure == 0;
  if (until_failure >= 0) --until_failure;
  void* memory = fails ? nullptr : std::malloc(size ? size : 1);
  if (!memory) throw std::bad_alloc();
  return memory;
}
void operator delete(void* memory) noexcept { std::free(memory); }
void operator delete(void* memory, size_t) noexcept { std::free(memory); }

namespace unifluid::test {
namespace {

// threadPoolFailures(threads): in how many places of making a pool memory was found lacking, each
// of them tried once.
Napi::Value thread_pool_failures(const Napi::CallbackInfo& info) {
  const int threads = info[0].ToNumber().Int32Value();
  int failures = 0;
  for (bool made = false; !made;) {
    try {
      until_failure = failures;
      const cpu::ThreadPool pool(threads);
      until_failure = -1;
      made = true;
    } catch (const std::bad_alloc&) {
      ++failures;
    }
  }
  return Napi::Number::New(info.Env(), failures);
}

// lackMemory(): a callback that nothing guards.
Napi::Value lack_memory(const Napi::CallbackInfo&) { throw std::bad_alloc(); }

}  // namespace

// workspace({ pieces, between }): the bytes of a workspace that has given two tensors of `pieces`
// floats, with `between` called between them with the bytes of the backend; and after tidying it.
Napi::Value workspace(Call& call) {
  const std::vector<double> pieces = numbers(call.arguments.Get("pieces"));
  const Napi::Env env = call.arguments.Env();
  Workspace workspace(call.backend);
  workspace.tensor(1, static_cast<int64_t>(pieces.at(0)), DType::f32);
  const double allocated = static_cast<double>(call.backend.allocated());
  call.arguments.Get("between").As<Napi::Function>().Call({Napi::Number::New(env, allocated)});
  workspace.tensor(1, static_cast<int64_t>(pieces.at(1)), DType::f32);
  Napi::Object result = Napi::Object::New(env);
  result.Set("grown", static_cast<double>(workspace.bytes()));
  workspace.trim(workspace.bytes());
  result.Set("tidied", static_cast<double>(workspace.bytes()));
  return result;
}

void export_shortage(Napi::Env env, Napi::Object exports) {
  exports.Set("threadPoolFailures", Napi::Function::New(env, thread_pool_failures));
  exports.Set("lackMemory", Napi::Function::New(env, lack_memory));
}

}  // namespace unifluid::test
