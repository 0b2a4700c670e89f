// The object behind a loaded model: `NativeModel` of lib/native.ts.
#pragma once

#include <napi.h>

#include <memory>
#include <unordered_set>

#include "binding/convert.h"
#include "core/engine.h"

namespace unifluid::binding {

class ModelHandle;

// What one JavaScript environment (the main thread, or a worker) keeps of this addon. The handles
// share it, because at the end of an environment nothing says which of them goes first.
struct Environment {
  Napi::FunctionReference model_class;
  Napi::FunctionReference trainer_class;
  std::unordered_set<ModelHandle*> models;
};
using EnvironmentPointer = std::shared_ptr<Environment>;

class ModelHandle : public Napi::ObjectWrap<ModelHandle> {
 public:
  // The class, to be kept in Environment::model_class.
  static Napi::Function define(Napi::Env env);
  // Starts loading; the promise gives the object.
  static Napi::Value load(const Napi::CallbackInfo& info);

  // Called by JavaScript's `new`, with an External that `load` made.
  explicit ModelHandle(const Napi::CallbackInfo& info);
  ~ModelHandle() override;

  // Ends the engine's thread; waits for the step it is in.
  void stop();

 private:
  class Channel;

  Napi::Value description(const Napi::CallbackInfo& info);
  Napi::Value submit(const Napi::CallbackInfo& info);
  Napi::Value cancel(const Napi::CallbackInfo& info);
  Napi::Value stats(const Napi::CallbackInfo& info);
  Napi::Value dispose(const Napi::CallbackInfo& info);

  EnvironmentPointer environment_;
  std::shared_ptr<Channel> channel_;
  std::shared_ptr<Engine> engine_;
};

}  // namespace unifluid::binding
