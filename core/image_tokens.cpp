#include "core/image_tokens.h"

#include <string>

#include "core/schedule.h"

namespace unifluid {

namespace {

// Schedules that are kept.
constexpr size_t kSchedules = 64;

// Calls move(index in the latents, index in the tokens) for every value.
template <class Move>
void each_value(int64_t channels, int64_t rows, int64_t columns, int64_t patch, Move move) {
  const int64_t width = columns * patch, height = rows * patch;
  for (int64_t c = 0; c < channels; ++c)
    for (int64_t y = 0; y < height; ++y)
      for (int64_t x = 0; x < width; ++x) {
        const int64_t cell = y / patch * columns + x / patch;
        const int64_t value = (c * patch + y % patch) * patch + x % patch;
        move((c * height + y) * width + x, cell * channels * patch * patch + value);
      }
}

}  // namespace

std::vector<float> patchify(const float* latents, int64_t channels, int64_t rows, int64_t columns,
                            int64_t patch) {
  std::vector<float> tokens(static_cast<size_t>(channels * rows * columns * patch * patch));
  each_value(channels, rows, columns, patch,
             [&](int64_t l, int64_t t) { tokens[static_cast<size_t>(t)] = latents[l]; });
  return tokens;
}

std::vector<float> unpatchify(const float* tokens, int64_t channels, int64_t rows, int64_t columns,
                              int64_t patch) {
  std::vector<float> latents(static_cast<size_t>(channels * rows * columns * patch * patch));
  each_value(channels, rows, columns, patch,
             [&](int64_t l, int64_t t) { latents[static_cast<size_t>(l)] = tokens[t]; });
  return latents;
}

ImageTokens::ImageTokens(const ImageConfig& config, int64_t width, const Weights& weights,
                         Backend& backend)
    : config_(config), backend_(backend) {
  const int64_t c = config.token_channels, w = config.head_width, n = config.cells();
  auto matrix = [&](const std::string& name, int64_t rows, int64_t cols) {
    return weights.matrix(backend, name + ".weight", rows, cols);
  };
  auto bias = [&](const std::string& name, int64_t size) {
    return weights.vector(backend, name + ".bias", size);
  };
  in_ = matrix("image_in", width, c);
  in_bias_ = bias("image_in", width);
  position_ = matrix("image_position", n, width);
  next_position_ = matrix("image_next_position", n, width);
  begin_ = weights.vector(backend, "image_begin", width);

  const std::string root = "diffusion_head.";
  const int64_t outputs = config.flow ? c : 2 * c;
  head_.channels = c;
  head_.condition = width;
  head_.width = w;
  head_.depth = config.head_depth;
  head_.flow = config.flow;
  head_.input_proj = matrix(root + "input_proj", w, c);
  head_.input_proj_bias = bias(root + "input_proj", w);
  head_.cond_embed = matrix(root + "cond_embed", w, width);
  head_.cond_embed_bias = bias(root + "cond_embed", w);
  head_.time_mlp0 = matrix(root + "time_embed.mlp.0", w, 256);
  head_.time_mlp0_bias = bias(root + "time_embed.mlp.0", w);
  head_.time_mlp2 = matrix(root + "time_embed.mlp.2", w, w);
  head_.time_mlp2_bias = bias(root + "time_embed.mlp.2", w);
  for (int64_t i = 0; i < config.head_depth; ++i) {
    const std::string at = root + "res_blocks." + std::to_string(i) + ".";
    DiffusionHeadWeights::Block block{};
    block.norm_weight = weights.vector(backend, at + "in_ln.weight", w);
    block.norm_bias = weights.vector(backend, at + "in_ln.bias", w);
    block.mlp0 = matrix(at + "mlp.0", w, w);
    block.mlp0_bias = bias(at + "mlp.0", w);
    block.mlp2 = matrix(at + "mlp.2", w, w);
    block.mlp2_bias = bias(at + "mlp.2", w);
    block.modulation = matrix(at + "adaLN_modulation.1", 3 * w, w);
    block.modulation_bias = bias(at + "adaLN_modulation.1", 3 * w);
    blocks_.push_back(block);
  }
  head_.blocks = blocks_.data();
  head_.final_modulation = matrix(root + "final_layer.adaLN_modulation.1", 2 * w, w);
  head_.final_modulation_bias = bias(root + "final_layer.adaLN_modulation.1", 2 * w);
  head_.final_linear = matrix(root + "final_layer.linear", outputs, w);
  head_.final_linear_bias = bias(root + "final_layer.linear", outputs);
}

void ImageTokens::embed(const std::vector<ImageRow>& rows, const Tensor& out) const {
  backend_.image_embed({rows.data(), in_, in_bias_, position_, next_position_, begin_, out});
}

void ImageTokens::sample(const Tensor& z, int64_t steps,
                         const std::vector<DiffusionToken>& tokens) {
  // Requests choose the number: what they asked for once must not stay for ever.
  auto schedule = schedules_.find(steps);
  if (schedule == schedules_.end()) {
    if (schedules_.size() >= kSchedules) schedules_.clear();
    const auto make = config_.flow ? flow_steps : ddpm_steps;
    schedule = schedules_.emplace(steps, make(config_.timesteps, steps)).first;
  }
  backend_.diffusion_sample({&head_, z, schedule->second.data(),
                             static_cast<int64_t>(schedule->second.size()), tokens.data(),
                             static_cast<int64_t>(tokens.size())});
}

}  // namespace unifluid
