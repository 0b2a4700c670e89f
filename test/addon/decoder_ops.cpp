// decoder_step
#include <cmath>

#include "core/decoder.h"
#include "test/addon/helpers.h"

namespace unifluid::test {
namespace {

DecoderLayer layer_of(Call& call, Napi::Object o) {
  DecoderLayer layer{};
  layer.input_norm = call.vector(o.Get("inputNorm"));
  layer.post_attention_norm = call.vector(o.Get("postAttentionNorm"));
  layer.pre_mlp_norm = call.vector(o.Get("preMlpNorm"));
  layer.post_mlp_norm = call.vector(o.Get("postMlpNorm"));
  layer.q = call.matrix(o.Get("q"));
  layer.k = call.matrix(o.Get("k"));
  layer.v = call.matrix(o.Get("v"));
  layer.o = call.matrix(o.Get("o"));
  layer.gate = call.matrix(o.Get("gate"));
  layer.up = call.matrix(o.Get("up"));
  layer.down = call.matrix(o.Get("down"));
  layer.window = o.Get("window").ToNumber().Int64Value();
  return layer;
}

}  // namespace

// { x, layers, finalNorm, eps, activation, heads, kvHeads, headDim, scale, softCap, ropeTheta,
//   firstPosition, spans: [{ firstRow, rows, index, prefixEnd, capacity, cache }], steps, whole }
// -> { out, caches, whole, graphs }: each step takes the rows again, behind those of the one
// before.
Napi::Value decoder_step(Call& call) {
  const Napi::Env env = call.arguments.Env();
  const Tensor given = call.input("x");
  DecoderStepArgs args{};
  const int64_t m = given.rows, d = given.cols;
  args.x = call.output(m, d);
  const auto layer_list = call.arguments.Get("layers").As<Napi::Array>();
  std::vector<DecoderLayer> layers;
  for (uint32_t i = 0; i < layer_list.Length(); ++i)
    layers.push_back(layer_of(call, layer_list.Get(i).As<Napi::Object>()));
  args.layers = layers.data();
  args.layer_count = static_cast<int64_t>(layers.size());
  args.final_norm = call.vector("finalNorm");
  args.eps = static_cast<float>(call.number("eps"));
  args.activation = call.activation("activation");
  args.heads = call.integer("heads");
  args.kv_heads = call.integer("kvHeads");
  args.head_dim = call.integer("headDim");
  args.scale = static_cast<float>(call.number("scale"));
  args.soft_cap = static_cast<float>(call.number("softCap"));
  args.rope_theta = static_cast<float>(call.number("ropeTheta"));
  args.first_position = call.integer("firstPosition");
  const auto span_list = call.arguments.Get("spans").As<Napi::Array>();
  std::vector<AttentionSpan> spans;
  std::vector<Tensor> caches;
  for (uint32_t i = 0; i < span_list.Length(); ++i) {
    const auto o = span_list.Get(i).As<Napi::Object>();
    const auto integer = [&](const char* name) { return o.Get(name).ToNumber().Int64Value(); };
    const Tensor cache = call.input(o.Get("cache"));  // [layers * 2 * kv_heads * capacity, head]
    const int64_t capacity = integer("capacity"), half = args.kv_heads * capacity;
    spans.push_back({integer("firstRow"), integer("rows"), integer("index"), integer("prefixEnd"),
                     KvCache{cache.row(0), cache.row(half), capacity}});
    caches.push_back(cache);
  }
  args.spans = spans.data();
  args.span_count = static_cast<int64_t>(spans.size());
  const int64_t q = args.heads * args.head_dim, kv = args.kv_heads * args.head_dim;
  args.normed = call.output(m, d);
  args.q = call.output(m, q);
  args.k = call.output(m, kv);
  args.v = call.output(m, kv);
  args.mixed = call.output(m, q);
  args.hidden = call.output(m, layers[0].gate.rows);
  args.branch = call.output(m, d);
  args.out = call.output(m, d);
  const Tensor kept = call.output(m, d);

  const bool asked = call.arguments.Get("whole").ToBoolean();
  const int64_t before = call.backend.launches().graphs;
  bool whole = true;
  call.backend.submit();
  for (int64_t step = call.integer("steps"); step > 0; --step) {
    call.backend.copy(given, args.x);
    const bool done = asked && call.backend.decoder_step(args);
    if (!done) run_decoder_step(call.backend, args);
    whole = whole && done;
    call.backend.copy(args.out, kept);
    call.backend.submit();
    for (AttentionSpan& span : spans) span.index += span.rows;
  }
  auto result = Napi::Object::New(env);
  result.Set("out", call.result(kept));
  auto rows = Napi::Array::New(env, caches.size());
  for (uint32_t i = 0; i < caches.size(); ++i) rows.Set(i, call.result(caches[i]));
  result.Set("caches", rows);
  result.Set("whole", Napi::Boolean::New(env, whole));
  result.Set("graphs", static_cast<double>(call.backend.launches().graphs - before));
  return result;
}

}  // namespace unifluid::test
