#include "binding/model_handle.h"

#include <algorithm>
#include <utility>
#include <vector>

#include "binding/task.h"
#include "core/model.h"

namespace unifluid::binding {

// The way of events from the engine's thread to JavaScript's. While requests are open it keeps the
// process alive; an idle model does not.
struct ModelHandle::Channel {
  Napi::ThreadSafeFunction function;
  std::unordered_set<uint64_t> open;  // JavaScript's thread only

  void opened(Napi::Env env, uint64_t id) {
    if (open.empty()) function.Ref(env);
    open.insert(id);
  }
  void closed(Napi::Env env, uint64_t id) {
    if (open.erase(id) && open.empty()) function.Unref(env);
  }
};

namespace {

// What the constructor gets from `load`.
struct Loaded {
  std::shared_ptr<void> channel;
  std::shared_ptr<Engine> engine;
};

bool ends(const Event& event) {
  return std::holds_alternative<DoneEvent>(event.what) ||
         std::holds_alternative<ErrorEvent>(event.what);
}

}  // namespace

Napi::Function ModelHandle::define(Napi::Env env) {
  return DefineClass(
      env, "NativeModel",
      {InstanceMethod("description", &ModelHandle::description),
       InstanceMethod("submit", &ModelHandle::submit),
       InstanceMethod("cancel", &ModelHandle::cancel), InstanceMethod("stats", &ModelHandle::stats),
       InstanceMethod("dispose", &ModelHandle::dispose)});
}

Napi::Value ModelHandle::load(const Napi::CallbackInfo& info) {
  const Napi::Env env = info.Env();
  return guarded(env, [&]() -> Napi::Value {
    auto spec = std::make_shared<ModelSpec>(model_spec(info[0]));
    const LoadOptions options = load_options(info[1]);
    if (!info[2].IsFunction())
      throw Error(error_code::kInvalidArgument, "expected a function for the events");
    auto channel = std::make_shared<Channel>();
    channel->function =
        Napi::ThreadSafeFunction::New(env, info[2].As<Napi::Function>(), "unifluid events", 0, 1);
    channel->function.Unref(env);

    auto deliver = [channel = std::weak_ptr(channel)](Napi::Env env, Napi::Function callback,
                                                      std::vector<Event>* raw) {
      const std::unique_ptr<std::vector<Event>> events(raw);
      const auto open = channel.lock();
      if (static_cast<napi_env>(env) == nullptr || !open) return;  // the environment is ending
      for (const Event& event : *events)
        if (ends(event)) open->closed(env, event.id);
      callback.Call({to_js(env, *events)});
    };
    auto sink = [channel, deliver](std::vector<Event>&& events) {
      auto* raw = new std::vector<Event>(std::move(events));
      if (channel->function.NonBlockingCall(raw, deliver) != napi_ok) delete raw;
    };

    auto engine = std::make_shared<std::shared_ptr<Engine>>();
    return Task::start(
        env,
        [=] {
          try {
            auto model =
                std::make_unique<Model>(spec->config, spec->files, std::move(spec->records),
                                        open_backend(options.resources));
            *engine = std::make_shared<Engine>(std::move(model), options.limits, sink);
          } catch (...) {
            channel->function.Release();
            throw;
          }
        },
        [=](Napi::Env env) -> Napi::Value {
          Loaded loaded{channel, *engine};
          engine->reset();
          return (*env.GetInstanceData<EnvironmentPointer>())
              ->model_class.New({Napi::External<Loaded>::New(env, &loaded)});
        });
  });
}

ModelHandle::ModelHandle(const Napi::CallbackInfo& info) : Napi::ObjectWrap<ModelHandle>(info) {
  const Napi::Env env = info.Env();
  if (!info[0].IsExternal()) {
    napi_throw(env, error_object(env, error_code::kInvalidArgument,
                                 "models are made by loadModel, not by new"));
    return;
  }
  const Loaded& loaded = *info[0].As<Napi::External<Loaded>>().Data();
  channel_ = std::static_pointer_cast<Channel>(loaded.channel);
  engine_ = loaded.engine;
  environment_ = *env.GetInstanceData<EnvironmentPointer>();
  environment_->models.insert(this);
}

ModelHandle::~ModelHandle() {
  if (environment_) environment_->models.erase(this);
  stop();
}

void ModelHandle::stop() {
  if (!engine_) return;
  engine_->stop();
  engine_.reset();
  channel_->function.Release();
}

Napi::Value ModelHandle::description(const Napi::CallbackInfo& info) {
  return Napi::String::New(info.Env(), engine_ ? engine_->description() : "disposed");
}

Napi::Value ModelHandle::submit(const Napi::CallbackInfo& info) {
  const Napi::Env env = info.Env();
  return guarded(env, [&]() -> Napi::Value {
    if (!engine_) throw Error(error_code::kDisposed, "the model was disposed of");
    const uint64_t id = engine_->submit(request(info[0]), priority(info[0]));
    // Its events cannot arrive before this: they come on this thread.
    channel_->opened(env, id);
    return Napi::Number::New(env, static_cast<double>(id));
  });
}

Napi::Value ModelHandle::cancel(const Napi::CallbackInfo& info) {
  const Napi::Env env = info.Env();
  return guarded(env, [&]() -> Napi::Value {
    if (!info[0].IsNumber())
      throw Error(error_code::kInvalidArgument, "expected a number for the id");
    const uint64_t id = static_cast<uint64_t>(info[0].As<Napi::Number>().Int64Value());
    if (engine_) {
      engine_->cancel(id);
      channel_->closed(env, id);
    }
    return env.Undefined();
  });
}

Napi::Value ModelHandle::stats(const Napi::CallbackInfo& info) {
  return to_js(info.Env(), engine_ ? engine_->stats() : EngineStats{});
}

// The thread is joined off JavaScript's, since the engine may be in the middle of a long step. The
// engine's last events, which say DISPOSED, are on their way before the promise resolves.
Napi::Value ModelHandle::dispose(const Napi::CallbackInfo& info) {
  const std::shared_ptr<Engine> engine = engine_;
  // The object must outlive the task: its destructor would stop the engine on JavaScript's thread.
  auto self =
      std::make_shared<Napi::ObjectReference>(Napi::Persistent(info.This().As<Napi::Object>()));
  return Task::start(
      info.Env(),
      [engine] {
        if (engine) engine->stop();
      },
      [this, self](Napi::Env env) -> Napi::Value {
        stop();
        return env.Undefined();
      });
}

}  // namespace unifluid::binding
