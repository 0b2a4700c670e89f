#include "core/decoder.h"

#include <cmath>
#include <iterator>
#include <string>

namespace unifluid {

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
    Layer layer{};
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
  const Tensor normed = workspace.tensor(m, d);
  const Tensor q = workspace.tensor(m, c.heads * c.head_dim);
  const Tensor k = workspace.tensor(m, c.kv_heads * c.head_dim);
  const Tensor v = workspace.tensor(m, c.kv_heads * c.head_dim);
  const Tensor mixed = workspace.tensor(m, c.heads * c.head_dim);
  const Tensor hidden = workspace.tensor(m, c.intermediate_size);
  const Tensor branch = c.gemma2 ? workspace.tensor(m, d) : Tensor();

  // Where a norm of the stream goes: between layers to the next one's input.
  const auto input_norm = [&](size_t layer) {
    return layer < layers_.size() ? layers_[layer].input_norm : final_norm_;
  };
  const auto input_of = [&](size_t layer) { return layer < layers_.size() ? normed : out; };

  backend_.rms_norm({x, input_norm(0), c.rms_norm_eps, Tensor(), input_of(0)});
  std::vector<AttentionSpan> attention_spans(spans.size());
  const int64_t layer_elements = c.kv_heads * c.head_dim;  // times capacity: keys of one layer
  for (size_t i = 0; i < layers_.size(); ++i) {
    const Layer& layer = layers_[i];
    const LinearArgs projections[] = {{.x = normed, .weight = layer.q, .residual = {}, .out = q},
                                      {.x = normed, .weight = layer.k, .residual = {}, .out = k},
                                      {.x = normed, .weight = layer.v, .residual = {}, .out = v}};
    backend_.grouped_linear({projections, std::size(projections)});
    for (size_t s = 0; s < spans.size(); ++s) {
      const DecoderSpan& span = spans[s];
      const size_t half =
          static_cast<size_t>(layer_elements * span.capacity) * size_of(backend_.cache_type());
      char* base = static_cast<char*>(span.cache) + 2 * i * half;
      attention_spans[s] = {span.first_row, span.rows, span.index, span.prefix_end,
                            KvCache{base, base + half, span.capacity}};
    }
    AttentionArgs attention{};
    attention.q = q;
    attention.k = k;
    attention.v = v;
    attention.heads = c.heads;
    attention.kv_heads = c.kv_heads;
    attention.head_dim = c.head_dim;
    attention.scale = c.attention_scale;
    attention.soft_cap = c.attention_soft_cap;
    attention.window = c.windows[i];
    attention.rope_theta = c.rope_theta;
    attention.first_position = c.first_position;
    attention.spans = attention_spans.data();
    attention.span_count = static_cast<int64_t>(attention_spans.size());
    attention.out = mixed;
    backend_.attention(attention);

    if (c.gemma2) {
      backend_.linear({.x = mixed, .weight = layer.o, .residual = {}, .out = branch});
      backend_.rms_norm(
          {branch, layer.post_attention_norm, c.rms_norm_eps, x, x, layer.pre_mlp_norm, normed});
      backend_.gated_linear({normed, layer.gate, layer.up, c.activation, hidden});
      backend_.linear({.x = hidden, .weight = layer.down, .residual = {}, .out = branch});
      backend_.rms_norm(
          {branch, layer.post_mlp_norm, c.rms_norm_eps, x, x, input_norm(i + 1), input_of(i + 1)});
    } else {
      backend_.linear({.x = mixed, .weight = layer.o, .residual = x, .out = x});
      backend_.rms_norm({x, layer.post_attention_norm, c.rms_norm_eps, Tensor(), normed});
      backend_.gated_linear({normed, layer.gate, layer.up, c.activation, hidden});
      backend_.linear({.x = hidden, .weight = layer.down, .residual = x, .out = x});
      backend_.rms_norm({x, input_norm(i + 1), c.rms_norm_eps, Tensor(), input_of(i + 1)});
    }
  }
}

void Decoder::logits(const Tensor& hidden, const Tensor& out) const {
  backend_.linear({.x = hidden, .weight = head_, .residual = {}, .out = out});
  if (config_.logit_soft_cap > 0) backend_.soft_cap({out, config_.logit_soft_cap});
}

}  // namespace unifluid
