// The object behind a model in training: `NativeTrainer` of lib/native.ts.
#pragma once

#include <napi.h>

#include <memory>
#include <mutex>

#include "core/train/trainer.h"

namespace unifluid::binding {

class TrainerHandle : public Napi::ObjectWrap<TrainerHandle> {
 public:
  // The class, to be kept in Environment::trainer_class.
  static Napi::Function define(Napi::Env env);
  // createTrainer(spec, options): starts loading; the promise gives the object.
  static Napi::Value create(const Napi::CallbackInfo& info);

  // Called by JavaScript's `new`, with an External that `create` made.
  explicit TrainerHandle(const Napi::CallbackInfo& info);

 private:
  // The trainer and whether a call is at work on it: calls are one at a time, and one that was
  // begun outlives `dispose`. A call ends on a thread of its own while JavaScript's disposes; the
  // mutex makes one of the two free the trainer.
  struct State {
    std::mutex mutex;  // of all that follows; whoever is busy uses the trainer without it
    std::unique_ptr<Trainer> trainer;
    bool busy = false;
    bool disposed = false;
  };
  class Turn;

  Napi::Value description(const Napi::CallbackInfo& info);
  Napi::Value step(const Napi::CallbackInfo& info);
  Napi::Value evaluate(const Napi::CallbackInfo& info);
  Napi::Value read(const Napi::CallbackInfo& info);
  Napi::Value write(const Napi::CallbackInfo& info);
  Napi::Value dispose(const Napi::CallbackInfo& info);

  Napi::Value run(const Napi::CallbackInfo& info, bool update);

  std::shared_ptr<State> state_;
};

}  // namespace unifluid::binding
