#include "core/train/vae_loss.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "core/error.h"
#include "core/noise.h"

namespace unifluid {

namespace {

constexpr float kNormEps = 1e-6f;
constexpr float kLeastLog = -30, kMostLog = 20;  // bounds of the log variance

int64_t side_of(const VaeExample& example) {
  return std::llround(std::sqrt(static_cast<double>(example.pixels.size()) / 3));
}

}  // namespace

void VaeLoss::check(const VaeExample& example, const std::string& place) const {
  const int64_t side = side_of(example), factor = config_.factor();
  if (side == 0 || side % factor != 0 ||
      static_cast<size_t>(3 * side * side) != example.pixels.size())
    throw Error(error_code::kInvalidArgument,
                place + ": expected a square picture whose side is a multiple of " +
                    std::to_string(factor));
  const int64_t cells = side / factor * (side / factor);
  if (!example.noise.empty() &&
      example.noise.size() != static_cast<size_t>(cells * config_.latent_channels))
    throw Error(error_code::kInvalidArgument, place + ": the noise does not fit the picture");
}

VaeLoss::Map VaeLoss::convolution(Tape& tape, const Map& in, const std::string& name,
                                  Var residual) const {
  const Parameter& weight = at(name + ".weight");
  const int64_t kernel = weight.kernel, pad = kernel / 2;
  const auto& [images, height, width] = in.shape;
  return {tape.convolution(in.x, images, {height, width, 1, kernel, 1, pad, pad}, weight,
                           at(name + ".bias"), residual),
          in.shape, weight.rows};
}

// Up: pixels twice, then a convolution. Down: stride 2, padded to the right and below only.
VaeLoss::Map VaeLoss::resample(Tape& tape, const Map& in, const std::string& name, bool up) const {
  const Parameter& weight = at(name + ".weight");
  const auto& [images, height, width] = in.shape;
  const ConvolutionGeometry geometry = up ? ConvolutionGeometry{height, width, 2, 3, 1, 1, 1}
                                          : ConvolutionGeometry{height, width, 1, 3, 2, 0, 1};
  return {tape.convolution(in.x, images, geometry, weight, at(name + ".bias")),
          {images, geometry.out_height(), geometry.out_width()},
          weight.rows};
}

VaeLoss::Map VaeLoss::group_norm(Tape& tape, const Map& in, const std::string& name,
                                 bool silu) const {
  return {tape.group_norm(in.x, in.shape.images, config_.norm_groups, at(name + ".weight"),
                          at(name + ".bias"), kNormEps, silu),
          in.shape, in.channels};
}

VaeLoss::Map VaeLoss::resnet(Tape& tape, const Map& in, const std::string& name) const {
  Map hidden = convolution(tape, group_norm(tape, in, name + ".norm1", true), name + ".conv1");
  hidden = group_norm(tape, hidden, name + ".norm2", true);
  Var residual = in.x;
  if (in.channels != hidden.channels) residual = convolution(tape, in, name + ".conv_shortcut").x;
  return convolution(tape, hidden, name + ".conv2", residual);
}

// One head over all positions of an image, with its residual.
VaeLoss::Map VaeLoss::attention(Tape& tape, const Map& in, const std::string& name) const {
  const std::string root = name + ".";
  const Map normed = group_norm(tape, in, root + "group_norm", false);
  const auto linear = [&](Var v, const char* part, Var residual) {
    return tape.linear(v, at(root + part + ".weight"), &at(root + part + ".bias"), residual);
  };
  std::vector<AttentionSpan> spans;
  const int64_t pixels = in.shape.height * in.shape.width;
  for (int64_t i = 0; i < in.shape.images; ++i)
    spans.push_back({i * pixels, pixels, 0, pixels, KvCache{}});
  const float scale = static_cast<float>(1.0 / std::sqrt(static_cast<double>(in.channels)));
  const Var mixed = tape.attention(linear(normed.x, "to_q", kNone), linear(normed.x, "to_k", kNone),
                                   linear(normed.x, "to_v", kNone),
                                   {1, 1, in.channels, scale, 0, 0, 0, 0}, spans);
  return {linear(mixed, "to_out.0", in.x), in.shape, in.channels};
}

VaeLoss::Map VaeLoss::middle(Tape& tape, Map x, const std::string& name) const {
  x = resnet(tape, x, name + ".resnets.0");
  if (config_.mid_block_attention) x = attention(tape, x, name + ".attentions.0");
  return resnet(tape, x, name + ".resnets.1");
}

VaeLoss::Map VaeLoss::encode(Tape& tape, Map x) const {
  const std::string root = "vae.encoder.";
  x = convolution(tape, x, root + "conv_in");
  const size_t levels = config_.block_out_channels.size();
  for (size_t i = 0; i < levels; ++i) {
    const std::string block = root + "down_blocks." + std::to_string(i) + ".";
    for (int64_t j = 0; j < config_.layers_per_block; ++j) {
      x = resnet(tape, x, block + "resnets." + std::to_string(j));
      if (config_.down_attention[i])
        x = attention(tape, x, block + "attentions." + std::to_string(j));
    }
    if (i + 1 < levels) x = resample(tape, x, block + "downsamplers.0.conv", false);
  }
  x = middle(tape, x, root + "mid_block");
  x = convolution(tape, group_norm(tape, x, root + "conv_norm_out", true), root + "conv_out");
  return config_.quant_conv ? convolution(tape, x, "vae.quant_conv") : x;
}

VaeLoss::Map VaeLoss::decode(Tape& tape, Map x) const {
  if (config_.post_quant_conv) x = convolution(tape, x, "vae.post_quant_conv");
  const std::string root = "vae.decoder.";
  x = convolution(tape, x, root + "conv_in");
  x = middle(tape, x, root + "mid_block");
  const size_t levels = config_.block_out_channels.size();
  for (size_t i = 0; i < levels; ++i) {
    const std::string block = root + "up_blocks." + std::to_string(i) + ".";
    for (int64_t j = 0; j <= config_.layers_per_block; ++j) {
      x = resnet(tape, x, block + "resnets." + std::to_string(j));
      if (config_.up_attention[i])
        x = attention(tape, x, block + "attentions." + std::to_string(j));
    }
    if (i + 1 < levels) x = resample(tape, x, block + "upsamplers.0.conv", true);
  }
  return convolution(tape, group_norm(tape, x, root + "conv_norm_out", true), root + "conv_out");
}

void VaeLoss::add(Tape& tape, Backend& backend, const std::vector<VaeExample>& batch, int64_t total,
                  const DrawnAt& drawn_at, VaeLosses* losses) const {
  const int64_t side = side_of(batch.front()), pixels = side * side;
  const int64_t images = static_cast<int64_t>(batch.size());
  for (const VaeExample& example : batch)
    if (side_of(example) != side)
      throw Error(error_code::kInvalidArgument, "expected pictures of one size in a batch");
  const double share = static_cast<double>(images) / static_cast<double>(total);

  std::vector<float> input(static_cast<size_t>(images * pixels * 3));
  for (int64_t i = 0; i < images; ++i)
    for (int64_t c = 0; c < 3; ++c)
      for (int64_t p = 0; p < pixels; ++p)
        input[static_cast<size_t>((i * pixels + p) * 3 + c)] =
            batch[static_cast<size_t>(i)].pixels[static_cast<size_t>(c * pixels + p)];
  const Var x = tape.input(images * pixels, 3);
  backend.write(input.data(), tape.value(x));
  const Map moments = encode(tape, {x, {images, side, side}, 3});
  const Var drawn = posterior(tape, backend, batch, moments, share, drawn_at, losses);
  const Map out = decode(tape, {drawn, moments.shape, config_.latent_channels});

  std::vector<float> y(input.size()), dy(input.size());
  backend.read(tape.value(out.x), y.data());
  double absolute = 0, square = 0;
  const double n = static_cast<double>(y.size());
  for (size_t i = 0; i < y.size(); ++i) {
    const double miss = static_cast<double>(y[i]) - input[i];
    absolute += std::fabs(miss);
    square += miss * miss;
    const double sign = miss > 0 ? 1 : miss < 0 ? -1 : 0;
    dy[i] = static_cast<float>((sign + 2 * miss) / n * share);
  }
  losses->absolute += absolute / n * share;
  losses->square += square / n * share;
  tape.host_gradient(out.x, dy);
}

VaeLoss::Draws VaeLoss::draw(const std::vector<VaeExample>& batch, int64_t cells,
                             const DrawnAt& drawn_at) const {
  const int64_t images = static_cast<int64_t>(batch.size()), z = config_.latent_channels;
  const auto count = static_cast<size_t>(images * cells * z);
  std::vector<float> noise(count), beside(count);
  for (int64_t i = 0; i < images; ++i) {
    const VaeExample& example = batch[static_cast<size_t>(i)];
    std::vector<float> drawn(static_cast<size_t>(z));
    const uint64_t step = static_cast<uint64_t>(drawn_at.step) << 32;
    for (int64_t cell = 0; cell < cells; ++cell) {
      const uint64_t number = step | static_cast<uint64_t>(drawn_at.place(i) * cells + cell);
      if (example.noise.empty()) training_noise(drawn_at.seed, number, z, drawn.data());
      if (options_.latent_noise > 0)
        latent_noise(drawn_at.seed, step | drawn_at.place(i), number,
                     options_.latent_noise / config_.scaling_factor, z,
                     &beside[static_cast<size_t>((i * cells + cell) * z)]);
      for (int64_t c = 0; c < z; ++c)
        noise[static_cast<size_t>((i * cells + cell) * z + c)] =
            example.noise.empty() ? drawn[static_cast<size_t>(c)]
                                  : example.noise[static_cast<size_t>(c * cells + cell)];
    }
  }
  return {std::move(noise), std::move(beside)};
}

Var VaeLoss::posterior(Tape& tape, Backend& backend, const std::vector<VaeExample>& batch,
                       const Map& moments, double share, const DrawnAt& drawn_at,
                       VaeLosses* losses) const {
  const int64_t images = static_cast<int64_t>(batch.size()), z = config_.latent_channels;
  const int64_t cells = moments.shape.height * moments.shape.width;
  const auto count = static_cast<size_t>(images * cells * z);
  std::vector<float> moment(2 * count), latents(count);
  backend.read(tape.value(moments.x), moment.data());
  auto [noise, beside] = draw(batch, cells, drawn_at);
  double kl = 0;
  for (size_t i = 0; i < count; ++i) {
    const size_t row = i / static_cast<size_t>(z), c = i % static_cast<size_t>(z);
    const double mean = moment[row * 2 * z + c];
    const double log_variance = std::clamp(moment[row * 2 * z + z + c], kLeastLog, kMostLog);
    latents[i] = static_cast<float>(mean + std::exp(0.5 * log_variance) * noise[i] + beside[i]);
    kl += 0.5 * (mean * mean + std::exp(log_variance) - 1 - log_variance);
  }
  kl /= static_cast<double>(count);
  losses->kl += kl * share;
  const double kl_scale = options_.kl_weight * share / static_cast<double>(count);
  return tape.host(
      moments.x, images * cells, z, latents,
      [=, moment = std::move(moment), noise = std::move(noise)](const std::vector<float>& dz) {
        std::vector<float> gradient(moment.size());
        for (size_t i = 0; i < count; ++i) {
          const size_t row = i / static_cast<size_t>(z), c = i % static_cast<size_t>(z);
          const double raw = moment[row * 2 * z + z + c];
          const bool inside = raw >= kLeastLog && raw <= kMostLog;
          const double log_variance =
              std::clamp(raw, static_cast<double>(kLeastLog), static_cast<double>(kMostLog));
          gradient[row * 2 * z + c] =
              static_cast<float>(dz[i] + kl_scale * moment[row * 2 * z + c]);
          gradient[row * 2 * z + z + c] =
              inside ? static_cast<float>(dz[i] * 0.5 * std::exp(0.5 * log_variance) * noise[i] +
                                          kl_scale * 0.5 * (std::exp(log_variance) - 1))
                     : 0;
        }
        return gradient;
      });
}

}  // namespace unifluid
