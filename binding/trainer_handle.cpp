#include "binding/trainer_handle.h"

#include <cstring>
#include <limits>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "binding/convert.h"
#include "binding/model_handle.h"
#include "binding/task.h"
#include "core/convert.h"
#include "core/error.h"

namespace unifluid::binding {

namespace {

ParameterState parameter_state(const std::string& name) {
  if (name == "weights") return ParameterState::weights;
  if (name == "ema") return ParameterState::average;
  if (name == "first") return ParameterState::first_moment;
  if (name == "second") return ParameterState::second_moment;
  if (name == "updates") return ParameterState::updates;
  throw Error(error_code::kInvalidArgument, "expected weights, ema, first, second or updates");
}

Napi::Object to_js(Napi::Env env, const LossSum& sum) {
  Napi::Object o = Napi::Object::New(env);
  o.Set("loss", sum.tokens ? sum.loss / static_cast<double>(sum.tokens)
                           : std::numeric_limits<double>::quiet_NaN());
  o.Set("tokens", static_cast<double>(sum.tokens));
  o.Set("right", static_cast<double>(sum.right));
  return o;
}

// `kl_weight`: of an autoencoder.
Napi::Object to_js(Napi::Env env, const StepResult& result, std::optional<float> kl_weight) {
  Napi::Object o = Napi::Object::New(env);
  o.Set("finite", result.finite);
  o.Set("gradientNorm", result.gradient_norm);
  const UnifiedLosses& u = result.losses;
  o.Set("imageLoss", to_js(env, u.image).Get("loss"));
  o.Set("textLoss", to_js(env, u.text).Get("loss"));
  o.Set("rows", static_cast<double>(u.rows));
  Napi::Object tasks = Napi::Object::New(env);
  for (const auto& [task, sum] : u.by_task) tasks.Set(task, to_js(env, sum));
  o.Set("byTask", tasks);
  if (kl_weight) {
    Napi::Object vae = Napi::Object::New(env);
    const VaeLosses& v = result.vae;
    vae.Set("loss", v.absolute + v.square + static_cast<double>(*kl_weight) * v.kl);
    vae.Set("absolute", v.absolute);
    vae.Set("square", v.square);
    vae.Set("kl", v.kl);
    o.Set("vae", vae);
  }
  return o;
}

}  // namespace

// Holds the trainer for one call; refuses a second.
class TrainerHandle::Turn {
 public:
  explicit Turn(std::shared_ptr<State> state) : state_(std::move(state)) {
    const std::lock_guard lock(state_->mutex);
    if (state_->disposed) throw Error(error_code::kDisposed, "the trainer was disposed");
    if (state_->busy)
      throw Error(error_code::kInvalidArgument,
                  "expected one call at a time, but the trainer is still at work");
    state_->busy = true;
  }
  ~Turn() {
    std::unique_ptr<Trainer> gone;  // freed when the lock is
    const std::lock_guard lock(state_->mutex);
    state_->busy = false;
    if (state_->disposed) gone = std::move(state_->trainer);
  }
  Turn(const Turn&) = delete;
  Turn& operator=(const Turn&) = delete;
  Trainer& trainer() const { return *state_->trainer; }

 private:
  const std::shared_ptr<State> state_;
};

Napi::Function TrainerHandle::define(Napi::Env env) {
  return DefineClass(
      env, "NativeTrainer",
      {InstanceMethod("description", &TrainerHandle::description),
       InstanceMethod("step", &TrainerHandle::step),
       InstanceMethod("evaluate", &TrainerHandle::evaluate),
       InstanceMethod("read", &TrainerHandle::read), InstanceMethod("write", &TrainerHandle::write),
       InstanceMethod("dispose", &TrainerHandle::dispose)});
}

Napi::Value TrainerHandle::create(const Napi::CallbackInfo& info) {
  const Napi::Env env = info.Env();
  return guarded(env, [&]() -> Napi::Value {
    auto spec = std::make_shared<ModelSpec>(model_spec(info[0]));
    const TrainerSettings settings = trainer_settings(info[1]);
    auto state = std::make_shared<State>();
    return Task::start(
        env,
        [=] {
          state->trainer =
              std::make_unique<Trainer>(spec->config, spec->files, std::move(spec->records),
                                        settings.options, open_backend(settings.resources));
        },
        [=](Napi::Env env) -> Napi::Value {
          auto held = state;
          return (*env.GetInstanceData<EnvironmentPointer>())
              ->trainer_class.New({Napi::External<std::shared_ptr<State>>::New(env, &held)});
        });
  });
}

TrainerHandle::TrainerHandle(const Napi::CallbackInfo& info)
    : Napi::ObjectWrap<TrainerHandle>(info) {
  const Napi::Env env = info.Env();
  if (!info[0].IsExternal()) {
    napi_throw(env, error_object(env, error_code::kInvalidArgument,
                                 "trainers are made by createTrainer, not by new"));
    return;
  }
  state_ = *info[0].As<Napi::External<std::shared_ptr<State>>>().Data();
}

Napi::Value TrainerHandle::description(const Napi::CallbackInfo& info) {
  const std::string description = [&]() -> std::string {
    if (!state_) return "disposed";
    const std::lock_guard lock(state_->mutex);
    return state_->disposed ? "disposed" : state_->trainer->description();
  }();
  return Napi::String::New(info.Env(), description);
}

Napi::Value TrainerHandle::run(const Napi::CallbackInfo& info, bool update) {
  const Napi::Env env = info.Env();
  return guarded(env, [&]() -> Napi::Value {
    auto turn = std::make_shared<Turn>(state_);
    const Napi::Object at = object(info[1], "at");
    const int64_t number = integer(at, "step");
    if (number < 1 || number > std::numeric_limits<uint32_t>::max())
      throw Error(error_code::kInvalidArgument, "expected a step from 1 on");
    const float rate = update ? static_cast<float>(binding::number(at, "learningRate")) : 0;
    const bool average = !update && at.Get("ema").ToBoolean();
    const VaeLossOptions* vae = turn->trainer().vae();
    const auto batches =
        std::make_shared<const TrainingBatches>(training_batches(info[0], vae != nullptr));
    const std::optional<float> kl_weight = vae ? std::optional(vae->kl_weight) : std::nullopt;
    auto result = std::make_shared<StepResult>();
    return Task::start(
        env,
        [=]() mutable {
          // Given back before the promise resolves, so that the next call finds it free.
          const std::shared_ptr<Turn> held = std::move(turn);
          Trainer& trainer = held->trainer();
          *result = update ? trainer.step(*batches, number, rate)
                           : trainer.evaluate(*batches, number, average);
        },
        [=](Napi::Env env) -> Napi::Value { return to_js(env, *result, kl_weight); });
  });
}

Napi::Value TrainerHandle::step(const Napi::CallbackInfo& info) { return run(info, true); }
Napi::Value TrainerHandle::evaluate(const Napi::CallbackInfo& info) { return run(info, false); }

// read(name, what, type)
Napi::Value TrainerHandle::read(const Napi::CallbackInfo& info) {
  const Napi::Env env = info.Env();
  return guarded(env, [&]() -> Napi::Value {
    for (size_t i = 0; i < 3; ++i)
      if (!info[i].IsString())
        throw Error(error_code::kInvalidArgument, "expected a name, what to read and a type");
    const std::string name = info[0].As<Napi::String>().Utf8Value();
    const ParameterState what = parameter_state(info[1].As<Napi::String>().Utf8Value());
    const std::string type = info[2].As<Napi::String>().Utf8Value();
    if (type != "F32" && type != "BF16")
      throw Error(error_code::kInvalidArgument, "expected F32 or BF16 for the type");
    const Turn turn(state_);
    const std::vector<float> values = turn.trainer().parameters().read(name, what);
    const bool rounded = type == "BF16";
    Napi::Uint8Array out = Napi::Uint8Array::New(env, values.size() * (rounded ? 2 : 4));
    if (rounded)
      convert_to_bf16(values.data(), DType::f32, values.size(),
                      reinterpret_cast<uint16_t*>(out.Data()));
    else
      std::memcpy(out.Data(), values.data(), values.size() * 4);
    return out;
  });
}

// write(name, what, bytes)
Napi::Value TrainerHandle::write(const Napi::CallbackInfo& info) {
  const Napi::Env env = info.Env();
  return guarded(env, [&]() -> Napi::Value {
    if (!info[0].IsString() || !info[1].IsString() || !info[2].IsTypedArray() ||
        info[2].As<Napi::TypedArray>().TypedArrayType() != napi_uint8_array)
      throw Error(error_code::kInvalidArgument, "expected a name, what to write and a Uint8Array");
    const Napi::Uint8Array bytes = info[2].As<Napi::Uint8Array>();
    std::vector<float> values(bytes.ElementLength() / 4);
    if (bytes.ElementLength() % 4 != 0)
      throw Error(error_code::kInvalidArgument, "expected whole float32 values");
    if (!values.empty()) std::memcpy(values.data(), bytes.Data(), bytes.ElementLength());
    const Turn turn(state_);
    turn.trainer().parameters().write(info[0].As<Napi::String>().Utf8Value(),
                                      parameter_state(info[1].As<Napi::String>().Utf8Value()),
                                      values);
    return env.Undefined();
  });
}

// What is at work goes on to its end, and the memory goes with it.
Napi::Value TrainerHandle::dispose(const Napi::CallbackInfo& info) {
  if (state_) {
    std::unique_ptr<Trainer> gone;
    const std::lock_guard lock(state_->mutex);
    state_->disposed = true;
    if (!state_->busy) gone = std::move(state_->trainer);
  }
  return info.Env().Undefined();
}

}  // namespace unifluid::binding
