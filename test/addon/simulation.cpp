// Kernels that are wrong on purpose, for the tests of the simulated CUDA.
#include <dlfcn.h>

#include "test/addon/helpers.h"
#include "test/simt/defects.h"

namespace unifluid::test {
namespace {

// -> names
Napi::Value list_defects(const Napi::CallbackInfo& info) {
  const std::vector<std::string> names = cuda::defect_names();
  auto list = Napi::Array::New(info.Env(), names.size());
  for (uint32_t i = 0; i < names.size(); ++i) list.Set(i, names[i]);
  return list;
}

// (name, wrong, seed) -> { error, right }
Napi::Value run_defect(const Napi::CallbackInfo& info) {
  const cuda::Outcome outcome = cuda::run_defect(
      info[0].ToString().Utf8Value(), info[1].ToBoolean(), info[2].ToNumber().Uint32Value());
  auto result = Napi::Object::New(info.Env());
  result.Set("error", outcome.error);
  result.Set("right", outcome.right);
  return result;
}

void* open_library(const Napi::Value& path) {
  return dlopen(path.ToString().Utf8Value().c_str(), RTLD_NOW | RTLD_LOCAL);
}

Napi::Value count_of(const Napi::CallbackInfo& info, const char* name) {
  void* library = open_library(info[0]);
  using Count = uint64_t (*)();
  const auto count = library ? reinterpret_cast<Count>(dlsym(library, name)) : nullptr;
  if (!count) throw Napi::Error::New(info.Env(), "no such library");
  return Napi::Number::New(info.Env(), static_cast<double>(count()));
}

// (library) -> how often the host waited for all that a stream had to do
Napi::Value simulation_waits(const Napi::CallbackInfo& info) {
  return count_of(info, "simt_waits");
}

// (library) -> how often a list of launches was captured
Napi::Value simulation_captures(const Napi::CallbackInfo& info) {
  return count_of(info, "simt_captures");
}

// (library, name, value): sets what the simulated library simulates (test/simt/runtime.cpp).
Napi::Value simulate(const Napi::CallbackInfo& info) {
  void* library = open_library(info[0]);
  using Set = bool (*)(const char*, uint64_t);
  const auto set = library ? reinterpret_cast<Set>(dlsym(library, "simt_set")) : nullptr;
  const uint64_t value = static_cast<uint64_t>(info[2].ToNumber().Int64Value());
  if (!set || !set(info[1].ToString().Utf8Value().c_str(), value))
    throw Napi::Error::New(info.Env(), "no such library, or no such setting");
  return info.Env().Undefined();
}

}  // namespace

void export_simulation(Napi::Env env, Napi::Object exports) {
  exports.Set("simulationDefects", Napi::Function::New(env, list_defects));
  exports.Set("simulate", Napi::Function::New(env, simulate));
  exports.Set("simulationWaits", Napi::Function::New(env, simulation_waits));
  exports.Set("simulationCaptures", Napi::Function::New(env, simulation_captures));
  exports.Set("runDefect", Napi::Function::New(env, run_defect));
}

}  // namespace unifluid::test
