#include "core/autoencoder.h"

#include <algorithm>
#include <cmath>

namespace unifluid {

namespace {

constexpr float kNormEps = 1e-6f;  // diffusers' resnet_eps for AutoencoderKL

// [channels, pixels] -> [pixels, channels]
std::vector<float> channels_last(const float* x, int64_t channels, int64_t pixels) {
  std::vector<float> out(static_cast<size_t>(channels * pixels));
  for (int64_t c = 0; c < channels; ++c)
    for (int64_t i = 0; i < pixels; ++i)
      out[static_cast<size_t>(i * channels + c)] = x[c * pixels + i];
  return out;
}

// Of stride 1 and padded all round, so that the (enlarged) image keeps its size.
ConvolutionGeometry padded(int64_t height, int64_t width, int64_t kernel, int64_t upsample = 1) {
  return {height, width, upsample, kernel, 1, kernel / 2, kernel / 2};
}

}  // namespace

// ---- weights: the structure follows the names ----

class Autoencoder::Loader {
 public:
  Loader(const VaeConfig& config, const Weights& weights, Backend& backend)
      : config_(config), weights_(weights), backend_(backend) {}

  Conv conv(const std::string& name, int64_t out, int64_t in, int64_t kernel) const {
    return {weights_.convolution(backend_, name + ".weight", out, in, kernel),
            weights_.vector(backend_, name + ".bias", out), out, kernel};
  }
  Norm norm(const std::string& name, int64_t channels) const {
    return {weights_.vector(backend_, name + ".weight", channels),
            weights_.vector(backend_, name + ".bias", channels)};
  }
  Resnet resnet(const std::string& name, int64_t in, int64_t out) const {
    Resnet r{norm(name + ".norm1", in), norm(name + ".norm2", out),
             conv(name + ".conv1", out, in, 3), conv(name + ".conv2", out, out, 3), std::nullopt};
    if (in != out) r.shortcut = conv(name + ".conv_shortcut", out, in, 1);
    return r;
  }
  Mid mid(const std::string& name, int64_t channels) const {
    Mid m{resnet(name + ".resnets.0", channels, channels), std::nullopt,
          resnet(name + ".resnets.1", channels, channels)};
    if (config_.mid_block_attention) m.attention = attention(name + ".attentions.0.", channels);
    return m;
  }
  Attention attention(const std::string& at, int64_t channels) const {
    return {norm(at + "group_norm", channels), conv(at + "to_q", channels, channels, 1),
            conv(at + "to_k", channels, channels, 1), conv(at + "to_v", channels, channels, 1),
            conv(at + "to_out.0", channels, channels, 1)};
  }
  // `blocks` and `resampler`: their names in the checkpoint. `resnets`: how many a level.
  Half half(const std::string& root, const std::string& blocks, const std::string& resampler,
            std::vector<int64_t> channels, const std::vector<bool>& attends, int64_t resnets,
            int64_t in, int64_t mid_channels, int64_t out) const {
    Half h;
    h.conv_in = conv(root + "conv_in", channels.front(), in, 3);
    int64_t current = channels.front();
    for (size_t i = 0; i < channels.size(); ++i) {
      const std::string at = root + blocks + "." + std::to_string(i) + ".";
      Level level;
      for (int64_t j = 0; j < resnets; ++j) {
        level.resnets.push_back(resnet(at + "resnets." + std::to_string(j), current, channels[i]));
        current = channels[i];
        if (attends[i])
          level.attentions.push_back(
              attention(at + "attentions." + std::to_string(j) + ".", current));
      }
      if (i + 1 < channels.size())
        level.resample = conv(at + resampler + ".0.conv", current, current, 3);
      h.levels.push_back(std::move(level));
    }
    h.mid = mid(root + "mid_block", mid_channels);
    h.norm_out = norm(root + "conv_norm_out", current);
    h.conv_out = conv(root + "conv_out", out, current, 3);
    return h;
  }

 private:
  const VaeConfig& config_;
  const Weights& weights_;
  Backend& backend_;
};

Autoencoder::Autoencoder(const VaeConfig& config, const Weights& weights, Backend& backend)
    : config_(config), backend_(backend) {
  const Loader loader(config, weights, backend);
  const std::vector<int64_t>& channels = config.block_out_channels;
  const std::vector<int64_t> reversed(channels.rbegin(), channels.rend());
  const int64_t z = config.latent_channels;
  encoder_ =
      loader.half("vae.encoder.", "down_blocks", "downsamplers", channels, config.down_attention,
                  config.layers_per_block, config.in_channels, channels.back(), 2 * z);
  decoder_ = loader.half("vae.decoder.", "up_blocks", "upsamplers", reversed, config.up_attention,
                         config.layers_per_block + 1, z, channels.back(), config.out_channels);
  if (config.quant_conv) quant_ = loader.conv("vae.quant_conv", 2 * z, 2 * z, 1);
  if (config.post_quant_conv) post_quant_ = loader.conv("vae.post_quant_conv", z, z, 1);
}

// ---- the parts ----

Autoencoder::Map Autoencoder::conv(const Conv& conv, const Map& in, Workspace& workspace,
                                   int64_t upsample, const Tensor& into) const {
  const ConvolutionGeometry geometry = padded(in.height, in.width, conv.kernel, upsample);
  const int64_t height = geometry.out_height(), width = geometry.out_width();
  const Map out{into ? into : workspace.tensor(height * width, conv.out), height, width};
  backend_.convolution({in.x, geometry, conv.weight, conv.bias, Tensor(), out.x});
  return out;
}

// Stride 2, padded to the right and below only.
void Autoencoder::downsample(const Conv& conv, const Map& in, const Tensor& out) const {
  const ConvolutionGeometry geometry{in.height, in.width, 1, conv.kernel, 2, 0, 1};
  backend_.convolution({in.x, geometry, conv.weight, conv.bias, Tensor(), out});
}

void Autoencoder::group_norm(const Norm& norm, const Tensor& x, bool silu,
                             const Tensor& out) const {
  backend_.group_norm({x, config_.norm_groups, norm.weight, norm.bias, kNormEps, silu, out});
}

Autoencoder::Map Autoencoder::norm_silu_conv(const Norm& norm, const Conv& conv_, const Map& in,
                                             Workspace& workspace) const {
  const Map out{workspace.tensor(in.height * in.width, conv_.out), in.height, in.width};
  Workspace::Scope scope(workspace);
  const Tensor normed = workspace.tensor(in.x.rows, in.x.cols);
  group_norm(norm, in.x, true, normed);
  const ConvolutionGeometry geometry = padded(in.height, in.width, conv_.kernel);
  backend_.convolution({normed, geometry, conv_.weight, conv_.bias, Tensor(), out.x});
  return out;
}

Autoencoder::Map Autoencoder::resnet(const Resnet& block, const Map& in, Workspace& workspace,
                                     const Tensor& into) const {
  const int64_t pixels = in.height * in.width;
  const Map out{into ? into : workspace.tensor(pixels, block.conv2.out), in.height, in.width};
  Workspace::Scope scope(workspace);
  const Map hidden = norm_silu_conv(block.norm1, block.conv1, in, workspace);
  group_norm(block.norm2, hidden.x, true, hidden.x);
  Tensor residual = in.x;
  if (block.shortcut) residual = conv(*block.shortcut, in, workspace).x;
  const ConvolutionGeometry geometry = padded(in.height, in.width, block.conv2.kernel);
  backend_.convolution({hidden.x, geometry, block.conv2.weight, block.conv2.bias, residual, out.x});
  return out;
}

// One head over all positions, with its residual.
Autoencoder::Map Autoencoder::attention(const Attention& block, const Map& in, Workspace& workspace,
                                        const Tensor& into) const {
  const int64_t m = in.x.rows, c = in.x.cols;
  const Map out{into ? into : workspace.tensor(m, c), in.height, in.width};
  Workspace::Scope scope(workspace);
  const Tensor normed = workspace.tensor(m, c), q = workspace.tensor(m, c);
  const Tensor k = workspace.tensor(m, c), v = workspace.tensor(m, c),
               mixed = workspace.tensor(m, c);
  group_norm(block.norm, in.x, false, normed);
  backend_.linear({normed, block.q.weight, block.q.bias, Activation::none, {}, q});
  backend_.linear({normed, block.k.weight, block.k.bias, Activation::none, {}, k});
  backend_.linear({normed, block.v.weight, block.v.bias, Activation::none, {}, v});
  const AttentionSpan all{0, m, 0, m, KvCache{}};
  AttentionArgs args{};
  args.q = q;
  args.k = k;
  args.v = v;
  args.heads = args.kv_heads = 1;
  args.head_dim = c;
  args.scale = static_cast<float>(1.0 / std::sqrt(static_cast<double>(c)));
  args.spans = &all;
  args.span_count = 1;
  args.out = mixed;
  backend_.attention(args);
  backend_.linear({mixed, block.out.weight, block.out.bias, Activation::none, in.x, out.x});
  return out;
}

Autoencoder::Map Autoencoder::mid(const Mid& block, const Map& in, Workspace& workspace) const {
  Map x = resnet(block.before, in, workspace);
  if (block.attention) x = attention(*block.attention, x, workspace);
  return resnet(block.after, x, workspace);
}

Autoencoder::Map Autoencoder::blocks(const Level& level, Map x, Workspace& workspace,
                                     const Tensor& into) const {
  const bool attends = !level.attentions.empty();
  for (size_t i = 0; i < level.resnets.size(); ++i) {
    const Tensor last = i + 1 == level.resnets.size() ? into : Tensor();
    x = resnet(level.resnets[i], x, workspace, attends ? Tensor() : last);
    if (attends) x = attention(level.attentions[i], x, workspace, last);
  }
  return x;
}

// ---- both ways ----

std::vector<float> Autoencoder::encode(const float* pixels, int64_t height, int64_t width,
                                       Workspace& workspace) const {
  Workspace::Scope scope(workspace);
  const VaeConfig& c = config_;
  const Tensor input = workspace.tensor(height * width, c.in_channels);
  backend_.write(channels_last(pixels, c.in_channels, height * width).data(), input);
  Map x = conv(encoder_.conv_in, {input, height, width}, workspace);
  for (const Level& level : encoder_.levels) {
    const int64_t channels = level.resnets.back().conv2.out;
    const int64_t down = level.resample ? 2 : 1;
    const Map result{workspace.tensor(x.height / down * (x.width / down), channels),
                     x.height / down, x.width / down};
    {
      Workspace::Scope inner(workspace);
      x = blocks(level, x, workspace, level.resample ? Tensor() : result.x);
      if (level.resample) downsample(*level.resample, x, result.x);
    }
    x = result;
  }
  x = mid(encoder_.mid, x, workspace);
  x = norm_silu_conv(encoder_.norm_out, encoder_.conv_out, x, workspace);
  if (quant_) x = conv(*quant_, x, workspace);

  // The mean is the first half of the channels.
  const int64_t cells = x.height * x.width, z = c.latent_channels;
  std::vector<float> moments(static_cast<size_t>(cells * 2 * z));
  backend_.read(x.x, moments.data());
  std::vector<float> latents(static_cast<size_t>(cells * z));
  for (int64_t i = 0; i < cells; ++i)
    for (int64_t k = 0; k < z; ++k)
      latents[static_cast<size_t>(k * cells + i)] =
          (moments[static_cast<size_t>(i * 2 * z + k)] - c.shift_factor) * c.scaling_factor;
  return latents;
}

bool Autoencoder::decode(const float* latents, int64_t height, int64_t width, Workspace& workspace,
                         uint8_t* pixels) const {
  Workspace::Scope scope(workspace);
  const VaeConfig& c = config_;
  const Tensor input = workspace.tensor(height * width, c.latent_channels);
  std::vector<float> unscaled = channels_last(latents, c.latent_channels, height * width);
  for (float& value : unscaled) value = value / c.scaling_factor + c.shift_factor;
  backend_.write(unscaled.data(), input);
  Map x{input, height, width};
  if (post_quant_) x = conv(*post_quant_, x, workspace);
  x = conv(decoder_.conv_in, x, workspace);
  x = mid(decoder_.mid, x, workspace);
  for (const Level& level : decoder_.levels) {
    const int64_t channels = level.resnets.back().conv2.out;
    const int64_t up = level.resample ? 2 : 1;
    const Map result{workspace.tensor(x.height * up * x.width * up, channels), x.height * up,
                     x.width * up};
    {
      Workspace::Scope inner(workspace);
      x = blocks(level, x, workspace, level.resample ? Tensor() : result.x);
      if (level.resample) conv(*level.resample, x, workspace, 2, result.x);
    }
    x = result;
  }
  x = norm_silu_conv(decoder_.norm_out, decoder_.conv_out, x, workspace);
  return backend_.read_pixels(x.x, pixels);
}

}  // namespace unifluid
