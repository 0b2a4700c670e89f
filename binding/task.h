// Work for libuv's pool that ends in a promise.
#pragma once

#include <napi.h>

#include <exception>
#include <functional>
#include <string>
#include <utility>

#include "binding/convert.h"

namespace unifluid::binding {

// `work` runs on a thread of the pool and may throw; `result` then makes the value on JavaScript's.
class Task : public Napi::AsyncWorker {
 public:
  static Napi::Value start(Napi::Env env, std::function<void()> work,
                           std::function<Napi::Value(Napi::Env)> result) {
    Task* task = new Task(env, std::move(work), std::move(result));
    const Napi::Promise promise = task->deferred_.Promise();
    task->Queue();  // deletes itself
    return promise;
  }

 private:
  Task(Napi::Env env, std::function<void()> work, std::function<Napi::Value(Napi::Env)> result)
      : Napi::AsyncWorker(env),
        deferred_(Napi::Promise::Deferred::New(env)),
        work_(std::move(work)),
        result_(std::move(result)) {}

  void Execute() override {
    try {
      work_();
    } catch (...) {
      error_ = std::current_exception();
    }
  }
  // While its environment ends, Node still completes tasks, but no call of JavaScript's succeeds
  // any more, not even that which rejects. Nobody waits for the promise then.
  void OnOK() override {
    const Napi::HandleScope scope(Env());
    try {
      settle();
    } catch (const Napi::Error&) {
    }
  }
  void settle() {
    const Napi::Env env = Env();
    try {
      if (error_) std::rethrow_exception(error_);
      deferred_.Resolve(result_(env));
    } catch (const Napi::Error& error) {
      deferred_.Reject(error.Value());
    } catch (const std::exception& error) {
      deferred_.Reject(error_object(env, error));
    }
  }

  Napi::Promise::Deferred deferred_;
  std::function<void()> work_;
  std::function<Napi::Value(Napi::Env)> result_;
  std::exception_ptr error_;
};

}  // namespace unifluid::binding
