#include "core/vision.h"

#include <cmath>
#include <cstring>
#include <string>

namespace unifluid {

void extract_patches(const VisionConfig& config, const float* pixels, float* to) {
  const int64_t p = config.patch_size, s = config.image_size;
  for (int64_t py = 0; py < config.grid(); ++py)
    for (int64_t px = 0; px < config.grid(); ++px)
      for (int64_t channel = 0; channel < 3; ++channel)
        for (int64_t y = 0; y < p; ++y, to += p)
          std::memcpy(to, pixels + (channel * s + py * p + y) * s + px * p,
                      static_cast<size_t>(p) * sizeof(float));
}

VisionTower::VisionTower(const VisionConfig& config, int64_t width, const Weights& weights,
                         Backend& backend)
    : config_(config), backend_(backend) {
  const int64_t h = config.hidden_size, mlp = config.intermediate_size;
  auto linear = [&](const std::string& name, int64_t out, int64_t in) {
    return Linear{weights.matrix(backend, name + ".weight", out, in),
                  weights.vector(backend, name + ".bias", out)};
  };
  auto norm = [&](const std::string& name) {
    return Norm{weights.vector(backend, name + ".weight", h),
                weights.vector(backend, name + ".bias", h)};
  };
  const std::string root = "vision_tower.";
  patch_ =
      linear(root + "embeddings.patch_embedding", h, 3 * config.patch_size * config.patch_size);
  positions_ =
      weights.matrix(backend, root + "embeddings.position_embedding.weight", config.features(), h);
  for (int64_t i = 0; i < config.layers; ++i) {
    const std::string at = root + "encoder.layers." + std::to_string(i) + ".";
    layers_.push_back({norm(at + "layer_norm1"), norm(at + "layer_norm2"),
                       linear(at + "self_attn.q_proj", h, h), linear(at + "self_attn.k_proj", h, h),
                       linear(at + "self_attn.v_proj", h, h),
                       linear(at + "self_attn.out_proj", h, h), linear(at + "mlp.fc1", mlp, h),
                       linear(at + "mlp.fc2", h, mlp)});
  }
  final_ = norm(root + "post_layernorm");
  projector_ = linear("multi_modal_projector.linear", width, h);
}

void VisionTower::forward(const float* pixels, Workspace& workspace, const Tensor& out) const {
  Workspace::Scope scope(workspace);
  const Tensor seen = workspace.tensor(config_.features(), config_.hidden_size);
  features(pixels, workspace, seen);
  backend_.linear({seen, projector_.weight, projector_.bias, Activation::none, {}, out});
}

void VisionTower::features(const float* pixels, Workspace& workspace, const Tensor& out) const {
  Workspace::Scope scope(workspace);
  const VisionConfig& c = config_;
  const int64_t m = c.features(), h = c.hidden_size, p = c.patch_size;

  std::vector<float> patches(static_cast<size_t>(m * 3 * p * p));
  extract_patches(c, pixels, patches.data());
  const Tensor rows = workspace.tensor(m, 3 * p * p);
  backend_.write(patches.data(), rows);

  const Tensor x = workspace.tensor(m, h);
  const Tensor normed = workspace.tensor(m, h);
  const Tensor q = workspace.tensor(m, h), k = workspace.tensor(m, h), v = workspace.tensor(m, h);
  const Tensor mixed = workspace.tensor(m, h);
  const Tensor hidden = workspace.tensor(m, c.intermediate_size);
  backend_.linear({rows, patch_.weight, patch_.bias, Activation::none, {}, x});
  backend_.add_rows({positions_, x});

  const AttentionSpan all{0, m, 0, m, KvCache{}};
  for (const Layer& layer : layers_) {
    backend_.layer_norm({x, layer.norm1.weight, layer.norm1.bias, c.layer_norm_eps, normed});
    backend_.linear({normed, layer.q.weight, layer.q.bias, Activation::none, {}, q});
    backend_.linear({normed, layer.k.weight, layer.k.bias, Activation::none, {}, k});
    backend_.linear({normed, layer.v.weight, layer.v.bias, Activation::none, {}, v});
    AttentionArgs attention{};
    attention.q = q;
    attention.k = k;
    attention.v = v;
    attention.heads = attention.kv_heads = c.heads;
    attention.head_dim = h / c.heads;
    attention.scale = static_cast<float>(1.0 / std::sqrt(static_cast<double>(h / c.heads)));
    attention.spans = &all;
    attention.span_count = 1;
    attention.out = mixed;
    backend_.attention(attention);
    backend_.linear({mixed, layer.out.weight, layer.out.bias, Activation::none, x, x});
    backend_.layer_norm({x, layer.norm2.weight, layer.norm2.bias, c.layer_norm_eps, normed});
    backend_.linear({normed, layer.fc1.weight, layer.fc1.bias, c.activation, {}, hidden});
    backend_.linear({hidden, layer.fc2.weight, layer.fc2.bias, Activation::none, x, x});
  }
  backend_.layer_norm({x, final_.weight, final_.bias, c.layer_norm_eps, out});
}

}  // namespace unifluid
