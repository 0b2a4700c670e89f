// The operations of core/training_backend.h. Gradients that are added to what is there come in as
// arguments of their own ("start"), so that the tests see that they are.
#include <cstring>

#include "core/schedule.h"
#include "core/training_backend.h"
#include "test/addon/helpers.h"

namespace unifluid::test {

namespace {

std::vector<int32_t> integers(Napi::Value value) {
  const auto array = value.As<Napi::Int32Array>();
  return {array.Data(), array.Data() + array.ElementLength()};
}

bool flag(Call& call, const char* name) {
  return call.has(name) && call.arguments.Get(name).ToBoolean();
}

// A vector in the backend's memory that is written to, with its values first.
float* copied(Call& call, const char* name, Tensor* tensor) {
  const auto array = call.arguments.Get(name).As<Napi::Float32Array>();
  float* memory = call.floats(static_cast<int64_t>(array.ElementLength()));
  *tensor = Tensor(memory, DType::f32, 1, static_cast<int64_t>(array.ElementLength()));
  call.backend.write(array.Data(), *tensor);
  return memory;
}

// With "rounded", where a backend takes it: a tensor in bfloat16 in the place of one in float32.
Tensor rounded(Call& call, TrainingBackend& ops, int64_t rows, int64_t cols) {
  if (!flag(call, "rounded") || !ops.takes_rounded()) return call.output(rows, cols);
  Tensor t = call.output(rows, (cols + 7) / 8 * 8).columns(0, cols);
  t.type = DType::bf16;
  return t;
}
Tensor rounded(Call& call, TrainingBackend& ops, const Tensor& x) {
  const Tensor t = rounded(call, ops, x.rows, x.cols);
  call.backend.copy(x, t);
  return t;
}
// Its values.
Napi::Value floats(Call& call, const Tensor& t) {
  const Tensor all = call.output(t.rows, t.cols);
  call.backend.copy(t, all);
  return call.result(all);
}

AttentionArgs attention_of(Call& call, std::vector<AttentionSpan>* spans) {
  AttentionArgs f = attention_settings(call);
  const auto list = call.arguments.Get("spans").As<Napi::Array>();
  for (uint32_t i = 0; i < list.Length(); ++i) {
    const auto s = list.Get(i).As<Napi::Object>();
    spans->push_back({s.Get("firstRow").ToNumber().Int64Value(),
                      s.Get("rows").ToNumber().Int64Value(), 0,
                      s.Get("prefixEnd").ToNumber().Int64Value(), KvCache{}});
  }
  f.spans = spans->data();
  f.span_count = static_cast<int64_t>(spans->size());
  return f;
}

using Body = void (*)(Call&, TrainingBackend&, Napi::Object out);

void gemm(Call& call, TrainingBackend& ops, Napi::Object out) {
  GemmArgs a{};
  a.transpose_a = flag(call, "transposeA");
  a.a = a.transpose_a ? call.input("a") : rounded(call, ops, call.input("a"));
  a.b = call.input("b");
  a.transpose_b = flag(call, "transposeB");
  a.bias = call.vector("bias");
  a.bf16 = flag(call, "bf16");
  const int64_t m = a.transpose_a ? a.a.cols : a.a.rows, n = a.transpose_b ? a.b.rows : a.b.cols;
  a.accumulate = call.has("start");
  a.out = a.accumulate ? call.input("start") : call.output(m, n);
  ops.gemm(a);
  out.Set("out", call.result(a.out));
}

void linear_backward(Call& call, TrainingBackend& ops, Napi::Object out) {
  LinearBackwardArgs a{};
  a.dout = rounded(call, ops, call.input("dout"));
  a.bf16 = flag(call, "bf16");
  Tensor bias;
  if (call.has("startBias")) a.dbias = copied(call, "startBias", &bias);
  if (call.has("x")) {
    a.x = rounded(call, ops, call.input("x"));
    a.dweight = call.input("startWeight");
  }
  if (call.has("weight")) {
    a.weight = call.input("weight");
    a.accumulate = call.has("start");
    a.dx = a.accumulate ? call.input("start") : call.output(a.dout.rows, a.weight.cols);
  }
  ops.linear_backward(a);
  if (a.dweight) out.Set("dweight", call.result(a.dweight));
  if (a.dbias) out.Set("dbias", call.result(bias));
  if (a.dx) out.Set("dx", call.result(a.dx));
}

void fill(Call& call, TrainingBackend& ops, Napi::Object out) {
  const Tensor t = call.output(call.integer("rows"), call.integer("cols"));
  ops.fill(t, static_cast<float>(call.number("value")));
  out.Set("out", call.result(t));
}

void copy(Call& call, TrainingBackend&, Napi::Object out) {
  const Tensor x = call.input("x"), to = call.output(x.rows, x.cols);
  call.backend.copy(x, to);
  out.Set("out", call.result(to));
}

void column_sum(Call& call, TrainingBackend& ops, Napi::Object out) {
  Tensor sum;
  float* memory = copied(call, "start", &sum);
  ops.column_sum({call.input("x"), memory});
  out.Set("out", call.result(sum));
}

void activation(Call& call, TrainingBackend& ops, Napi::Object out) {
  const Tensor x = call.input("x");
  const Tensor y = rounded(call, ops, x.rows, x.cols);
  ops.activation({x, call.activation("activation"), y});
  out.Set("out", floats(call, y));
}

void activation_backward(Call& call, TrainingBackend& ops, Napi::Object out) {
  const Tensor x = call.input("x");
  const bool accumulate = call.has("start");
  const Tensor dx = accumulate ? call.input("start") : rounded(call, ops, x.rows, x.cols);
  ops.activation_backward({x, call.activation("activation"), call.input("dout"), accumulate, dx});
  out.Set("dx", floats(call, dx));
}

void gated(Call& call, TrainingBackend& ops, Napi::Object out) {
  const Tensor gate = call.input("gate"), up = call.input("up");
  const Tensor y = rounded(call, ops, gate.rows, gate.cols);
  const Tensor dgate = rounded(call, ops, gate.rows, gate.cols);
  const Tensor dup = rounded(call, ops, gate.rows, gate.cols);
  ops.gated({gate, up, call.activation("activation"), y});
  ops.gated_backward({gate, up, call.activation("activation"), call.input("dout"), dgate, dup});
  out.Set("out", floats(call, y));
  out.Set("dgate", floats(call, dgate));
  out.Set("dup", floats(call, dup));
}

void gated_add(Call& call, TrainingBackend& ops, Napi::Object out) {
  const Tensor x = call.input("x"), gate = call.input("gate"), y = call.input("y");
  const Tensor sum = call.output(x.rows, x.cols), dgate = rounded(call, ops, x.rows, x.cols);
  const Tensor dy = rounded(call, ops, x.rows, x.cols);
  ops.gated_add({x, gate, y, sum});
  ops.gated_add_backward({gate, y, call.input("dout"), dgate, dy});
  out.Set("out", call.result(sum));
  out.Set("dgate", floats(call, dgate));
  out.Set("dy", floats(call, dy));
}

void rms_norm_backward(Call& call, TrainingBackend& ops, Napi::Object out) {
  const Tensor x = call.input("x");
  const bool accumulate = call.has("start");
  const Tensor dx = accumulate ? call.input("start") : rounded(call, ops, x.rows, x.cols);
  Tensor dweight;
  float* memory = copied(call, "startWeight", &dweight);
  const float* weight = call.vector("weight");
  const float eps = static_cast<float>(call.number("eps"));
  const Tensor y = rounded(call, ops, x.rows, x.cols);
  call.backend.rms_norm({x, weight, eps, Tensor(), y});
  out.Set("out", floats(call, y));
  ops.rms_norm_backward({x, weight, eps, call.input("dout"), accumulate, dx, memory});
  out.Set("dx", floats(call, dx));
  out.Set("dweight", call.result(dweight));
}

void modulated_norm(Call& call, TrainingBackend& ops, Napi::Object out) {
  const Tensor x = call.input("x"), shift = call.input("shift"), scale = call.input("scale");
  const float *weight = call.vector("weight"), *bias = call.vector("bias");
  const float eps = static_cast<float>(call.number("eps"));
  const Tensor y = rounded(call, ops, x.rows, x.cols), dx = call.output(x.rows, x.cols);
  ops.modulated_norm({x, weight, bias, shift, scale, eps, y});
  ModulatedNormBackwardArgs b{};
  b.x = x;
  b.weight = weight;
  b.bias = bias;
  b.shift = shift;
  b.scale = scale;
  b.eps = eps;
  b.dout = call.input("dout");
  b.dx = dx;
  Tensor dweight, dbias;
  if (weight) b.dweight = copied(call, "startWeight", &dweight);
  if (bias) b.dbias = copied(call, "startBias", &dbias);
  if (shift) {
    b.dshift = rounded(call, ops, x.rows, x.cols);
    b.dscale = rounded(call, ops, x.rows, x.cols);
  }
  ops.modulated_norm_backward(b);
  out.Set("out", floats(call, y));
  out.Set("dx", call.result(dx));
  if (weight) out.Set("dweight", call.result(dweight));
  if (bias) out.Set("dbias", call.result(dbias));
  if (shift) out.Set("dshift", floats(call, b.dshift));
  if (shift) out.Set("dscale", floats(call, b.dscale));
}

void attention_backward(Call& call, TrainingBackend& ops, Napi::Object out) {
  std::vector<AttentionSpan> spans;
  AttentionArgs f = attention_of(call, &spans);
  f.out = call.output(f.q.rows, f.q.cols);
  call.backend.attention(f);
  const Tensor dq = call.output(f.q.rows, f.q.cols);
  const Tensor dk = call.output(f.k.rows, f.k.cols), dv = call.output(f.v.rows, f.v.cols);
  ops.attention_backward({f, call.input("dout"), dq, dk, dv});
  out.Set("out", call.result(f.out));
  out.Set("dq", call.result(dq));
  out.Set("dk", call.result(dk));
  out.Set("dv", call.result(dv));
}

void gather_rows(Call& call, TrainingBackend& ops, Napi::Object out) {
  const auto index = integers(call.arguments.Get("index"));
  const float scale = static_cast<float>(call.number("scale"));
  const Tensor rows = call.input("start"), dtable = call.input("startTable");
  ops.gather_rows({call.input("table"), index.data(), scale, rows});
  ops.scatter_rows({call.input("dout"), index.data(), scale, dtable});
  out.Set("out", call.result(rows));
  out.Set("dtable", call.result(dtable));
}

void cross_entropy(Call& call, TrainingBackend& ops, Napi::Object out) {
  const auto targets = integers(call.arguments.Get("targets"));
  const Tensor logits = call.input("logits");
  auto losses = Napi::Float32Array::New(call.arguments.Env(), targets.size());
  ops.cross_entropy({logits, targets.data(), static_cast<float>(call.number("cap", 0)),
                     static_cast<float>(call.number("scale")), losses.Data()});
  out.Set("dlogits", call.result(logits));
  out.Set("losses", losses);
}

// timesteps: of "ddpm", indices into the schedule of 1000; of "flow", 0 to 1000
void diffusion_loss(Call& call, TrainingBackend& ops, Napi::Object out) {
  const bool flow = flag(call, "flow");
  const auto index = integers(call.arguments.Get("index"));
  const auto schedule = training_steps(1000, static_cast<float>(call.number("cap", 1)));
  std::vector<TrainingStep> steps;
  for (double t : numbers(call.arguments.Get("timesteps")))
    steps.push_back(flow ? flow_training_step(static_cast<float>(t), 1000)
                         : schedule[static_cast<size_t>(t)]);
  const Tensor output = call.input("output"), x0 = call.input("x0"), noise = call.input("noise");
  const Tensor doutput = call.output(output.rows, output.cols);
  const Tensor noised = call.output(noise.rows, noise.cols);
  auto losses = Napi::Float32Array::New(call.arguments.Env(), index.size());
  ops.diffuse({x0, index.data(), steps.data(), noise, noised});
  ops.diffusion_loss({flow, output, x0, index.data(), steps.data(), noise,
                      static_cast<float>(call.number("scale")), doutput, losses.Data()});
  out.Set("noised", call.result(noised));
  out.Set("doutput", call.result(doutput));
  out.Set("losses", losses);
}

void time_features(Call& call, TrainingBackend& ops, Napi::Object out) {
  std::vector<float> times;
  for (double t : numbers(call.arguments.Get("times"))) times.push_back(static_cast<float>(t));
  const Tensor features = call.output(static_cast<int64_t>(times.size()), 256);
  ops.time_features({times.data(), features});
  out.Set("out", call.result(features));
}

void training_noise(Call& call, TrainingBackend& ops, Napi::Object out) {
  std::vector<uint64_t> counters;
  for (double c : numbers(call.arguments.Get("counters")))
    counters.push_back(static_cast<uint64_t>(c));
  const Tensor noise = call.output(static_cast<int64_t>(counters.size()), call.integer("channels"));
  ops.training_noise({seed_of(call.arguments.Get("seed")), counters.data(), noise});
  out.Set("out", call.result(noise));
}

void patches(Call& call, TrainingBackend& ops, Napi::Object out) {
  PatchesArgs a{};
  a.x = call.input("x");
  a.images = call.integer("images");
  a.geometry = geometry_of(call);
  const Tensor dout = call.input("dout"), dx = call.input("start");
  a.out = call.output(dout.rows, dout.cols);
  ops.patches(a);
  ops.patches_backward({dout, a.images, a.geometry, dx});
  out.Set("out", call.result(a.out));
  out.Set("dx", call.result(dx));
}

void group_norm_backward(Call& call, TrainingBackend& ops, Napi::Object out) {
  const Tensor x = call.input("x");
  const bool accumulate = call.has("start");
  const Tensor dx = accumulate ? call.input("start") : call.output(x.rows, x.cols);
  Tensor dweight, dbias;
  float* weight = copied(call, "startWeight", &dweight);
  float* bias = copied(call, "startBias", &dbias);
  ops.group_norm_backward({x, call.integer("images"), call.integer("groups"), call.vector("weight"),
                           call.vector("bias"), static_cast<float>(call.number("eps")),
                           flag(call, "silu"), call.input("dout"), accumulate, dx, weight, bias});
  out.Set("dx", call.result(dx));
  out.Set("dweight", call.result(dweight));
  out.Set("dbias", call.result(dbias));
}

void adamw(Call& call, TrainingBackend& ops, Napi::Object out) {
  Tensor value, first, second, average;
  AdamWArgs a{};
  a.value = copied(call, "value", &value);
  a.first = copied(call, "first", &first);
  a.second = copied(call, "second", &second);
  a.average = copied(call, "average", &average);
  a.gradient = call.vector("gradient");
  a.count = value.cols;
  const auto number = [&](const char* name) { return static_cast<float>(call.number(name)); };
  a.gradient_scale = number("gradientScale");
  a.rate = number("rate");
  a.beta1 = number("beta1");
  a.beta2 = number("beta2");
  a.epsilon = number("epsilon");
  a.decay = number("decay");
  a.correction1 = number("correction1");
  a.correction2 = number("correction2");
  a.average_keep = number("averageKeep");
  out.Set("squares", ops.sum_of_squares(a.gradient, a.count));
  ops.adamw(a);
  out.Set("value", call.result(value));
  out.Set("first", call.result(first));
  out.Set("second", call.result(second));
  out.Set("average", call.result(average));
}

struct Entry {
  const char* name;
  Body body;
};
const Entry kEntries[] = {
    {"gemm", gemm},
    {"linearBackward", linear_backward},
    {"fill", fill},
    {"copy", copy},
    {"columnSum", column_sum},
    {"activation", activation},
    {"activationBackward", activation_backward},
    {"gated", gated},
    {"gatedAdd", gated_add},
    {"rmsNormBackward", rms_norm_backward},
    {"modulatedNorm", modulated_norm},
    {"attentionBackward", attention_backward},
    {"gatherRows", gather_rows},
    {"crossEntropy", cross_entropy},
    {"diffusionLoss", diffusion_loss},
    {"timeFeatures", time_features},
    {"trainingNoise", training_noise},
    {"patches", patches},
    {"groupNormBackward", group_norm_backward},
    {"adamw", adamw},
};

}  // namespace

// { name, ...arguments } -> the operation's results by name
Napi::Value training(Call& call) {
  const std::string name = call.arguments.Get("name").ToString().Utf8Value();
  auto out = Napi::Object::New(call.arguments.Env());
  for (const Entry& entry : kEntries) {
    if (name != entry.name) continue;
    entry.body(call, *call.backend.training(), out);
    return out;
  }
  throw Napi::Error::New(call.arguments.Env(), "there is no training operation " + name);
}

}  // namespace unifluid::test
