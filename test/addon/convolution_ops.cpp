// convolution, and the repacking of its weight; a picture's bytes
#include "test/addon/helpers.h"

namespace unifluid::test {

// { x [height * width, in], height, width, upsample?, kernel, stride, padBefore, padAfter,
//   weight: stored [out, in * kernel * kernel], bias, residual?, inPlace?, outStride? }
Napi::Value convolution(Call& call) {
  ConvolutionArgs args{};
  args.x = call.input("x");
  args.height = call.integer("height");
  args.width = call.integer("width");
  args.upsample = static_cast<int64_t>(call.number("upsample", 1));
  args.kernel = call.integer("kernel");
  args.stride = call.integer("stride");
  args.pad_before = call.integer("padBefore");
  args.pad_after = call.integer("padAfter");
  args.weight = call.backend.convolution_weight(
      stored_tensor(call.arguments.Get("weight").As<Napi::Object>()), args.kernel);
  args.bias = call.vector("bias");
  args.residual = call.input("residual");
  const auto outputs = [&](int64_t size) {
    const int64_t padded = size * args.upsample + args.pad_before + args.pad_after;
    return (padded - args.kernel) / args.stride + 1;
  };
  args.out = call.has("inPlace")
                 ? args.residual
                 : call.output(outputs(args.height) * outputs(args.width), args.weight.rows);
  call.backend.convolution(args);
  return call.result(args.out);
}

// { x } -> bytes, packed; null where a value is not finite
Napi::Value read_pixels(Call& call) {
  const Tensor x = call.input("x");
  auto bytes = Napi::Uint8Array::New(call.arguments.Env(), static_cast<size_t>(x.size()));
  if (!call.backend.read_pixels(x, bytes.Data())) return call.arguments.Env().Null();
  return bytes;
}

}  // namespace unifluid::test
