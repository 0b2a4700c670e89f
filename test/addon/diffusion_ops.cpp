// diffusion_head, diffusion_sample
#include "test/addon/helpers.h"

namespace unifluid::test {
namespace {

// { channels, condition, width, depth, flow, inputProj: { weight, bias }, condEmbed, timeMlp0,
// timeMlp2,
//   blocks: [{ normWeight, normBias, mlp0, mlp2, modulation }], finalModulation, finalLinear }
struct Head {
  DiffusionHeadWeights weights{};
  std::vector<DiffusionHeadWeights::Block> blocks;

  Head(Call& call, Napi::Object head) {
    const auto integer = [&](const char* name) { return head.Get(name).ToNumber().Int64Value(); };
    const auto layer = [&](Napi::Object owner, const char* name, Tensor& weight,
                           const float*& bias) {
      const auto value = owner.Get(name).As<Napi::Object>();
      weight = call.matrix(value.Get("weight"));
      bias = call.vector(value.Get("bias"));
    };
    DiffusionHeadWeights& w = weights;
    w.channels = integer("channels");
    w.condition = integer("condition");
    w.width = integer("width");
    w.depth = integer("depth");
    w.flow = head.Get("flow").ToBoolean();
    layer(head, "inputProj", w.input_proj, w.input_proj_bias);
    layer(head, "condEmbed", w.cond_embed, w.cond_embed_bias);
    layer(head, "timeMlp0", w.time_mlp0, w.time_mlp0_bias);
    layer(head, "timeMlp2", w.time_mlp2, w.time_mlp2_bias);
    layer(head, "finalModulation", w.final_modulation, w.final_modulation_bias);
    layer(head, "finalLinear", w.final_linear, w.final_linear_bias);
    const auto list = head.Get("blocks").As<Napi::Array>();
    blocks.resize(list.Length());
    for (uint32_t i = 0; i < list.Length(); ++i) {
      const auto item = list.Get(i).As<Napi::Object>();
      DiffusionHeadWeights::Block& block = blocks[i];
      block.norm_weight = call.vector(item.Get("normWeight"));
      block.norm_bias = call.vector(item.Get("normBias"));
      layer(item, "mlp0", block.mlp0, block.mlp0_bias);
      layer(item, "mlp2", block.mlp2, block.mlp2_bias);
      layer(item, "modulation", block.modulation, block.modulation_bias);
    }
    w.blocks = blocks.data();
  }
};

float real(Napi::Object object, const char* name) {
  return object.Get(name).ToNumber().FloatValue();
}

}  // namespace

// { head, x, time: Float32Array, z, outStride? }
Napi::Value diffusion_head(Call& call) {
  const Head head(call, call.arguments.Get("head").As<Napi::Object>());
  DiffusionHeadArgs args{};
  args.head = &head.weights;
  args.x = call.input("x");
  args.time = call.arguments.Get("time").As<Napi::Float32Array>().Data();
  args.z = call.input("z");
  args.out = call.output(args.x.rows, head.weights.channels * (head.weights.flow ? 1 : 2));
  call.backend.diffusion_head(args);
  return call.result(args.out);
}

// { head, z, steps: [DiffusionStep], tokens: [{ z, zEmpty, guidance, temperature, x0Limit, seed,
// cell }] }
// -> [tokens, channels]
// `times`: the whole again and again, each submitted as the engine submits; the results of all, one
// behind the other.
Napi::Value diffusion_sample(Call& call) {
  const Head head(call, call.arguments.Get("head").As<Napi::Object>());
  const int64_t channels = head.weights.channels;

  const auto step_list = call.arguments.Get("steps").As<Napi::Array>();
  std::vector<DiffusionStep> steps(step_list.Length());
  for (uint32_t i = 0; i < step_list.Length(); ++i) {
    const auto item = step_list.Get(i).As<Napi::Object>();
    steps[i] = {real(item, "time"),     real(item, "recip"), real(item, "recipm1"),
                real(item, "coefX0"),   real(item, "coefX"), real(item, "logBeta"),
                real(item, "logTilde"), real(item, "tau"),   item.Get("noise").ToBoolean()};
  }

  const auto token_list = call.arguments.Get("tokens").As<Napi::Array>();
  const int64_t count = token_list.Length();
  const Napi::Value given = call.arguments.Get("times");
  const int64_t times = given.IsUndefined() ? 1 : given.ToNumber().Int64Value();
  // The tokens' outputs are rows of one piece of float32 memory.
  Tensor out(call.floats(times * count * channels), DType::f32, times * count, channels);
  std::vector<DiffusionToken> tokens(static_cast<size_t>(count));
  for (uint32_t i = 0; i < token_list.Length(); ++i) {
    const auto item = token_list.Get(i).As<Napi::Object>();
    DiffusionToken& token = tokens[i];
    token.z = item.Get("z").ToNumber().Int64Value();
    token.z_empty = item.Get("zEmpty").ToNumber().Int64Value();
    token.guidance = real(item, "guidance");
    token.temperature = real(item, "temperature");
    token.x0_limit = real(item, "x0Limit");
    token.seed = seed_of(item.Get("seed"));
    token.cell = item.Get("cell").ToNumber().Int32Value();
  }

  DiffusionSampleArgs args{};
  args.head = &head.weights;
  args.z = call.input("z");
  args.steps = steps.data();
  args.step_count = static_cast<int64_t>(steps.size());
  args.tokens = tokens.data();
  args.token_count = count;
  for (int64_t time = 0; time < times; ++time) {
    for (int64_t i = 0; i < count; ++i)
      tokens[static_cast<size_t>(i)].out = static_cast<float*>(out.row(time * count + i));
    call.backend.diffusion_sample(args);
    call.backend.submit();
  }
  return call.result(out);
}

}  // namespace unifluid::test
