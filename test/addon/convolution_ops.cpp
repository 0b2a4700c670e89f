// convolution, and the repacking of its weight; a picture's bytes
#include "test/addon/helpers.h"

namespace unifluid::test {

// { height, width, upsample?, kernel, stride, padBefore, padAfter }
ConvolutionGeometry geometry_of(const Call& call) {
  return {call.integer("height"),
          call.integer("width"),
          static_cast<int64_t>(call.number("upsample", 1)),
          call.integer("kernel"),
          call.integer("stride"),
          call.integer("padBefore"),
          call.integer("padAfter")};
}

// { x [height * width, in], height, width, upsample?, kernel, stride, padBefore, padAfter,
//   weight: stored [out, in * kernel * kernel], bias, residual?, inPlace?, outStride? }
Napi::Value convolution(Call& call) {
  ConvolutionArgs args{};
  args.x = call.input("x");
  args.geometry = geometry_of(call);
  args.weight = call.backend.convolution_weight(
      stored_tensor(call.arguments.Get("weight").As<Napi::Object>()), args.geometry.kernel);
  args.bias = call.vector("bias");
  args.residual = call.input("residual");
  const int64_t pixels = args.geometry.out_height() * args.geometry.out_width();
  args.out = call.has("inPlace") ? args.residual : call.output(pixels, args.weight.rows);
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
