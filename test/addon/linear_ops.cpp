// linear, gated_linear
#include "test/addon/helpers.h"

namespace unifluid::test {

// { x, weight, bias?, activation?, residual?, inPlace?, outStride? }: inPlace writes onto
// `residual`.
Napi::Value linear(Call& call) {
  LinearArgs args;
  args.x = call.input("x");
  args.weight = call.matrix("weight");
  args.bias = call.vector("bias");
  args.activation = call.activation("activation");
  args.residual = call.input("residual");
  args.out = call.has("inPlace") ? args.residual : call.output(args.x.rows, args.weight.rows);
  call.backend.linear(args);
  return call.result(args.out);
}

// { x, gate, up, activation?, outStride? }
Napi::Value gated_linear(Call& call) {
  GatedLinearArgs args;
  args.x = call.input("x");
  args.gate = call.matrix("gate");
  args.up = call.matrix("up");
  if (call.has("activation")) args.activation = call.activation("activation");
  args.out = call.output(args.x.rows, args.gate.rows);
  call.backend.gated_linear(args);
  return call.result(args.out);
}

}  // namespace unifluid::test
