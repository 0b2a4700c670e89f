#include "core/decoder.h"

#include <cmath>
#include <iterator>
#include <string>

namespace unifluid {

namespace {

// Bytes of the keys, or of the values, of a layer.
size_t half_of_layer(const Backend& backend, const DecoderStepArgs& args, int64_t capacity) {
  return static_cast<size_t>(args.kv_heads * args.head_dim * capacity) *
         size_of(backend.cache_type());
}

}  // namespace

void run_decoder_step(Backend& backend, const DecoderStepArgs& args) {
  const Tensor &x = args.x, &normed = args.normed, &branch = args.branch, &hidden = args.hidden;
  const int64_t count = args.layer_count;
  // Where a norm of the stream goes: between layers to the next one's input.
  const auto input_norm = [&](int64_t layer) {
    return layer < count ? args.layers[layer].input_norm : args.final_norm;
  };
  const auto input_of = [&](int64_t layer) { return layer < count ? normed : args.out; };

  backend.rms_norm({x, input_norm(0), args.eps, Tensor(), input_of(0)});
  std::vector<AttentionSpan> spans(static_cast<size_t>(args.span_count));
  for (int64_t i = 0; i < count; ++i) {
    const DecoderLayer& layer = args.layers[i];
    const LinearArgs projections[] = {
        {.x = normed, .weight = layer.q, .residual = {}, .out = args.q},
        {.x = normed, .weight = layer.k, .residual = {}, .out = args.k},
        {.x = normed, .weight = layer.v, .residual = {}, .out = args.v}};
    backend.grouped_linear({projections, std::size(projections)});
    for (size_t s = 0; s < spans.size(); ++s) {
      spans[s] = args.spans[s];
      KvCache& cache = spans[s].cache;
      const size_t before =
          2 * static_cast<size_t>(i) * half_of_layer(backend, args, cache.capacity);
      cache.keys = static_cast<char*>(cache.keys) + before;
      cache.values = static_cast<char*>(cache.values) + before;
    }
    AttentionArgs attention{};
    attention.q = args.q;
    attention.k = args.k;
    attention.v = args.v;
    attention.heads = args.heads;
    attention.kv_heads = args.kv_heads;
    attention.head_dim = args.head_dim;
    attention.scale = args.scale;
    attention.soft_cap = args.soft_cap;
    attention.window = layer.window;
    attention.rope_theta = args.rope_theta;
    attention.first_position = args.first_position;
    attention.spans = spans.data();
    attention.span_count = args.span_count;
    attention.out = args.mixed;
    backend.attention(attention);

    if (layer.pre_mlp_norm) {
      backend.linear({.x = args.mixed, .weight = layer.o, .residual = {}, .out = branch});
      backend.rms_norm(
          {branch, layer.post_attention_norm, args.eps, x, x, layer.pre_mlp_norm, normed});
      backend.gated_linear({normed, layer.gate, layer.up, args.activation, hidden});
      backend.linear({.x = hidden, .weight = layer.down, .residual = {}, .out = branch});
      backend.rms_norm(
          {branch, layer.post_mlp_norm, args.eps, x, x, input_norm(i + 1), input_of(i + 1)});
    } else {
      backend.linear({.x = args.mixed, .weight = layer.o, .residual = x, .out = x});
      backend.rms_norm({x, layer.post_attention_norm, args.eps, Tensor(), normed});
      backend.gated_linear({normed, layer.gate, layer.up, args.activation, hidden});
      backend.linear({.x = hidden, .weight = layer.down, .residual = x, .out = x});
      backend.rms_norm({x, input_norm(i + 1), args.eps, Tensor(), input_of(i + 1)});
    }
  }
}

Decoder::Decoder(const TextConfig& config, const Weights& weights, Backend& backend)
    : config_(config), backend_(backend) {
  const int64_t d = config.hidden_size, mlp = config.intermediate_size;
  const int64_t q = config.heads * config.head_dim, kv = config.kv_heads * config.head_dim;
  const std::string root = "language_model.";
  embedding_ = weights.matrix(backend, root + "embed_tokens.weight", config.vocab_size, d);
  head_ =
      config.tied ? embedding_ : weights.matrix(backend, "lm_head.weight", config.vocab_size, d);
  final_norm_ = weights.vector(backend, root + "norm.weight", d);
  for (int64_t i = 0; i < config.layers; ++i) {
    const std::string at = root + "layers." + std::to_string(i) + ".";
    auto matrix = [&](const char* name, int64_t rows, int64_t cols) {
      return weights.matrix(backend, at + name, rows, cols);
    };
    auto norm = [&](const char* name) { return weights.vector(backend, at + name, d); };
    DecoderLayer layer{};
    layer.input_norm = norm("input_layernorm.weight");
    layer.post_attention_norm = norm("post_attention_layernorm.weight");
    if (config.gemma2) {
      layer.pre_mlp_norm = norm("pre_feedforward_layernorm.weight");
      layer.post_mlp_norm = norm("post_feedforward_layernorm.weight");
    }
    layer.q = matrix("self_attn.q_proj.weight", q, d);
    layer.k = matrix("self_attn.k_proj.weight", kv, d);
    layer.v = matrix("self_attn.v_proj.weight", kv, d);
    layer.o = matrix("self_attn.o_proj.weight", d, q);
    layer.gate = matrix("mlp.gate_proj.weight", mlp, d);
    layer.up = matrix("mlp.up_proj.weight", mlp, d);
    layer.down = matrix("mlp.down_proj.weight", d, mlp);
    layer.window = config.windows[static_cast<size_t>(i)];
    layers_.push_back(layer);
  }
}

size_t Decoder::cache_bytes(int64_t capacity) const {
  return static_cast<size_t>(config_.layers * 2 * config_.kv_heads * config_.head_dim * capacity) *
         size_of(backend_.cache_type());
}

// transformers rounds the factor to the type of the embeddings; in float32 that is this.
float Decoder::embedding_scale() const {
  return static_cast<float>(std::sqrt(static_cast<double>(config_.hidden_size)));
}

void Decoder::embed(const int32_t* ids, const Tensor& out) const {
  backend_.embed_tokens({ids, embedding_, embedding_scale(), out});
}

void Decoder::embed(const int32_t* const* sampled, const Tensor& out) const {
  backend_.embed_tokens({nullptr, embedding_, embedding_scale(), out, sampled});
}

void Decoder::forward(const Tensor& x, const std::vector<DecoderSpan>& spans, Workspace& workspace,
                      const Tensor& out) const {
  Workspace::Scope scope(workspace);
  const TextConfig& c = config_;
  const int64_t m = x.rows, d = c.hidden_size;
  DecoderStepArgs args{};
  args.x = x;
  args.layers = layers_.data();
  args.layer_count = static_cast<int64_t>(layers_.size());
  args.final_norm = final_norm_;
  args.eps = c.rms_norm_eps;
  args.activation = c.activation;
  args.heads = c.heads;
  args.kv_heads = c.kv_heads;
  args.head_dim = c.head_dim;
  args.scale = c.attention_scale;
  args.soft_cap = c.attention_soft_cap;
  args.rope_theta = c.rope_theta;
  args.first_position = c.first_position;
  std::vector<AttentionSpan> first_layer(spans.size());
  for (size_t s = 0; s < spans.size(); ++s) {
    const DecoderSpan& span = spans[s];
    first_layer[s] = {span.first_row, span.rows, span.index, span.prefix_end,
                      KvCache{span.cache, nullptr, span.capacity}};
    first_layer[s].cache.values =
        static_cast<char*>(span.cache) + half_of_layer(backend_, args, span.capacity);
  }
  args.spans = first_layer.data();
  args.span_count = static_cast<int64_t>(first_layer.size());
  args.normed = workspace.tensor(m, d);
  args.q = workspace.tensor(m, c.heads * c.head_dim);
  args.k = workspace.tensor(m, c.kv_heads * c.head_dim);
  args.v = workspace.tensor(m, c.kv_heads * c.head_dim);
  args.mixed = workspace.tensor(m, c.heads * c.head_dim);
  args.hidden = workspace.tensor(m, c.intermediate_size);
  if (c.gemma2) args.branch = workspace.tensor(m, d);
  args.out = out;
  if (!backend_.decoder_step(args)) run_decoder_step(backend_, args);
}

void Decoder::logits(const Tensor& hidden, const Tensor& out) const {
  backend_.linear({.x = hidden, .weight = head_, .residual = {}, .out = out});
  if (config_.logit_soft_cap > 0) backend_.soft_cap({out, config_.logit_soft_cap});
}

}  // namespace unifluid
