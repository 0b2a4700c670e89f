// How long operations take on a backend, for the benchmarks: inputs of random numbers, made once,
// that stay on the device; calls to warm up; then rounds of many calls and one wait.
#include <chrono>
#include <cmath>
#include <functional>

#include "core/philox.h"
#include "core/schedule.h"
#include "test/addon/helpers.h"

namespace unifluid::test {
namespace {

// Uniform in (-scale, scale). 4 Mi of them are drawn and repeated: no cache of a GPU notices.
std::vector<float> random_floats(size_t count, float scale) {
  constexpr size_t kDrawn = size_t{4} << 20;
  std::vector<float> values(count);
  for (size_t i = 0; i < count; ++i)
    values[i] =
        i >= kDrawn
            ? values[i - kDrawn]
            : scale *
                  static_cast<float>(
                      2 * uniform(philox4x32(1, static_cast<uint32_t>(i), 0, 0, 0).word[0]) - 1);
  return values;
}

struct Maker {
  Call& call;

  Tensor activation(int64_t rows, int64_t cols) {
    Tensor t = call.output(rows, cols);
    call.backend.write(random_floats(static_cast<size_t>(rows * cols), 1).data(), t);
    return t;
  }
  Tensor matrix(int64_t rows, int64_t cols) {
    const float scale = 1 / std::sqrt(static_cast<float>(cols));
    const std::vector<float> values = random_floats(static_cast<size_t>(rows * cols), scale);
    return call.backend.matrix({values.data(), DType::f32, rows, cols});
  }
  const float* vector(int64_t size) {
    const std::vector<float> values = random_floats(static_cast<size_t>(size), 0.1f);
    return call.backend.vector({values.data(), DType::f32, 1, size});
  }
};

using Run = std::function<void()>;

Run copy_run(Call& call, Maker make) {
  const int64_t rows = call.integer("rows"), cols = call.integer("cols");
  const Tensor from = make.activation(rows, cols), to = call.output(rows, cols);
  return [&call, from, to] { call.backend.copy(from, to); };
}

Run linear_run(Call& call, Maker make) {
  LinearArgs args;
  args.x = make.activation(call.integer("m"), call.integer("k"));
  args.weight = make.matrix(call.integer("n"), call.integer("k"));
  args.out = call.output(call.integer("m"), call.integer("n"));
  return [&call, args] { call.backend.linear(args); };
}

Run attention_run(Call& call, Maker make) {
  AttentionArgs args{};
  const int64_t rows = call.integer("rows");
  args.heads = call.integer("heads");
  args.kv_heads = call.integer("kvHeads");
  args.head_dim = call.integer("headDim");
  args.scale = 1 / std::sqrt(static_cast<float>(args.head_dim));
  args.soft_cap = static_cast<float>(call.number("softCap", 0));
  args.q = make.activation(rows, args.heads * args.head_dim);
  args.k = make.activation(rows, args.kv_heads * args.head_dim);
  args.v = make.activation(rows, args.kv_heads * args.head_dim);
  args.out = call.output(rows, args.heads * args.head_dim);
  // All rows see all: no part of the work is masked away.
  const auto span = std::make_shared<AttentionSpan>(AttentionSpan{0, rows, 0, rows, KvCache{}});
  args.spans = span.get();
  args.span_count = 1;
  return [&call, args, span] { call.backend.attention(args); };
}

// All sampling steps of the diffusion head for some guided tokens.
Run head_run(Call& call, Maker make) {
  struct State {
    DiffusionHeadWeights head{};
    std::vector<DiffusionHeadWeights::Block> blocks;
    std::vector<DiffusionStep> steps;
    std::vector<DiffusionToken> tokens;
  };
  const auto s = std::make_shared<State>();
  DiffusionHeadWeights& h = s->head;
  h.channels = call.integer("channels");
  h.condition = call.integer("condition");
  h.width = call.integer("width");
  h.depth = call.integer("depth");
  const int64_t w = h.width;
  h.input_proj = make.matrix(w, h.channels);
  h.cond_embed = make.matrix(w, h.condition);
  h.time_mlp0 = make.matrix(w, 256);
  h.time_mlp2 = make.matrix(w, w);
  h.input_proj_bias = h.cond_embed_bias = h.time_mlp0_bias = h.time_mlp2_bias = make.vector(w);
  for (int64_t b = 0; b < h.depth; ++b) {
    DiffusionHeadWeights::Block block{};
    block.norm_weight = block.norm_bias = block.mlp0_bias = block.mlp2_bias = make.vector(w);
    block.mlp0 = make.matrix(w, w);
    block.mlp2 = make.matrix(w, w);
    block.modulation = make.matrix(3 * w, w);
    block.modulation_bias = make.vector(3 * w);
    s->blocks.push_back(block);
  }
  h.blocks = s->blocks.data();
  h.final_modulation = make.matrix(2 * w, w);
  h.final_modulation_bias = make.vector(2 * w);
  h.final_linear = make.matrix(2 * h.channels, w);
  h.final_linear_bias = make.vector(2 * h.channels);
  s->steps = ddpm_steps(1000, call.integer("steps"));
  const int64_t count = call.integer("tokens");
  const Tensor z = make.activation(2 * count, h.condition);
  float* out = call.floats(count * h.channels);
  for (int64_t i = 0; i < count; ++i)
    s->tokens.push_back({2 * i, 2 * i + 1, 2.5f, 1.0f, 3.0f, static_cast<uint64_t>(i),
                         static_cast<int32_t>(i), out + i * h.channels});
  return [&call, s, z, count] {
    call.backend.diffusion_sample({&s->head, z, s->steps.data(),
                                   static_cast<int64_t>(s->steps.size()), s->tokens.data(), count});
  };
}

}  // namespace

// { operation: "copy" | "linear" | "attention" | "head", repeats, rounds, and its sizes } -> an
// array with the seconds a call of each round
Napi::Value time_operation(Call& call) {
  const Napi::Env env = call.arguments.Env();
  const std::string name = call.arguments.Get("operation").ToString().Utf8Value();
  const Maker make{call};
  Run run;
  if (name == "copy") run = copy_run(call, make);
  if (name == "linear") run = linear_run(call, make);
  if (name == "attention") run = attention_run(call, make);
  if (name == "head") run = head_run(call, make);
  if (!run) throw Napi::TypeError::New(env, "no such operation: " + name);
  const auto seconds = [&](int64_t calls) {
    const auto begin = std::chrono::steady_clock::now();
    for (int64_t i = 0; i < calls; ++i) {
      run();
      call.backend.submit();
    }
    call.backend.synchronize();
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
  };
  const int64_t repeats = call.integer("repeats"), rounds = call.integer("rounds");
  seconds(2);  // twice: the second call has a CUDA graph captured
  const Napi::Array times = Napi::Array::New(env, static_cast<size_t>(rounds));
  for (int64_t i = 0; i < rounds; ++i)
    times.Set(static_cast<uint32_t>(i),
              Napi::Number::New(env, seconds(repeats) / static_cast<double>(repeats)));
  return times;
}

}  // namespace unifluid::test
