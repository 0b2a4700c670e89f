// The object behind a model in training: `NativeTrainer` of lib/native.ts.
#pragma once

#include <napi.h>

#include <atomic>
#include <memory>

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
  // begun outlives `dispose`.
  struct State {
    std::unique_ptr<Trainer> trainer;
    std::atomic<bool> busy{false};
    std::atomic<bool> disposed{false};
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
