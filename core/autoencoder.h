// AutoencoderKL (2112.10752) with the tensor names of the diffusers library: pixels to latents and
// back.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "core/backend.h"
#include "core/config.h"
#include "core/memory.h"
#include "core/weights.h"

namespace unifluid {

class Autoencoder {
 public:
  Autoencoder(const VaeConfig& config, const Weights& weights, Backend& backend);

  // pixels: host, RGB in [-1, 1], [3, height, width], sides multiples of factor() ->
  // the posterior's mean, (mean - shift) * scale, [latent channels, height / factor, width /
  // factor].
  std::vector<float> encode(const float* pixels, int64_t height, int64_t width,
                            Workspace& workspace) const;

  // latents: host, [latent channels, height, width], scaled as encode's -> pixels: host, RGB as
  // Backend::read_pixels has it, channels last: [height * factor, width * factor, 3]. False where
  // one is not finite.
  bool decode(const float* latents, int64_t height, int64_t width, Workspace& workspace,
              uint8_t* pixels) const;

 private:
  struct Conv {
    Tensor weight;
    const float* bias;
    int64_t out, kernel;
  };
  struct Norm {
    const float *weight, *bias;
  };
  struct Resnet {
    Norm norm1, norm2;
    Conv conv1, conv2;
    std::optional<Conv> shortcut;  // where the number of channels changes
  };
  struct Attention {
    Norm norm;
    Conv q, k, v, out;  // 1x1
  };
  struct Mid {
    Resnet before;
    std::optional<Attention> attention;
    Resnet after;
  };
  // Some resnets, each with attention behind it or none, then a resampling convolution unless it
  // is the last level.
  struct Level {
    std::vector<Resnet> resnets;
    std::vector<Attention> attentions;
    std::optional<Conv> resample;
  };
  struct Half {
    Conv conv_in;
    std::vector<Level> levels;
    Mid mid;
    Norm norm_out;
    Conv conv_out;
  };
  // A channels-last image: rows are pixels.
  struct Map {
    Tensor x;
    int64_t height, width;
  };

  class Loader;

  // `into`: where the result is to lie; made in the workspace where it is empty.
  Map conv(const Conv& conv, const Map& in, Workspace&, int64_t upsample = 1,
           const Tensor& into = {}) const;
  void downsample(const Conv& conv, const Map& in, const Tensor& out) const;
  Map resnet(const Resnet& block, const Map& in, Workspace&, const Tensor& into = {}) const;
  Map attention(const Attention& block, const Map& in, Workspace&, const Tensor& into = {}) const;
  Map mid(const Mid& block, const Map& in, Workspace&) const;
  Map blocks(const Level& level, Map x, Workspace&, const Tensor& into) const;
  Map norm_silu_conv(const Norm& norm, const Conv& conv, const Map& in, Workspace&) const;
  void group_norm(const Norm& norm, const Tensor& x, bool silu, const Tensor& out) const;

  VaeConfig config_;
  Backend& backend_;
  Half encoder_, decoder_;
  std::optional<Conv> quant_, post_quant_;
};

}  // namespace unifluid
