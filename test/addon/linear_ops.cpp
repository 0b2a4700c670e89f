// linear, grouped_linear, gated_linear
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

// { x, products: [{ weight, bias?, activation?, residual? }], outStride? }: a result each
Napi::Value grouped_linear(Call& call) {
  const auto list = call.arguments.Get("products").As<Napi::Array>();
  std::vector<LinearArgs> products;
  const Tensor x = call.input("x");
  for (uint32_t i = 0; i < list.Length(); ++i) {
    const auto product = list.Get(i).As<Napi::Object>();
    LinearArgs args;
    args.x = x;
    args.weight = call.matrix(product.Get("weight"));
    args.bias = call.vector(product.Get("bias"));
    args.activation = call.activation(product.Get("activation"));
    args.residual = call.input(product.Get("residual"));
    args.out = call.output(x.rows, args.weight.rows);
    products.push_back(args);
  }
  call.backend.grouped_linear({products.data(), static_cast<int64_t>(products.size())});
  auto results = Napi::Array::New(call.arguments.Env(), products.size());
  for (uint32_t i = 0; i < products.size(); ++i) results.Set(i, call.result(products[i].out));
  return results;
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
