// One model in training: steps of AdamW on batches, and what a checkpoint of them needs.
//
// A step is a function of the weights, the batches, the seed and the step's number alone: the same
// on any number of threads, and again after a stop. Not thread-safe: one call at a time.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <variant>
#include <vector>

#include "core/backend.h"
#include "core/config.h"
#include "core/memory.h"
#include "core/train/example.h"
#include "core/train/parameters.h"
#include "core/train/unified_loss.h"
#include "core/train/vae_loss.h"
#include "core/weights.h"

namespace unifluid {

struct OptimizerOptions {
  float beta1 = 0.9f, beta2 = 0.98f, epsilon = 1e-8f;
  float weight_decay = 0;  // of matrices
  float clip_norm = 0;     // 0: none
  float ema_decay = 0;     // min(this, step / (step + 10)); 0: no average
};

struct TrainerOptions {
  bool bf16 = false;
  uint64_t seed = 0;
  std::vector<std::string> frozen;
  std::variant<UnifiedLossOptions, VaeLossOptions> loss;  // which says what is trained
  // None: no room for gradients and moments, `evaluate` alone.
  std::optional<OptimizerOptions> optimizer;
};

struct StepResult {
  bool finite = true;  // else the weights are as they were
  UnifiedLosses losses;
  VaeLosses vae;
  double gradient_norm = 0;
};

class Trainer {
 public:
  // Throws INVALID_CHECKPOINT, INVALID_ARGUMENT (a part is missing, the backend cannot train) and
  // INSUFFICIENT_MEMORY.
  Trainer(const ModelConfig& config, const std::vector<std::string>& files,
          std::vector<TensorRecord> records, const TrainerOptions& options,
          std::unique_ptr<Backend> backend);

  const char* description() const { return backend_->description(); }
  // Of an autoencoder in training; else null.
  const VaeLossOptions* vae() const { return std::get_if<VaeLossOptions>(&options_.loss); }

  // One update from batches whose gradients add up. `step` counts from 1.
  StepResult step(const TrainingBatches& batches, int64_t step, float learning_rate);
  // Losses alone, of the weights or of their average, and how many text tokens were the likeliest.
  StepResult evaluate(const TrainingBatches& batches, int64_t step, bool average);

  Parameters& parameters() { return *parameters_; }

 private:
  StepResult run(const TrainingBatches& batches, int64_t step, bool gradients);
  template <class Example>
  StepResult run_as(const std::vector<std::vector<Example>>& batches, int64_t step, bool gradients);
  void update(StepResult* result, int64_t step, float learning_rate);

  ModelConfig config_;
  TrainerOptions options_;
  std::unique_ptr<Backend> backend_;
  std::unique_ptr<Parameters> parameters_;
  std::optional<Workspace> workspace_;
  std::optional<UnifiedLoss> unified_;
  std::optional<VaeLoss> vae_;
};

}  // namespace unifluid
