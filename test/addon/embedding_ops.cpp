// embed_tokens, image_embed, add_rows, soft_cap, sample_text
#include <cstring>
#include <iterator>
#include <vector>

#include "test/addon/helpers.h"

namespace unifluid::test {

// { ids: Int32Array, sampled?: true, table, scale, outStride? }; `sampled`: the ids lie in the
// backend's memory, backwards
Napi::Value embed_tokens(Call& call) {
  const auto ids = call.arguments.Get("ids").As<Napi::Int32Array>();
  const size_t count = ids.ElementLength();
  EmbedTokensArgs args{};
  std::vector<const int32_t*> places(count);
  if (call.has("sampled")) {
    std::vector<float> bits(count);
    const std::vector<int32_t> backwards(std::make_reverse_iterator(ids.Data() + count),
                                         std::make_reverse_iterator(ids.Data()));
    std::memcpy(bits.data(), backwards.data(), count * sizeof(float));
    float* lying = call.floats(static_cast<int64_t>(count));
    call.backend.write(bits.data(), Tensor(lying, DType::f32, 1, static_cast<int64_t>(count)));
    for (size_t i = 0; i < count; ++i)
      places[i] = reinterpret_cast<const int32_t*>(lying) + (count - 1 - i);
    args.sampled = places.data();
  } else {
    args.ids = ids.Data();
  }
  args.table = call.matrix("table");
  args.scale = static_cast<float>(call.number("scale"));
  args.out = call.output(static_cast<int64_t>(count), args.table.cols);
  call.backend.embed_tokens(args);
  return call.result(args.out);
}

// { rows: [{ token?: Float32Array, cell, next }], weight, bias, position, nextPosition, begin,
// outStride? }
Napi::Value image_embed(Call& call) {
  const auto list = call.arguments.Get("rows").As<Napi::Array>();
  std::vector<ImageRow> rows(list.Length());
  for (uint32_t i = 0; i < list.Length(); ++i) {
    const auto item = list.Get(i).As<Napi::Object>();
    rows[i].token = call.vector(item.Get("token"));
    rows[i].cell = item.Get("cell").ToNumber().Int32Value();
    rows[i].next = item.Get("next").ToNumber().Int32Value();
  }
  ImageEmbedArgs args{};
  args.rows = rows.data();
  args.weight = call.matrix("weight");
  args.bias = call.vector("bias");
  args.position = call.matrix("position");
  args.next_position = call.matrix("nextPosition");
  args.begin = call.vector("begin");
  args.out = call.output(static_cast<int64_t>(rows.size()), args.weight.rows);
  call.backend.image_embed(args);
  return call.result(args.out);
}

// { table, x }
Napi::Value add_rows(Call& call) {
  AddRowsArgs args;
  args.table = call.matrix("table");
  args.out = call.input("x");
  call.backend.add_rows(args);
  return call.result(args.out);
}

// { x, cap }
Napi::Value soft_cap(Call& call) {
  SoftCapArgs args{call.input("x"), static_cast<float>(call.number("cap"))};
  call.backend.soft_cap(args);
  return call.result(args.x);
}

// { logits, temperature: Float32Array, uniform: Float64Array } -> Int32Array
Napi::Value sample_text(Call& call) {
  SampleTextArgs args{};
  args.logits = call.input("logits");
  args.temperature = call.arguments.Get("temperature").As<Napi::Float32Array>().Data();
  args.uniform = call.arguments.Get("uniform").As<Napi::Float64Array>().Data();
  auto ids = Napi::Int32Array::New(call.arguments.Env(), static_cast<size_t>(args.logits.rows));
  args.ids = reinterpret_cast<int32_t*>(call.floats(args.logits.rows));
  call.backend.sample_text(args);
  const uint64_t ticket = call.backend.begin_read(args.ids, args.logits.rows, ids.Data());
  call.backend.finish_read(ticket);
  return ids;
}

}  // namespace unifluid::test
