#include "binding/model_handle.h"

#include <algorithm>
#include <mutex>
#include <utility>
#include <vector>

#include "binding/task.h"
#include "core/model.h"

namespace unifluid::binding {

namespace {

bool ends(const Event& event) {
  return std::holds_alternative<DoneEvent>(event.what) ||
         std::holds_alternative<ErrorEvent>(event.what);
}

}  // namespace

// The way of events from the engine's thread to JavaScript's. While requests are open it keeps the
// process alive; an idle model does not.
class ModelHandle::Channel {
 public:
  static std::shared_ptr<Channel> open(Napi::Env env, Napi::Function callback) {
    auto channel = std::make_shared<Channel>();
    // Node frees the function when the environment ends, whoever still holds it; the finalizer runs
    // just before, and keeps the channel for what is delivered until then.
    channel->function_ = Function::New(env, callback, "unifluid events", 0, 1, channel.get(),
                                       [channel](Napi::Env, void*, Channel*) { channel->leave(); });
    channel->function_.Unref(env);
    return channel;
  }

  // Any thread.
  void send(std::vector<Event>&& events) {
    const std::lock_guard lock(mutex_);
    if (gone_) return;
    auto* raw = new std::vector<Event>(std::move(events));
    if (function_.NonBlockingCall(raw) != napi_ok) delete raw;
  }
  // Any thread. What was sent before is still delivered.
  void release() {
    const std::lock_guard lock(mutex_);
    if (!gone_) function_.Release();
    gone_ = true;
  }

  // JavaScript's thread only.
  void opened(Napi::Env env, uint64_t id) {
    if (open_.empty()) function_.Ref(env);
    open_.insert(id);
  }
  void closed(Napi::Env env, uint64_t id) {
    if (open_.erase(id) && open_.empty()) function_.Unref(env);
  }

 private:
  static void deliver(Napi::Env env, Napi::Function callback, Channel* channel,
                      std::vector<Event>* raw) {
    const std::unique_ptr<std::vector<Event>> events(raw);
    if (static_cast<napi_env>(env) == nullptr) return;  // the environment has ended
    try {
      for (const Event& event : *events)
        if (ends(event)) channel->closed(env, event.id);
      callback.Call({to_js(env, *events)});
    } catch (const Napi::Error& error) {
      rethrow(error);
    } catch (const std::exception& error) {  // no memory even to say what failed
      rethrow(env, error.what());
    }
  }
  // An error of the callback's is JavaScript's to report. While the environment ends every call
  // fails, this one too: then there is nobody to tell.
  static void rethrow(const Napi::Error& error) {
    try {
      error.ThrowAsJavaScriptException();
    } catch (const Napi::Error&) {
    }
  }
  static void rethrow(Napi::Env env, const char* message) {
    try {
      rethrow(Napi::Error::New(env, message));
    } catch (const Napi::Error&) {
    }
  }
  void leave() {
    const std::lock_guard lock(mutex_);
    gone_ = true;
  }

  using Function = Napi::TypedThreadSafeFunction<Channel, std::vector<Event>, deliver>;
  Function function_;
  std::mutex mutex_;
  bool gone_ = false;  // `function_` is not to be touched any more
  std::unordered_set<uint64_t> open_;
};

namespace {

// What the constructor gets from `load`.
struct Loaded {
  std::shared_ptr<void> channel;
  std::shared_ptr<Engine> engine;
};

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
    const auto channel = Channel::open(env, info[2].As<Napi::Function>());
    auto sink = [channel](std::vector<Event>&& events) { channel->send(std::move(events)); };

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
            channel->release();
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
  channel_->release();
}

Napi::Value ModelHandle::description(const Napi::CallbackInfo& info) {
  return Napi::String::New(info.Env(), engine_ ? engine_->description() : "disposed");
}

Napi::Value ModelHandle::submit(const Napi::CallbackInfo& info) {
  const Napi::Env env = info.Env();
  return guarded(env, [&]() -> Napi::Value {
    if (!engine_) throw Error(error_code::kDisposed, "the model was disposed");
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
