// attention
#include "test/addon/helpers.h"

namespace unifluid::test {

AttentionArgs attention_settings(Call& call) {
  AttentionArgs args{};
  args.q = call.input("q");
  args.k = call.input("k");
  args.v = call.input("v");
  args.heads = call.integer("heads");
  args.kv_heads = call.integer("kvHeads");
  args.head_dim = call.integer("headDim");
  args.scale = static_cast<float>(call.number("scale"));
  args.soft_cap = static_cast<float>(call.number("softCap", 0));
  args.window = static_cast<int64_t>(call.number("window", 0));
  args.rope_theta = static_cast<float>(call.number("ropeTheta", 0));
  args.first_position = static_cast<int64_t>(call.number("firstPosition", 0));
  args.bf16 = call.number("bf16", 0) != 0;
  return args;
}

// { q, k, v, heads, kvHeads, headDim, scale, softCap?, window?, ropeTheta?, firstPosition?,
//   spans: [{ firstRow, rows, index, prefixEnd, cache? }], outStride? }
Napi::Value attention(Call& call, std::vector<Cache>& caches) {
  const auto list = call.arguments.Get("spans").As<Napi::Array>();
  std::vector<AttentionSpan> spans(list.Length());
  for (uint32_t i = 0; i < list.Length(); ++i) {
    const auto item = list.Get(i).As<Napi::Object>();
    spans[i].first_row = item.Get("firstRow").ToNumber().Int64Value();
    spans[i].rows = item.Get("rows").ToNumber().Int64Value();
    spans[i].index = item.Get("index").ToNumber().Int64Value();
    spans[i].prefix_end = item.Get("prefixEnd").ToNumber().Int64Value();
    const Napi::Value cache = item.Get("cache");
    if (!cache.IsUndefined()) spans[i].cache = caches.at(cache.ToNumber().Uint32Value()).kv;
  }
  AttentionArgs args = attention_settings(call);
  args.spans = spans.data();
  args.span_count = static_cast<int64_t>(spans.size());
  args.out = call.output(args.q.rows, args.heads * args.head_dim);
  call.backend.attention(args);
  return call.result(args.out);
}

}  // namespace unifluid::test
