// Kernels that are wrong on purpose, for the tests of the simulated CUDA.
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

}  // namespace

void export_simulation(Napi::Env env, Napi::Object exports) {
  exports.Set("simulationDefects", Napi::Function::New(env, list_defects));
  exports.Set("runDefect", Napi::Function::New(env, run_defect));
}

}  // namespace unifluid::test
