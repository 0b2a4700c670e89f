// What a model is made of: the fields of config.json that the computation needs, read and checked
// by lib/checkpoint. Names follow lib/native.ts.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "core/backend.h"

namespace unifluid {

// Gemma 1 or 2 (spec section 4).
struct TextConfig {
  bool gemma2 = false;
  int64_t vocab_size = 0;
  int64_t hidden_size = 0;
  int64_t intermediate_size = 0;
  int64_t layers = 0;
  int64_t heads = 0;
  int64_t kv_heads = 0;
  int64_t head_dim = 0;
  float rms_norm_eps = 0;
  float rope_theta = 0;
  float attention_scale = 0;
  float attention_soft_cap = 0;  // 0: none
  float logit_soft_cap = 0;      // 0: none
  std::vector<int64_t> windows;  // one a layer; 0: full attention
  Activation activation = Activation::gelu_tanh;
  int64_t first_position = 0;
  bool bidirectional_prefix = false;
  bool tied = true;
};

// SigLIP's vision tower without its pooling head.
struct VisionConfig {
  int64_t hidden_size = 0;
  int64_t intermediate_size = 0;
  int64_t layers = 0;
  int64_t heads = 0;
  int64_t image_size = 0;
  int64_t patch_size = 0;
  float layer_norm_eps = 0;
  Activation activation = Activation::gelu_tanh;

  // Whole patches across; pixels behind the last one belong to none.
  int64_t grid() const { return image_size / patch_size; }
  int64_t features() const { return grid() * grid(); }
};

// diffusers' AutoencoderKL.
struct VaeConfig {
  int64_t in_channels = 3;
  int64_t out_channels = 3;
  std::vector<int64_t> block_out_channels;
  int64_t layers_per_block = 0;
  int64_t latent_channels = 0;
  int64_t norm_groups = 0;
  float scaling_factor = 1;
  float shift_factor = 0;
  // Whether attention stands behind each resnet of a block; one a block of the encoder and of the
  // decoder, in their order.
  std::vector<bool> down_attention, up_attention;
  bool mid_block_attention = true;
  bool quant_conv = true;
  bool post_quant_conv = true;

  // Pixels per latent cell, along each side.
  int64_t factor() const { return int64_t{1} << (block_out_channels.size() - 1); }
};

// How a UniFluid model draws (spec sections 2 and 6).
struct ImageConfig {
  int64_t grid = 0;
  int64_t latent_patch = 1;
  int64_t token_channels = 0;
  int64_t head_width = 0;
  int64_t head_depth = 0;
  int64_t timesteps = 1000;
  bool flow = false;

  int64_t cells() const { return grid * grid; }
};

struct ModelConfig {
  std::optional<TextConfig> text;
  std::optional<VisionConfig> vision;
  std::optional<VaeConfig> vae;
  std::optional<ImageConfig> image;
};

}  // namespace unifluid
