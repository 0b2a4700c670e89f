// JavaScript values to the core's structs and back. The shapes are those of lib/native.ts; a value
// of another type throws INVALID_ARGUMENT with the name of the field.
#pragma once

#include <napi.h>

#include <string>
#include <vector>

#include "binding/resources.h"
#include "core/config.h"
#include "core/engine.h"
#include "core/error.h"
#include "core/request.h"
#include "core/train/trainer.h"
#include "core/weights.h"

namespace unifluid::binding {

struct ModelSpec {
  std::vector<std::string> files;
  std::vector<TensorRecord> records;
  ModelConfig config;
};

struct LoadOptions {
  Resources resources;
  EngineLimits limits;
};

struct TrainerSettings {
  Resources resources;
  TrainerOptions options;
};

ModelSpec model_spec(const Napi::Value& value);
LoadOptions load_options(const Napi::Value& value);
Request request(const Napi::Value& value);
int64_t priority(const Napi::Value& request);
TrainerSettings trainer_settings(const Napi::Value& value);
TrainingBatches training_batches(const Napi::Value& value, bool autoencoder);

// One that cannot be converted becomes an error of its request, so that it costs no other its own.
Napi::Value to_js(Napi::Env env, const std::vector<Event>& events);
Napi::Value to_js(Napi::Env env, const EngineStats& stats);

// What the addon throws or rejects with; lib/errors.ts makes the class.
// Takes no memory but JavaScript's: it may be the system's that lacks.
Napi::Object error_object(Napi::Env env, const char* code, const char* message);
Napi::Object error_object(Napi::Env env, const std::exception& error);

// Fields of an object, checked.
Napi::Object object(const Napi::Value& value, const char* what);
double number(const Napi::Object& object, const char* field);
int64_t integer(const Napi::Object& object, const char* field);
std::string text(const Napi::Object& object, const char* field);

// Calls f and turns what it throws into a JavaScript exception.
template <class F>
Napi::Value guarded(Napi::Env env, F f) {
  try {
    return f();
  } catch (const Napi::Error&) {
    throw;
  } catch (const std::exception& error) {
    napi_throw(env, error_object(env, error));
    return env.Undefined();
  }
}

}  // namespace unifluid::binding
