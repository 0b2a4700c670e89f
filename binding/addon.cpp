// The addon's module: lib/native.ts types what it exports.
#include <napi.h>

#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include "binding/convert.h"
#include "binding/model_handle.h"
#include "binding/task.h"
#include "binding/trainer_handle.h"
#include "core/image_resize.h"
#include "cpu/kernels.h"
#include "cpu/system_memory.h"
#include "cuda/loader.h"

namespace unifluid::binding {

namespace {

Napi::Value instruction_sets(const Napi::CallbackInfo& info) {
  const Napi::Env env = info.Env();
  const cpu::InstructionSets sets = cpu::instruction_sets();
  Napi::Array out = Napi::Array::New(env, static_cast<size_t>(sets.count));
  for (int i = 0; i < sets.count; ++i) {
    Napi::Object o = Napi::Object::New(env);
    o.Set("name", sets.begin[i].name);
    o.Set("supported", sets.begin[i].supported);
    o.Set("bfloat16", sets.begin[i].multiplies_bf16);
    out.Set(static_cast<uint32_t>(i), o);
  }
  return out;
}

Napi::Value find_non_finite(const Napi::CallbackInfo& info) {
  const Napi::Env env = info.Env();
  return guarded(env, [&]() -> Napi::Value {
    auto spec = std::make_shared<ModelSpec>(model_spec(info[0]));
    auto found = std::make_shared<Weights::NonFinite>();
    auto any = std::make_shared<bool>(false);
    return Task::start(
        env,
        [=] { *any = Weights(spec->files, std::move(spec->records)).find_non_finite(found.get()); },
        [=](Napi::Env env) -> Napi::Value {
          if (!*any) return env.Null();
          Napi::Object o = Napi::Object::New(env);
          o.Set("name", found->name);
          o.Set("index", static_cast<double>(found->index));
          o.Set("value", found->value);
          return o;
        });
  });
}

ResizeFilter resize_filter(const std::string& name) {
  if (name == "nearest") return ResizeFilter::nearest;
  if (name == "bilinear") return ResizeFilter::bilinear;
  if (name == "bicubic") return ResizeFilter::bicubic;
  if (name == "lanczos") return ResizeFilter::lanczos;
  throw Error(error_code::kInvalidArgument,
              "expected nearest, bilinear, bicubic or lanczos for the filter");
}

// resizeImage(pixels, width, height, toWidth, toHeight, filter): the buffer of the pixels must be
// one that nobody else can transfer or change.
Napi::Value resize_image(const Napi::CallbackInfo& info) {
  const Napi::Env env = info.Env();
  return guarded(env, [&]() -> Napi::Value {
    int64_t sizes[4];
    for (size_t i = 0; i < 4; ++i) {
      if (!info[i + 1].IsNumber())
        throw Error(error_code::kInvalidArgument, "expected numbers for the sizes");
      sizes[i] = info[i + 1].As<Napi::Number>().Int64Value();
      if (sizes[i] < 1 || sizes[i] > kMaxResizeSide)
        throw Error(error_code::kInvalidArgument,
                    "expected sizes from 1 to " + std::to_string(kMaxResizeSide));
    }
    if (!info[0].IsTypedArray() ||
        info[0].As<Napi::TypedArray>().TypedArrayType() != napi_uint8_array)
      throw Error(error_code::kInvalidArgument, "expected a Uint8Array for the pixels");
    const auto [width, height, to_width, to_height] = sizes;
    const Napi::Uint8Array pixels = info[0].As<Napi::Uint8Array>();
    if (pixels.ElementLength() != static_cast<size_t>(width * height * 3))
      throw Error(error_code::kInvalidArgument, "the pixels do not fit the sizes");
    if (!info[5].IsString())
      throw Error(error_code::kInvalidArgument, "expected a string for the filter");
    const ResizeFilter filter = resize_filter(info[5].As<Napi::String>().Utf8Value());
    // Not copied, which would block JavaScript's thread: kept alive until the work is over.
    const uint8_t* source = pixels.Data();
    auto held =
        std::make_shared<Napi::ObjectReference>(Napi::Persistent(pixels.As<Napi::Object>()));
    auto target = std::make_shared<std::vector<uint8_t>>();
    return Task::start(
        env,
        [=, width = width, height = height, to_width = to_width, to_height = to_height] {
          target->resize(static_cast<size_t>(to_width * to_height * 3));
          resize_rgb(source, width, height, target->data(), to_width, to_height, filter);
        },
        [target, held](Napi::Env env) -> Napi::Value {
          Napi::Uint8Array out = Napi::Uint8Array::New(env, target->size());
          std::memcpy(out.Data(), target->data(), target->size());
          return out;
        });
  });
}

std::string cuda_version(int32_t version) {
  return std::to_string(version / 1000) + "." + std::to_string(version % 1000 / 10);
}

// cudaDevices(library) -> Promise of [{ name, capability, ... }]
Napi::Value cuda_devices(const Napi::CallbackInfo& info) {
  const Napi::Env env = info.Env();
  return guarded(env, [&]() -> Napi::Value {
    if (!info[0].IsString())
      throw Error(error_code::kInvalidArgument, "expected a string for the library");
    const std::string library = info[0].As<Napi::String>().Utf8Value();
    auto devices = std::make_shared<std::vector<cuda::DeviceInfo>>();
    return Task::start(
        env, [=] { *devices = cuda::list_devices(library); },
        [=](Napi::Env env) -> Napi::Value {
          Napi::Array out = Napi::Array::New(env, devices->size());
          for (uint32_t i = 0; i < devices->size(); ++i) {
            const cuda::DeviceInfo& d = (*devices)[i];
            Napi::Object o = Napi::Object::New(env);
            o.Set("name", std::string(d.name));
            o.Set("capability", std::to_string(d.major) + "." + std::to_string(d.minor));
            o.Set("processors", d.processors);
            o.Set("driver", cuda_version(d.driver));
            o.Set("runtime", cuda_version(d.runtime));
            o.Set("totalMemory", static_cast<double>(d.total_memory));
            out.Set(i, o);
          }
          return out;
        });
  });
}

// cudaMemory(library, device) -> Promise of { free, usable, overhead }
Napi::Value cuda_memory(const Napi::CallbackInfo& info) {
  const Napi::Env env = info.Env();
  return guarded(env, [&]() -> Napi::Value {
    if (!info[0].IsString() || !info[1].IsNumber())
      throw Error(error_code::kInvalidArgument,
                  "expected a string for the library and a number for the device");
    const std::string library = info[0].As<Napi::String>().Utf8Value();
    const int32_t device = info[1].As<Napi::Number>().Int32Value();
    auto room = std::make_shared<cuda::DeviceRoom>();
    return Task::start(
        env, [=] { *room = cuda::device_room(library, device); },
        [=](Napi::Env env) -> Napi::Value {
          Napi::Object o = Napi::Object::New(env);
          o.Set("free", static_cast<double>(room->free));
          o.Set("usable", static_cast<double>(room->usable));
          o.Set("overhead", static_cast<double>(room->overhead));
          return o;
        });
  });
}

Napi::Value driver_present(const Napi::CallbackInfo& info) {
  return Napi::Boolean::New(info.Env(), cuda::driver_present());
}

Napi::Value available_memory(const Napi::CallbackInfo& info) {
  return Napi::Number::New(info.Env(), static_cast<double>(cpu::system_available_memory()));
}

Napi::Object init(Napi::Env env, Napi::Object exports) {
  auto* environment = new EnvironmentPointer(std::make_shared<Environment>());
  (*environment)->model_class = Napi::Persistent(ModelHandle::define(env));
  (*environment)->model_class.SuppressDestruct();  // the environment may end before the last handle
  (*environment)->trainer_class = Napi::Persistent(TrainerHandle::define(env));
  (*environment)->trainer_class.SuppressDestruct();
  env.SetInstanceData(environment);
  // A worker or the process may end with models at work: their threads must not outlive this
  // module.
  env.AddCleanupHook(
      [](EnvironmentPointer* environment) {
        for (ModelHandle* model : (*environment)->models) model->stop();
        delete environment;
      },
      new EnvironmentPointer(*environment));
  exports.Set("version", UNIFLUID_VERSION);
  exports.Set("instructionSets", Napi::Function::New(env, instruction_sets));
  exports.Set("loadModel", Napi::Function::New(env, ModelHandle::load));
  exports.Set("createTrainer", Napi::Function::New(env, TrainerHandle::create));
  exports.Set("findNonFinite", Napi::Function::New(env, find_non_finite));
  exports.Set("resizeImage", Napi::Function::New(env, resize_image));
  exports.Set("availableMemory", Napi::Function::New(env, available_memory));
  exports.Set("cudaDriverPresent", Napi::Function::New(env, driver_present));
  exports.Set("cudaDevices", Napi::Function::New(env, cuda_devices));
  exports.Set("cudaMemory", Napi::Function::New(env, cuda_memory));
  return exports;
}

NODE_API_MODULE(unifluid, init)

}  // namespace

}  // namespace unifluid::binding
