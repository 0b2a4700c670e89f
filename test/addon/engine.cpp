// The engine under conditions that JavaScript cannot bring about.
#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <memory>
#include <mutex>
#include <new>
#include <utility>
#include <variant>
#include <vector>

#include "binding/convert.h"
#include "core/engine.h"
#include "cpu/backend.h"
#include "test/addon/helpers.h"

namespace unifluid::test {
namespace {

// What the engine tells, which for the first calls there is no memory to take.
struct Listener {
  std::mutex mutex;
  std::condition_variable more;
  int64_t failures;
  size_t ended = 0;
  std::vector<Event> events;

  void take(std::vector<Event>&& batch) {
    const std::lock_guard lock(mutex);
    if (failures-- > 0) throw std::bad_alloc();
    ended += static_cast<size_t>(std::count_if(batch.begin(), batch.end(), [](const Event& e) {
      return std::holds_alternative<DoneEvent>(e.what) ||
             std::holds_alternative<ErrorEvent>(e.what);
    }));
    for (Event& event : batch) events.push_back(std::move(event));
    more.notify_all();
  }
};

// engineEvents({ spec, requests, failures, stop }): all events of some requests, where the engine's
// first `failures` attempts to tell find no memory. `stop`: it is ended at once.
Napi::Value engine_events(const Napi::CallbackInfo& info) {
  return binding::guarded(info.Env(), [&]() -> Napi::Value {
    const auto o = info[0].As<Napi::Object>();
    const auto requests = o.Get("requests").As<Napi::Array>();
    binding::ModelSpec spec = binding::model_spec(o.Get("spec"));
    auto listener = std::make_shared<Listener>();
    listener->failures = binding::integer(o, "failures");
    EngineLimits limits;
    limits.max_sequences = requests.Length();
    Engine engine(std::make_unique<Model>(spec.config, spec.files, std::move(spec.records),
                                          make_cpu_backend(1, nullptr, 0)),
                  limits,
                  [listener](std::vector<Event>&& batch) { listener->take(std::move(batch)); });
    for (uint32_t i = 0; i < requests.Length(); ++i)
      engine.submit(binding::request(requests.Get(i)));
    if (o.Get("stop").ToBoolean()) engine.stop();
    std::unique_lock lock(listener->mutex);
    listener->more.wait_for(lock, std::chrono::seconds(60),
                            [&] { return listener->ended >= requests.Length(); });
    return binding::to_js(info.Env(), listener->events);
  });
}

}  // namespace

void export_engine(Napi::Env env, Napi::Object exports) {
  exports.Set("engineEvents", Napi::Function::New(env, engine_events));
}

}  // namespace unifluid::test
