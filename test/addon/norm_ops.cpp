// rms_norm, layer_norm, group_norm
#include "test/addon/helpers.h"

namespace unifluid::test {

// { x, weight, eps, residual?, inPlace?: "x" | "residual", outStride? }
Napi::Value rms_norm(Call& call) {
  RmsNormArgs args{};
  args.x = call.input("x");
  args.weight = call.vector("weight");
  args.eps = static_cast<float>(call.number("eps"));
  args.residual = call.input("residual");
  if (call.has("inPlace"))
    args.out = call.arguments.Get("inPlace").ToString().Utf8Value() == "x" ? args.x : args.residual;
  else
    args.out = call.output(args.x.rows, args.x.cols);
  call.backend.rms_norm(args);
  return call.result(args.out);
}

// { x, weight, eps, residual, nextWeight, outStride? } -> { out, next }; out is `residual`'s memory
Napi::Value rms_norms(Call& call) {
  RmsNormArgs args{};
  args.x = call.input("x");
  args.weight = call.vector("weight");
  args.eps = static_cast<float>(call.number("eps"));
  args.residual = args.out = call.input("residual");
  args.next_weight = call.vector("nextWeight");
  args.next_out = call.output(args.x.rows, args.x.cols);
  call.backend.rms_norm(args);
  auto results = Napi::Object::New(call.arguments.Env());
  results.Set("out", call.result(args.out));
  results.Set("next", call.result(args.next_out));
  return results;
}

// { x, weight?, bias?, eps, inPlace?, outStride? }
Napi::Value layer_norm(Call& call) {
  LayerNormArgs args{};
  args.x = call.input("x");
  args.weight = call.vector("weight");
  args.bias = call.vector("bias");
  args.eps = static_cast<float>(call.number("eps"));
  args.out = call.has("inPlace") ? args.x : call.output(args.x.rows, args.x.cols);
  call.backend.layer_norm(args);
  return call.result(args.out);
}

// { x, groups, weight, bias, eps, silu?, inPlace?, outStride? }
Napi::Value group_norm(Call& call) {
  GroupNormArgs args{};
  args.x = call.input("x");
  args.groups = call.integer("groups");
  args.weight = call.vector("weight");
  args.bias = call.vector("bias");
  args.eps = static_cast<float>(call.number("eps"));
  args.silu = call.has("silu") && call.arguments.Get("silu").ToBoolean();
  args.out = call.has("inPlace") ? args.x : call.output(args.x.rows, args.x.cols);
  call.backend.group_norm(args);
  return call.result(args.out);
}

}  // namespace unifluid::test
