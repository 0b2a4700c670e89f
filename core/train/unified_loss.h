// The unified model's training loss (spec section 8) on one batch of packed sequences.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "core/config.h"
#include "core/train/example.h"
#include "core/train/parameters.h"
#include "core/train/tape.h"

namespace unifluid {

struct UnifiedLossOptions {
  float text_weight = 1;       // lambda
  int64_t multiplier = 4;      // timesteps of each image token: diffusion_batch_mul
  float noise_weight_cap = 1;  // "ddpm": the largest weight of a timestep's square error
  // Each image token that a later one follows is read with normal noise of a standard deviation up
  // to this: as inexact as the model's own will be (as xAR's noisy contexts, arXiv 2502.20388).
  float context_noise = 0;
  bool raster = false;     // else a fresh random order for every image
  bool recompute = false;  // decoder and vision layers are computed again on the way back
};

// Sums, so that those of several batches add up.
struct LossSum {
  double loss = 0;
  int64_t tokens = 0;  // image tokens times the multiplier, or text tokens
  int64_t right = 0;   // where only losses are computed: text tokens that were the likeliest
};
struct UnifiedLosses {
  LossSum image, text;
  std::map<std::string, LossSum> by_task;
  int64_t rows = 0;  // through the decoder
};

// Image tokens and text tokens of a whole step, over which its losses are means.
struct StepTokens {
  int64_t image = 0, text = 0;
};

class UnifiedLoss {
 public:
  UnifiedLoss(const ModelConfig& config, const Parameters& parameters,
              const UnifiedLossOptions& options);

  // Throws INVALID_ARGUMENT where a sequence does not fit the model; `place`: its name in messages.
  void check(const TrainingSequence& sequence, const std::string& place) const;
  StepTokens tokens(const TrainingSequence& sequence) const;
  // Rows of the decoder.
  int64_t rows(const TrainingSequence& sequence) const;

  // Computes the batch's losses on the tape and starts its gradients; the caller sends them back.
  void add(Tape& tape, Backend& backend, Workspace& workspace,
           const std::vector<TrainingSequence>& batch, const StepTokens& total, const DrawnAt& at,
           UnifiedLosses* losses) const;

 private:
  struct Packed;
  Packed pack(const std::vector<TrainingSequence>& batch, const DrawnAt& at) const;
  void pack_image(const TrainingSequence& s, int32_t sequence, uint32_t example, const DrawnAt& at,
                  bool given_noise, Packed& packed) const;
  Var inputs(Tape&, Backend&, const std::vector<TrainingSequence>& batch, const Packed&) const;
  Var decoder(Tape&, Var x, const Packed&) const;
  void text_loss(Tape&, Var hidden, const Packed&, const std::vector<TrainingSequence>& batch,
                 const StepTokens& total, UnifiedLosses* losses) const;
  void image_loss(Tape&, Backend&, Workspace&, Var hidden, const Packed&,
                  const std::vector<TrainingSequence>& batch, const StepTokens& total,
                  uint64_t seed, UnifiedLosses* losses) const;
  Var vision(Tape&, Backend&, const std::vector<TrainingSequence>& batch) const;
  Var vision_layer(Tape&, int64_t layer, Var x, const std::vector<AttentionSpan>&) const;
  // The rows of x, or those alone that are `wanted` where it is not null: the others only serve as
  // keys and values.
  Var decoder_layer(Tape&, int64_t layer, Var x, const std::vector<AttentionSpan>&,
                    const std::vector<int32_t>* wanted) const;
  Var head(Tape&, Backend&, Var z, const std::vector<int32_t>& rows, Var noised,
           const std::vector<TrainingStep>& steps) const;
  const Parameter& at(const std::string& name) const { return parameters_.at(name); }
  Var linear(Tape& tape, Var x, const std::string& name, Var residual = kNone) const {
    return tape.linear(x, at(name + ".weight"), &at(name + ".bias"), residual);
  }

  // x through several layers, by one product where their weights lie together.
  std::vector<Var> linears(Tape& tape, Var x, const std::vector<std::string>& names,
                           bool biases) const;

  const ModelConfig& config_;
  const Parameters& parameters_;
  const UnifiedLossOptions options_;
  std::vector<TrainingStep> schedule_;  // "ddpm": every timestep
};

}  // namespace unifluid
