// Draws and schedules of core/, which need no backend.
#include "core/noise.h"
#include "core/philox.h"
#include "core/schedule.h"
#include "test/addon/helpers.h"

namespace unifluid::test {
namespace {

// (seed, c0, c1, c2, c3) -> Uint32Array [4]
Napi::Value philox(const Napi::CallbackInfo& info) {
  uint32_t counter[4];
  for (int i = 0; i < 4; ++i) counter[i] = info[i + 1].ToNumber().Uint32Value();
  const PhiloxWords words =
      philox4x32(seed_of(info[0]), counter[0], counter[1], counter[2], counter[3]);
  auto out = Napi::Uint32Array::New(info.Env(), 4);
  for (int i = 0; i < 4; ++i) out[i] = words.word[i];
  return out;
}

// (seed, n) -> Int32Array [n]
Napi::Value order(const Napi::CallbackInfo& info) {
  const std::vector<int32_t> cells =
      random_order(seed_of(info[0]), info[1].ToNumber().Int32Value());
  auto out = Napi::Int32Array::New(info.Env(), cells.size());
  for (size_t i = 0; i < cells.size(); ++i) out[i] = cells[i];
  return out;
}

// (seed, index) -> number
Napi::Value text(const Napi::CallbackInfo& info) {
  return Napi::Number::New(info.Env(),
                           text_uniform(seed_of(info[0]), info[1].ToNumber().Uint32Value()));
}

// (seed, cell, channels, step?) -> Float32Array [channels]; without a step the starting noise
Napi::Value noise(const Napi::CallbackInfo& info) {
  const uint64_t seed = seed_of(info[0]);
  const int32_t cell = info[1].ToNumber().Int32Value();
  const int64_t channels = info[2].ToNumber().Int64Value();
  auto out = Napi::Float32Array::New(info.Env(), static_cast<size_t>(channels));
  if (info[3].IsUndefined())
    start_noise(seed, cell, channels, out.Data());
  else
    step_noise(seed, cell, info[3].ToNumber().Int64Value(), channels, out.Data());
  return out;
}

Napi::Value as_list(Napi::Env env, const std::vector<DiffusionStep>& steps) {
  auto list = Napi::Array::New(env);
  for (size_t i = 0; i < steps.size(); ++i) {
    const DiffusionStep& step = steps[i];
    auto item = Napi::Object::New(env);
    item.Set("time", step.time);
    item.Set("recip", step.recip);
    item.Set("recipm1", step.recipm1);
    item.Set("coefX0", step.coef_x0);
    item.Set("coefX", step.coef_x);
    item.Set("logBeta", step.log_beta);
    item.Set("logTilde", step.log_tilde);
    item.Set("tau", step.tau);
    item.Set("noise", step.noise);
    list.Set(static_cast<uint32_t>(i), item);
  }
  return list;
}

// (total, steps) -> [DiffusionStep]
template <std::vector<DiffusionStep> (*make)(int64_t, int64_t)>
Napi::Value schedule(const Napi::CallbackInfo& info) {
  return as_list(info.Env(),
                 make(info[0].ToNumber().Int64Value(), info[1].ToNumber().Int64Value()));
}

}  // namespace

void export_randomness(Napi::Env env, Napi::Object exports) {
  exports.Set("philox", Napi::Function::New(env, philox));
  exports.Set("randomOrder", Napi::Function::New(env, order));
  exports.Set("textUniform", Napi::Function::New(env, text));
  exports.Set("noise", Napi::Function::New(env, noise));
  exports.Set("ddpmSteps", Napi::Function::New(env, schedule<ddpm_steps>));
  exports.Set("flowSteps", Napi::Function::New(env, schedule<flow_steps>));
}

}  // namespace unifluid::test
