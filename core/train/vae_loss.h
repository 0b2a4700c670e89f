// The autoencoder's training loss: absolute and square error of the reconstruction, and a small
// Kullback-Leibler term that keeps latents near a unit normal (2112.10752, without its
// discriminator).
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "core/config.h"
#include "core/train/example.h"
#include "core/train/parameters.h"
#include "core/train/tape.h"

namespace unifluid {

struct VaeLossOptions {
  float kl_weight = 0;
  // Latents are decoded with noise of a standard deviation drawn uniformly from [0, this) for each
  // picture, in units of latents divided by the scaling factor; 0: none.
  float latent_noise = 0;
};

// Means, weighted by examples: sums over the batches of a step.
struct VaeLosses {
  double absolute = 0, square = 0, kl = 0;
};

class VaeLoss {
 public:
  VaeLoss(const VaeConfig& config, const Parameters& parameters, const VaeLossOptions& options)
      : config_(config), parameters_(parameters), options_(options) {}

  // Square pictures of one size, whose side is a multiple of the factor. Throws INVALID_ARGUMENT.
  void check(const VaeExample& example, const std::string& place) const;

  // `total`: examples of the whole step.
  void add(Tape& tape, Backend& backend, const std::vector<VaeExample>& batch, int64_t total,
           const DrawnAt& at, VaeLosses* losses) const;

 private:
  struct ImageShape {
    int64_t images, height, width;
  };
  struct Map {
    Var x;
    ImageShape shape;
    int64_t channels;
  };
  Map convolution(Tape&, const Map& in, const std::string& name, Var residual = kNone) const;
  Map resample(Tape&, const Map& in, const std::string& name, bool up) const;
  Map group_norm(Tape&, const Map& in, const std::string& name, bool silu) const;
  Map resnet(Tape&, const Map& in, const std::string& name) const;
  Map attention(Tape&, const Map& in, const std::string& name) const;
  Map middle(Tape&, Map in, const std::string& name) const;
  Map encode(Tape&, Map x) const;
  Map decode(Tape&, Map z) const;
  // Values of latents, [images, cells, channels].
  struct Draws {
    std::vector<float> noise;   // standard normal
    std::vector<float> beside;  // the noise that latents are decoded with
  };
  Draws draw(const std::vector<VaeExample>& batch, int64_t cells, const DrawnAt& at) const;
  // A draw from the posterior of each cell, whose mean and log variance are `moments`; adds its
  // divergence from a unit normal to the losses. `share`: the batch's of the step's examples.
  Var posterior(Tape&, Backend&, const std::vector<VaeExample>& batch, const Map& moments,
                double share, const DrawnAt& at, VaeLosses* losses) const;
  const Parameter& at(const std::string& name) const { return parameters_.at(name); }

  const VaeConfig& config_;
  const Parameters& parameters_;
  const VaeLossOptions options_;
};

}  // namespace unifluid
