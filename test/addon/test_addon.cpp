// The addon of the tests: every operation of core/backend.h as a synchronous function on typed
// arrays, and the draws and schedules of core/. Not part of the package. Typed in
// test/support/ops.ts.
#include <napi.h>

#include <limits>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "core/error.h"
#include "cpu/backend.h"
#include "cpu/kernels.h"
#include "cuda/loader.h"
#include "test/addon/helpers.h"

namespace unifluid::test {
namespace {

// Runs `body`, turning our errors into JavaScript errors with a code.
template <class Body>
auto guarded(Napi::Env env, Body body) {
  try {
    return body();
  } catch (const Error& error) {
    Napi::Error thrown = Napi::Error::New(env, error.message());
    thrown.Set("code", Napi::String::New(env, error.code()));
    throw thrown;
  }
}

// new TestBackend({ isa?, threads, maxMemory? } | { library, compute, maxMemory? })
class TestBackend : public Napi::ObjectWrap<TestBackend> {
 public:
  static void define(Napi::Env env, Napi::Object exports) {
    exports.Set(
        "TestBackend",
        DefineClass(
            env, "TestBackend",
            {InstanceMethod<&TestBackend::description>("description"),
             InstanceMethod<&TestBackend::available>("available"),
             InstanceMethod<&TestBackend::allocate_and_release>("allocateAndRelease"),
             InstanceMethod<&TestBackend::resize_scratch>("resizeScratch"),
             InstanceMethod<&TestBackend::create_cache>("createCache"),
             InstanceMethod<&TestBackend::read_cache>("readCache"),
             InstanceMethod<&TestBackend::repeat>("repeat"),
             InstanceMethod<&TestBackend::graphs>("graphs"),
             InstanceMethod<&TestBackend::forks>("forks"),
             InstanceMethod<&TestBackend::close>("close"),
             InstanceMethod<&TestBackend::attention>("attention"),
             InstanceMethod<&TestBackend::operation<test::workspace>>("workspace"),
             InstanceMethod<&TestBackend::operation<test::linear>>("linear"),
             InstanceMethod<&TestBackend::operation<test::gated_linear>>("gatedLinear"),
             InstanceMethod<&TestBackend::operation<test::grouped_linear>>("groupedLinear"),
             InstanceMethod<&TestBackend::operation<test::rms_norm>>("rmsNorm"),
             InstanceMethod<&TestBackend::operation<test::rms_norms>>("rmsNorms"),
             InstanceMethod<&TestBackend::operation<test::layer_norm>>("layerNorm"),
             InstanceMethod<&TestBackend::operation<test::group_norm>>("groupNorm"),
             InstanceMethod<&TestBackend::operation<test::convolution>>("convolution"),
             InstanceMethod<&TestBackend::operation<test::read_pixels>>("readPixels"),
             InstanceMethod<&TestBackend::operation<test::embed_tokens>>("embedTokens"),
             InstanceMethod<&TestBackend::operation<test::image_embed>>("imageEmbed"),
             InstanceMethod<&TestBackend::operation<test::add_rows>>("addRows"),
             InstanceMethod<&TestBackend::operation<test::soft_cap>>("softCap"),
             InstanceMethod<&TestBackend::operation<test::sample_text>>("sampleText"),
             InstanceMethod<&TestBackend::operation<test::decoder_step>>("decoderStep"),
             InstanceMethod<&TestBackend::operation<test::diffusion_head>>("diffusionHead"),
             InstanceMethod<&TestBackend::operation<test::diffusion_sample>>("diffusionSample"),
             InstanceMethod<&TestBackend::operation<test::time_operation>>("time"),
             InstanceMethod<&TestBackend::operation<test::training>>("training")}));
  }

  explicit TestBackend(const Napi::CallbackInfo& info) : ObjectWrap(info) {
    const auto options = info[0].As<Napi::Object>();
    const Napi::Value isa = options.Get("isa");
    const std::string name = isa.IsUndefined() ? "" : isa.ToString().Utf8Value();
    const int threads = options.Get("threads").ToNumber().Int32Value();
    const Napi::Value memory = options.Get("maxMemory");
    const size_t max_memory =
        memory.IsUndefined() ? 0 : static_cast<size_t>(memory.ToNumber().Int64Value());
    const Napi::Value library = options.Get("library");
    const bool bf16 = options.Get("compute").ToString().Utf8Value() == "bf16";
    backend_ = guarded(info.Env(), [&] {
      if (!library.IsUndefined())
        return cuda::make_cuda_backend(library.ToString().Utf8Value(),
                                       {0, bf16 ? DType::bf16 : DType::f32, max_memory, 0});
      return make_cpu_backend(threads, name.empty() ? nullptr : name.c_str(), max_memory, bf16);
    });
  }
  ~TestBackend() override { drop(); }

 private:
  Backend& backend() {
    if (!backend_) throw Napi::Error::New(Env(), "the backend is closed");
    return *backend_;
  }

  template <Napi::Value (*body)(Call&)>
  Napi::Value operation(const Napi::CallbackInfo& info) {
    return guarded(info.Env(), [&] {
      Call call(backend(), info[0].As<Napi::Object>());
      return body(call);
    });
  }

  Napi::Value attention(const Napi::CallbackInfo& info) {
    return guarded(info.Env(), [&] {
      Call call(backend(), info[0].As<Napi::Object>());
      return test::attention(call, caches_);
    });
  }

  Napi::Value description(const Napi::CallbackInfo& info) {
    return Napi::String::New(info.Env(), backend().description());
  }

  Napi::Value available(const Napi::CallbackInfo& info) {
    return Napi::Number::New(info.Env(), static_cast<double>(backend().available()));
  }

  // Takes a list of sizes, one after another, and gives all back; returns the addresses modulo 64.
  Napi::Value allocate_and_release(const Napi::CallbackInfo& info) {
    return guarded(info.Env(), [&] {
      std::vector<std::pair<void*, size_t>> taken;
      const auto give_back = [&] {
        for (const auto& [memory, bytes] : taken) backend().release(memory, bytes);
      };
      try {
        for (double size : numbers(info[0])) {
          const auto bytes = static_cast<size_t>(size);
          taken.emplace_back(backend().allocate(bytes), bytes);
        }
      } catch (...) {
        give_back();
        throw;
      }
      auto remainders = Napi::Array::New(info.Env(), taken.size());
      for (uint32_t i = 0; i < taken.size(); ++i)
        remainders.Set(i, static_cast<double>(reinterpret_cast<uintptr_t>(taken[i].first) % 64));
      give_back();
      return Napi::Value(remainders);
    });
  }

  // (bytes) -> bytes of scratch there are
  Napi::Value resize_scratch(const Napi::CallbackInfo& info) {
    return guarded(info.Env(), [&] {
      backend().resize_scratch(static_cast<size_t>(info[0].ToNumber().Int64Value()));
      return Napi::Value(Napi::Number::New(info.Env(), static_cast<double>(backend().scratch())));
    });
  }

  // (kvHeads, capacity, headDim) -> index of the cache
  Napi::Value create_cache(const Napi::CallbackInfo& info) {
    return guarded(info.Env(), [&] {
      Cache cache{};
      cache.kv_heads = info[0].ToNumber().Int64Value();
      cache.capacity = info[1].ToNumber().Int64Value();
      cache.head_dim = info[2].ToNumber().Int64Value();
      cache.kv.capacity = cache.capacity;
      cache.kv.keys = backend().allocate(bytes_of(cache));
      cache.kv.values = backend().allocate(bytes_of(cache));
      // What was never written must not be read: poison.
      const Tensor all = tensor_of(cache, cache.kv.keys);
      const std::vector<float> poison(static_cast<size_t>(all.size()),
                                      std::numeric_limits<float>::quiet_NaN());
      if (all.type == backend().activation_type()) {
        backend().write(poison.data(), all);
        backend().write(poison.data(), tensor_of(cache, cache.kv.values));
      }
      caches_.push_back(cache);
      return Napi::Value(Napi::Number::New(info.Env(), static_cast<double>(caches_.size() - 1)));
    });
  }

  // -> { keys, values }, each [kvHeads, capacity, headDim]
  Napi::Value read_cache(const Napi::CallbackInfo& info) {
    const Cache& cache = caches_.at(info[0].ToNumber().Uint32Value());
    auto out = Napi::Object::New(info.Env());
    for (const auto& [name, memory] : {std::pair<const char*, void*>{"keys", cache.kv.keys},
                                       std::pair<const char*, void*>{"values", cache.kv.values}}) {
      const Tensor all = tensor_of(cache, memory);
      auto array = Napi::Float32Array::New(info.Env(), static_cast<size_t>(all.size()));
      backend().read(all, array.Data());
      out.Set(name, array);
    }
    return out;
  }

  // ({ x, weight }, steps) -> { out, graphs }: steps of `x = x / rms(x) * weight`, four times a
  // step, each submitted as the engine submits; CUDA only. `graphs`: how many ran as graphs.
  Napi::Value repeat(const Napi::CallbackInfo& info) {
    return guarded(info.Env(), [&] {
      Call call(backend(), info[0].As<Napi::Object>());
      const Tensor x = call.input("x");
      const float* weight = call.vector("weight");
      const int64_t before = backend().launches().graphs;
      for (int step = info[1].ToNumber().Int32Value(); step > 0; --step) {
        for (int i = 0; i < 4; ++i) backend().rms_norm({x, weight, 1e-6f, Tensor(), x});
        backend().submit();
      }
      auto result = Napi::Object::New(info.Env());
      result.Set("graphs", static_cast<double>(backend().launches().graphs - before));
      result.Set("out", call.result(x));
      return Napi::Value(result);
    });
  }

  // How many lists of launches ran as graphs; CUDA only.
  Napi::Value graphs(const Napi::CallbackInfo& info) {
    return Napi::Number::New(info.Env(), static_cast<double>(backend().launches().graphs));
  }

  // How often some launches of a list ran beside others of it; CUDA only.
  Napi::Value forks(const Napi::CallbackInfo& info) {
    return Napi::Number::New(info.Env(), static_cast<double>(backend().launches().forks));
  }

  Napi::Value close(const Napi::CallbackInfo& info) {
    drop();
    return info.Env().Undefined();
  }

  void drop() {
    if (!backend_) return;
    for (const Cache& cache : caches_) {
      backend_->release(cache.kv.keys, bytes_of(cache));
      backend_->release(cache.kv.values, bytes_of(cache));
    }
    caches_.clear();
    backend_.reset();
  }

  Tensor tensor_of(const Cache& cache, void* memory) {
    return {memory, backend().cache_type(), cache.kv_heads * cache.capacity, cache.head_dim};
  }
  size_t bytes_of(const Cache& cache) { return tensor_of(cache, nullptr).bytes(); }

  std::unique_ptr<Backend> backend_;
  std::vector<Cache> caches_;
};

// -> [{ name, supported, bfloat16 }], from the plainest to the best
Napi::Value list_instruction_sets(const Napi::CallbackInfo& info) {
  const cpu::InstructionSets sets = cpu::instruction_sets();
  auto list = Napi::Array::New(info.Env());
  for (int i = 0; i < sets.count; ++i) {
    auto item = Napi::Object::New(info.Env());
    item.Set("name", sets.begin[i].name);
    item.Set("supported", sets.begin[i].supported);
    item.Set("bfloat16", sets.begin[i].multiplies_bf16);
    list.Set(static_cast<uint32_t>(i), item);
  }
  return list;
}

Napi::Object initialize(Napi::Env env, Napi::Object exports) {
  TestBackend::define(env, exports);
  export_randomness(env, exports);
  export_bandwidth(env, exports);
  export_engine(env, exports);
  export_shortage(env, exports);
  export_simulation(env, exports);
  exports.Set("instructionSets", Napi::Function::New(env, list_instruction_sets));
  return exports;
}

NODE_API_MODULE(unifluid_test, initialize)

}  // namespace
}  // namespace unifluid::test
