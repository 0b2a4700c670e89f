#include "core/model.h"

#include <utility>

#include "core/error.h"

namespace unifluid {

namespace {

void expect(bool fits, const char* what) {
  if (!fits) throw Error(error_code::kInvalidCheckpoint, std::string("configuration: ") + what);
}

}  // namespace

// lib/checkpoint has told the user what is wrong in their words; this keeps a mistake there from
// becoming a division by zero or a read out of bounds here.
void check_config(const ModelConfig& c) {
  if (c.text) {
    const TextConfig& t = *c.text;
    expect(t.vocab_size > 0 && t.hidden_size > 0 && t.intermediate_size > 0 && t.layers >= 0 &&
               t.heads > 0 && t.kv_heads > 0 && t.head_dim > 0,
           "sizes of the decoder must be positive");
    expect(t.heads % t.kv_heads == 0, "kv heads must divide heads");
    expect(t.head_dim % 2 == 0, "the head size must be even");
    expect(static_cast<int64_t>(t.windows.size()) == t.layers, "one window a layer");
  }
  if (c.vision) {
    const VisionConfig& v = *c.vision;
    expect(c.text.has_value(), "image features need a decoder");
    expect(v.hidden_size > 0 && v.intermediate_size > 0 && v.layers >= 0 && v.heads > 0 &&
               v.patch_size > 0 && v.image_size >= v.patch_size,
           "sizes of the vision tower must be positive");
    expect(v.hidden_size % v.heads == 0, "vision heads must divide the hidden size");
  }
  if (c.vae) {
    const VaeConfig& v = *c.vae;
    expect(!v.block_out_channels.empty() && v.block_out_channels.size() < 16 &&
               v.layers_per_block > 0 && v.latent_channels > 0 && v.norm_groups > 0,
           "sizes of the autoencoder must be positive");
    expect(v.in_channels == 3 && v.out_channels == 3,
           "the autoencoder must have 3 input and 3 output channels");
    for (int64_t channels : v.block_out_channels)
      expect(channels > 0 && channels % v.norm_groups == 0, "norm groups must divide channels");
    expect(v.down_attention.size() == v.block_out_channels.size() &&
               v.up_attention.size() == v.block_out_channels.size(),
           "expected one attention flag per autoencoder block");
    expect(v.scaling_factor != 0, "the scaling factor must not be 0");
  }
  if (c.image) {
    const ImageConfig& i = *c.image;
    expect(c.text.has_value(), "image tokens need a decoder");
    expect(i.grid > 0 && i.grid < 4096 && i.latent_patch > 0 && i.token_channels > 0 &&
               i.head_width > 0 && i.head_depth >= 0 && i.timesteps > 0,
           "sizes of the image part must be positive");
    if (c.vae)
      expect(i.token_channels == c.vae->latent_channels * i.latent_patch * i.latent_patch,
             "token channels must be latent channels times the patch");
  }
}

static const ModelConfig& checked(const ModelConfig& config) {
  check_config(config);
  return config;
}

Model::Model(const ModelConfig& config_, const std::vector<std::string>& files,
             std::vector<TensorRecord> records, std::unique_ptr<Backend> backend_)
    : config(checked(config_)), backend(std::move(backend_)), weights(files, std::move(records)) {
  if (config.text) decoder.emplace(*config.text, weights, *backend);
  if (config.vision) vision.emplace(*config.vision, config.text->hidden_size, weights, *backend);
  if (config.image) image.emplace(*config.image, config.text->hidden_size, weights, *backend);
  if (config.vae) vae.emplace(*config.vae, weights, *backend);
}

}  // namespace unifluid
