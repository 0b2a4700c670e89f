#include "binding/convert.h"

#include <cmath>
#include <cstring>
#include <type_traits>
#include <utility>

namespace unifluid::binding {

namespace {

[[noreturn]] void wrong(const char* field, const char* expected) {
  throw Error(error_code::kInvalidArgument, std::string("expected ") + expected + " for " + field);
}

bool present(const Napi::Object& o, const char* field) {
  const Napi::Value v = o.Get(field);
  return !v.IsUndefined() && !v.IsNull();
}

bool boolean(const Napi::Object& o, const char* field) {
  const Napi::Value v = o.Get(field);
  if (!v.IsBoolean()) wrong(field, "a boolean");
  return v.As<Napi::Boolean>();
}

float real(const Napi::Object& o, const char* field) {
  return static_cast<float>(number(o, field));
}

uint64_t seed(const Napi::Object& o, const char* field) {
  const Napi::Value v = o.Get(field);
  if (!v.IsBigInt()) wrong(field, "a bigint");
  bool lossless = false;
  const uint64_t value = v.As<Napi::BigInt>().Uint64Value(&lossless);
  if (!lossless) wrong(field, "an unsigned 64-bit integer");
  return value;
}

Napi::Array array(const Napi::Object& o, const char* field) {
  const Napi::Value v = o.Get(field);
  if (!v.IsArray()) wrong(field, "an array");
  return v.As<Napi::Array>();
}

// Copies a typed array; the caller may change its own at once.
template <class T>
std::vector<T> typed(const Napi::Object& o, const char* field, napi_typedarray_type type,
                     const char* expected) {
  const Napi::Value v = o.Get(field);
  if (!v.IsTypedArray() || v.As<Napi::TypedArray>().TypedArrayType() != type)
    wrong(field, expected);
  // Its own pointer: what lies under it may be a SharedArrayBuffer, which Napi::ArrayBuffer is not.
  const auto a = v.As<Napi::TypedArrayOf<T>>();
  std::vector<T> out(a.ElementLength());
  if (!out.empty()) std::memcpy(out.data(), a.Data(), out.size() * sizeof(T));
  return out;
}

std::vector<float> floats(const Napi::Object& o, const char* field) {
  return typed<float>(o, field, napi_float32_array, "a Float32Array");
}

std::vector<int32_t> tokens(const Napi::Object& o, const char* field) {
  return typed<int32_t>(o, field, napi_int32_array, "an Int32Array");
}

std::vector<int64_t> integers(const Napi::Object& o, const char* field) {
  const Napi::Array a = array(o, field);
  std::vector<int64_t> out(a.Length());
  for (uint32_t i = 0; i < out.size(); ++i) {
    const Napi::Value v = a.Get(i);
    if (!v.IsNumber()) wrong(field, "numbers");
    out[i] = v.As<Napi::Number>().Int64Value();
  }
  return out;
}

std::vector<bool> booleans(const Napi::Object& o, const char* field) {
  const Napi::Array a = array(o, field);
  std::vector<bool> out(a.Length());
  for (uint32_t i = 0; i < out.size(); ++i) {
    const Napi::Value v = a.Get(i);
    if (!v.IsBoolean()) wrong(field, "true and false");
    out[i] = v.As<Napi::Boolean>().Value();
  }
  return out;
}

Activation activation(const Napi::Object& o, const char* field) {
  const std::string name = text(o, field);
  if (name == "silu") return Activation::silu;
  if (name == "gelu_tanh") return Activation::gelu_tanh;
  if (name == "gelu_erf") return Activation::gelu_erf;
  wrong(field, "silu, gelu_tanh or gelu_erf");
}

DType stored_type(const Napi::Object& o, const char* field) {
  const std::string name = text(o, field);
  if (name == "F32") return DType::f32;
  if (name == "F16") return DType::f16;
  if (name == "BF16") return DType::bf16;
  wrong(field, "F32, F16 or BF16");
}

TextConfig text_config(const Napi::Object& o) {
  TextConfig c;
  c.gemma2 = boolean(o, "gemma2");
  c.vocab_size = integer(o, "vocabSize");
  c.hidden_size = integer(o, "hiddenSize");
  c.intermediate_size = integer(o, "intermediateSize");
  c.layers = integer(o, "layers");
  c.heads = integer(o, "heads");
  c.kv_heads = integer(o, "kvHeads");
  c.head_dim = integer(o, "headDim");
  c.rms_norm_eps = real(o, "rmsNormEps");
  c.rope_theta = real(o, "ropeTheta");
  c.attention_scale = real(o, "attentionScale");
  c.attention_soft_cap = real(o, "attentionSoftCap");
  c.logit_soft_cap = real(o, "logitSoftCap");
  c.windows = integers(o, "windows");
  c.activation = activation(o, "activation");
  c.first_position = integer(o, "firstPosition");
  c.bidirectional_prefix = boolean(o, "bidirectionalPrefix");
  c.tied = boolean(o, "tied");
  return c;
}

VisionConfig vision_config(const Napi::Object& o) {
  VisionConfig c;
  c.hidden_size = integer(o, "hiddenSize");
  c.intermediate_size = integer(o, "intermediateSize");
  c.layers = integer(o, "layers");
  c.heads = integer(o, "heads");
  c.image_size = integer(o, "imageSize");
  c.patch_size = integer(o, "patchSize");
  c.layer_norm_eps = real(o, "layerNormEps");
  c.activation = activation(o, "activation");
  return c;
}

VaeConfig vae_config(const Napi::Object& o) {
  VaeConfig c;
  c.in_channels = integer(o, "inChannels");
  c.out_channels = integer(o, "outChannels");
  c.block_out_channels = integers(o, "blockOutChannels");
  c.layers_per_block = integer(o, "layersPerBlock");
  c.latent_channels = integer(o, "latentChannels");
  c.norm_groups = integer(o, "normGroups");
  c.scaling_factor = real(o, "scalingFactor");
  c.shift_factor = real(o, "shiftFactor");
  c.down_attention = booleans(o, "downAttention");
  c.up_attention = booleans(o, "upAttention");
  c.mid_block_attention = boolean(o, "midBlockAttention");
  c.quant_conv = boolean(o, "quantConv");
  c.post_quant_conv = boolean(o, "postQuantConv");
  return c;
}

ImageConfig image_config(const Napi::Object& o) {
  ImageConfig c;
  c.grid = integer(o, "grid");
  c.latent_patch = integer(o, "latentPatch");
  c.token_channels = integer(o, "tokenChannels");
  c.head_width = integer(o, "headWidth");
  c.head_depth = integer(o, "headDepth");
  c.timesteps = integer(o, "timesteps");
  c.flow = boolean(o, "flow");
  return c;
}

Prefix prefix(const Napi::Object& parent) {
  const Napi::Object o = object(parent.Get("prefix"), "prefix");
  Prefix p;
  if (present(o, "visionPixels")) p.vision_pixels = floats(o, "visionPixels");
  if (present(o, "sourcePixels")) p.source_pixels = floats(o, "sourcePixels");
  p.tokens = tokens(o, "tokens");
  if (present(o, "plainText")) p.plain_text = boolean(o, "plainText");
  return p;
}

template <class T, class Array>
Array typed_array(Napi::Env env, const std::vector<T>& values) {
  // Copied: buffers with foreign memory are not allowed everywhere (Electron).
  Array a = Array::New(env, values.size());
  if (!values.empty()) std::memcpy(a.Data(), values.data(), values.size() * sizeof(T));
  return a;
}

}  // namespace

Napi::Object object(const Napi::Value& value, const char* what) {
  if (!value.IsObject()) wrong(what, "an object");
  return value.As<Napi::Object>();
}

double number(const Napi::Object& o, const char* field) {
  const Napi::Value v = o.Get(field);
  if (!v.IsNumber()) wrong(field, "a number");
  return v.As<Napi::Number>().DoubleValue();
}

int64_t integer(const Napi::Object& o, const char* field) {
  const double value = number(o, field);
  if (!(std::abs(value) <= 9007199254740991.0) || value != std::floor(value))
    wrong(field, "an integer");
  return static_cast<int64_t>(value);
}

std::string text(const Napi::Object& o, const char* field) {
  const Napi::Value v = o.Get(field);
  if (!v.IsString()) wrong(field, "a string");
  return v.As<Napi::String>().Utf8Value();
}

ModelSpec model_spec(const Napi::Value& value) {
  const Napi::Object o = object(value, "the model");
  ModelSpec spec;
  const Napi::Array files = array(o, "files");
  for (uint32_t i = 0; i < files.Length(); ++i) {
    const Napi::Value file = files.Get(i);
    if (!file.IsString()) wrong("files", "strings");
    spec.files.push_back(file.As<Napi::String>().Utf8Value());
  }
  const Napi::Array tensors = array(o, "tensors");
  for (uint32_t i = 0; i < tensors.Length(); ++i) {
    const Napi::HandleScope scope(value.Env());
    const Napi::Object t = object(tensors.Get(i), "a tensor");
    const int64_t offset = integer(t, "offset");
    if (offset < 0) wrong("offset", "an integer that is not negative");
    spec.records.push_back({text(t, "name"), stored_type(t, "dtype"), integers(t, "shape"),
                            integer(t, "file"), static_cast<uint64_t>(offset)});
  }
  if (present(o, "text")) spec.config.text = text_config(object(o.Get("text"), "text"));
  if (present(o, "vision")) spec.config.vision = vision_config(object(o.Get("vision"), "vision"));
  if (present(o, "vae")) spec.config.vae = vae_config(object(o.Get("vae"), "vae"));
  if (present(o, "image")) spec.config.image = image_config(object(o.Get("image"), "image"));
  return spec;
}

static Resources resources(const Napi::Object& o) {
  Resources r;
  const int64_t threads = integer(o, "threads");
  if (threads < 1 || threads > 1024) wrong("threads", "an integer from 1 to 1024");
  r.threads = static_cast<int>(threads);
  if (present(o, "isa")) r.isa = text(o, "isa");
  const int64_t memory = integer(o, "maxMemory");
  if (memory < 0) wrong("maxMemory", "an integer that is not negative");
  r.max_memory = static_cast<size_t>(memory);
  r.bf16 = present(o, "bfloat16") && boolean(o, "bfloat16");
  if (present(o, "cuda")) {
    const Napi::Object cuda = object(o.Get("cuda"), "cuda");
    const std::string type = text(cuda, "dtype");
    if (type != "float32" && type != "bfloat16") wrong("dtype", "float32 or bfloat16");
    r.cuda_library = text(cuda, "library");
    r.cuda_device = static_cast<int>(integer(cuda, "device"));
    r.cuda_type = type == "float32" ? DType::f32 : DType::bf16;
    const int64_t weights = present(cuda, "weights") ? integer(cuda, "weights") : 0;
    if (weights < 0) wrong("weights", "an integer that is not negative");
    r.cuda_weights = static_cast<size_t>(weights);
  }
  return r;
}

LoadOptions load_options(const Napi::Value& value) {
  const Napi::Object o = object(value, "the options");
  LoadOptions options{};
  options.resources = resources(o);
  options.limits.max_sequences = integer(o, "maxSequences");
  if (options.limits.max_sequences < 1) wrong("maxSequences", "a positive integer");
  if (present(o, "maxQueue")) {
    options.limits.max_queue = integer(o, "maxQueue");
    if (options.limits.max_queue < 0) wrong("maxQueue", "an integer that is not negative");
  }
  const Napi::Object activations = object(o.Get("activations"), "activations");
  const auto bytes = [&](const char* name) {
    const int64_t value = integer(activations, name);
    if (value < 0) wrong("activations", "integers that are not negative");
    return static_cast<size_t>(value);
  };
  options.limits.row_activation_bytes = bytes("row");
  options.limits.vision_activation_bytes = bytes("vision");
  options.limits.vae_activation_bytes = bytes("vae");
  options.limits.fixed_activation_bytes = bytes("fixed");
  return options;
}

static UnifiedLossOptions unified_loss_options(const Napi::Object& o) {
  const std::string order = text(o, "order");
  if (order != "random" && order != "raster") wrong("order", "random or raster");
  UnifiedLossOptions options;
  options.recompute = boolean(o, "recompute");
  options.text_weight = real(o, "textWeight");
  options.multiplier = integer(o, "batchMultiplier");
  options.noise_weight_cap = real(o, "noiseWeightCap");
  options.context_noise = real(o, "contextNoise");
  options.raster = order == "raster";
  return options;
}

static VaeLossOptions vae_loss_options(const Napi::Object& o) {
  return {real(o, "klWeight"), real(o, "latentNoise")};
}

static OptimizerOptions optimizer_options(const Napi::Object& o) {
  OptimizerOptions options;
  options.beta1 = real(o, "beta1");
  options.beta2 = real(o, "beta2");
  options.epsilon = real(o, "epsilon");
  options.weight_decay = real(o, "weightDecay");
  options.clip_norm = real(o, "clipNorm");
  options.ema_decay = real(o, "emaDecay");
  return options;
}

TrainerSettings trainer_settings(const Napi::Value& value) {
  const Napi::Object o = object(value, "the options");
  TrainerSettings settings{};
  settings.resources = resources(o);
  TrainerOptions& t = settings.options;
  const std::string compute = text(o, "compute");
  if (compute != "float32" && compute != "bfloat16") wrong("compute", "float32 or bfloat16");
  t.bf16 = compute == "bfloat16";
  t.seed = seed(o, "seed");
  const Napi::Array frozen = array(o, "frozen");
  for (uint32_t i = 0; i < frozen.Length(); ++i) {
    const Napi::Value name = frozen.Get(i);
    if (!name.IsString()) wrong("frozen", "strings");
    t.frozen.push_back(name.As<Napi::String>().Utf8Value());
  }
  if (present(o, "unified") == present(o, "vae")) wrong("the options", "either unified or vae");
  if (present(o, "vae"))
    t.loss = vae_loss_options(object(o.Get("vae"), "vae"));
  else
    t.loss = unified_loss_options(object(o.Get("unified"), "unified"));
  if (present(o, "optimizer"))
    t.optimizer = optimizer_options(object(o.Get("optimizer"), "optimizer"));
  return settings;
}

// Calls read(object, example) for each example of an array of arrays.
template <class Example, class Read>
static std::vector<std::vector<Example>> batches(const Napi::Value& value, Read read) {
  if (!value.IsArray()) wrong("the batches", "an array of arrays");
  const Napi::Array outer = value.As<Napi::Array>();
  std::vector<std::vector<Example>> out(outer.Length());
  for (uint32_t i = 0; i < out.size(); ++i) {
    const Napi::Value inner = outer.Get(i);
    if (!inner.IsArray()) wrong("the batches", "an array of arrays");
    const Napi::Array list = inner.As<Napi::Array>();
    out[i].resize(list.Length());
    for (uint32_t j = 0; j < out[i].size(); ++j) {
      const Napi::HandleScope scope(value.Env());
      read(object(list.Get(j), "an example"), out[i][j]);
    }
  }
  return out;
}

static std::vector<std::vector<TrainingSequence>> sequence_batches(const Napi::Value& value) {
  return batches<TrainingSequence>(value, [](const Napi::Object& o, TrainingSequence& s) {
    s.task = text(o, "task");
    s.tokens = tokens(o, "tokens");
    if (present(o, "visionPixels")) s.vision_pixels = floats(o, "visionPixels");
    if (present(o, "sourceLatents")) s.source_latents = floats(o, "sourceLatents");
    if (present(o, "targetTokens")) s.target_tokens = tokens(o, "targetTokens");
    if (present(o, "targetLatents")) s.target_latents = floats(o, "targetLatents");
    if (present(o, "order")) s.order = tokens(o, "order");
    if (present(o, "timesteps")) s.timesteps = floats(o, "timesteps");
    if (present(o, "noise")) s.noise = floats(o, "noise");
  });
}

static std::vector<std::vector<VaeExample>> vae_batches(const Napi::Value& value) {
  return batches<VaeExample>(value, [](const Napi::Object& o, VaeExample& example) {
    example.pixels = floats(o, "pixels");
    if (present(o, "noise")) example.noise = floats(o, "noise");
  });
}

TrainingBatches training_batches(const Napi::Value& value, bool autoencoder) {
  if (autoencoder) return vae_batches(value);
  return sequence_batches(value);
}

int64_t priority(const Napi::Value& request) {
  const Napi::Object o = object(request, "the request");
  return present(o, "priority") ? integer(o, "priority") : 0;
}

Request request(const Napi::Value& value) {
  const Napi::Object o = object(value, "the request");
  const std::string kind = text(o, "kind");
  if (kind == "text") {
    TextRequest r{};
    r.prefix = prefix(o);
    r.max_new_tokens = integer(o, "maxNewTokens");
    r.temperature = real(o, "temperature");
    r.seed = seed(o, "seed");
    r.stop_tokens = tokens(o, "stopTokens");
    r.stream = boolean(o, "stream");
    return r;
  }
  if (kind == "score") return ScoreRequest{prefix(o), tokens(o, "suffix")};
  if (kind == "draw") {
    DrawRequest r{};
    r.prefix = prefix(o);
    if (present(o, "emptyTokens")) r.empty_tokens = tokens(o, "emptyTokens");
    r.steps = integer(o, "steps");
    r.guidance = number(o, "guidance");
    r.linear_guidance = boolean(o, "linearGuidance");
    r.temperature = real(o, "temperature");
    r.x0_limit = real(o, "x0Limit");
    r.random_order = boolean(o, "randomOrder");
    r.seed = seed(o, "seed");
    r.stream = boolean(o, "stream");
    r.decode = boolean(o, "decode");
    return r;
  }
  if (kind == "encode")
    return EncodeRequest{floats(o, "pixels"), integer(o, "width"), integer(o, "height")};
  if (kind == "features") return FeaturesRequest{floats(o, "pixels")};
  if (kind == "decode")
    return DecodeRequest{floats(o, "latents"), integer(o, "columns"), integer(o, "rows")};
  wrong("kind", "text, score, draw, encode, features or decode");
}

namespace {

struct FillEvent {
  Napi::Env env;
  Napi::Object o;

  void operator()(const TokenEvent& e) {
    o.Set("type", "token");
    o.Set("token", e.token);
  }
  void operator()(const CellEvent& e) {
    o.Set("type", "cell");
    o.Set("position", static_cast<double>(e.position));
    o.Set("cell", e.cell);
    o.Set("values", typed_array<float, Napi::Float32Array>(env, e.values));
  }
  void operator()(const DoneEvent& e) {
    o.Set("type", "done");
    if (e.text) {
      o.Set("tokens", typed_array<int32_t, Napi::Int32Array>(env, e.tokens));
      o.Set("stopped", e.stopped);
    }
    if (!e.logits.empty()) o.Set("logits", typed_array<float, Napi::Float32Array>(env, e.logits));
    if (!e.latents.empty())
      o.Set("latents", typed_array<float, Napi::Float32Array>(env, e.latents));
    if (!e.features.empty())
      o.Set("features", typed_array<float, Napi::Float32Array>(env, e.features));
    if (!e.pixels.empty()) {
      o.Set("pixels", typed_array<uint8_t, Napi::Uint8Array>(env, e.pixels));
      o.Set("width", static_cast<double>(e.width));
      o.Set("height", static_cast<double>(e.height));
    }
  }
  void operator()(const ErrorEvent& e) {
    o.Set("type", "error");
    o.Set("code", e.code);
    o.Set("message", e.message);
  }
};

Napi::Object event_object(Napi::Env env, const Event& event) {
  Napi::Object o = Napi::Object::New(env);
  o.Set("id", static_cast<double>(event.id));
  std::visit(FillEvent{env, o}, event.what);
  return o;
}

Napi::Object lost_event(Napi::Env env, uint64_t id, const char* reason) {
  return event_object(
      env,
      {id, ErrorEvent{error_code::kInternal,
                      std::string("the result could not be handed to JavaScript: ") + reason}});
}

}  // namespace

Napi::Value to_js(Napi::Env env, const std::vector<Event>& events) {
  Napi::Array out = Napi::Array::New(env, events.size());
  for (size_t i = 0; i < events.size(); ++i) {
    const Napi::HandleScope scope(env);
    const auto at = static_cast<uint32_t>(i);
    try {
      out.Set(at, event_object(env, events[i]));
    } catch (const std::exception& error) {  // Napi::Error is one
      out.Set(at, lost_event(env, events[i].id, error.what()));
    }
  }
  return out;
}

Napi::Value to_js(Napi::Env env, const EngineStats& s) {
  Napi::Object o = Napi::Object::New(env);
  o.Set("running", static_cast<double>(s.running));
  o.Set("waiting", static_cast<double>(s.waiting));
  o.Set("sequenceBytes", static_cast<double>(s.sequence_bytes));
  o.Set("workspaceBytes", static_cast<double>(s.workspace_bytes));
  o.Set("allocatedBytes", static_cast<double>(s.allocated_bytes));
  o.Set("availableBytes", static_cast<double>(s.available_bytes));
  o.Set("steps", static_cast<double>(s.steps));
  o.Set("rows", static_cast<double>(s.rows));
  o.Set("graphsReplayed", static_cast<double>(s.launches.graphs));
  o.Set("listsLaunched", static_cast<double>(s.launches.plain));
  o.Set("completed", static_cast<double>(s.completed));
  o.Set("failed", static_cast<double>(s.failed));
  o.Set("cancelled", static_cast<double>(s.cancelled));
  o.Set("refused", static_cast<double>(s.refused));
  return o;
}

Napi::Object error_object(Napi::Env env, const char* code, const char* message) {
  Napi::Object o = Napi::Object::New(env);
  o.Set("code", code);
  o.Set("message", message);
  return o;
}

Napi::Object error_object(Napi::Env env, const std::exception& error) {
  const auto [code, message] = describe(error);
  return error_object(env, code, message);
}

}  // namespace unifluid::binding
