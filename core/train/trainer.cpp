#include "core/train/trainer.h"

#include <algorithm>
#include <cmath>
#include <type_traits>
#include <utility>

#include "core/error.h"
#include "core/model.h"
#include "core/training_backend.h"

namespace unifluid {

namespace {

// Decoder rows of a batch: what the CUDA library stages for each of them in the backward attention
// must fit its staging memory (Queue::kStagingBytes).
constexpr int64_t kMostRows = 500'000;

[[noreturn]] void refuse(const std::string& what) {
  throw Error(error_code::kInvalidArgument, what);
}

}  // namespace

Trainer::Trainer(const ModelConfig& config, const std::vector<std::string>& files,
                 std::vector<TensorRecord> records, const TrainerOptions& options,
                 std::unique_ptr<Backend> backend)
    : config_(config), options_(options), backend_(std::move(backend)) {
  check_config(config_);
  if (!backend_->training()) refuse("this device cannot train");
  const auto* unified = std::get_if<UnifiedLossOptions>(&options_.loss);
  if (unified ? !config_.text : !config_.vae)
    refuse(unified ? "there is no decoder to train" : "there is no autoencoder to train");
  if (unified && unified->multiplier < 1)
    refuse("expected at least one timestep for each image token");
  const Weights weights(files, std::move(records));
  const auto& optimizer = options_.optimizer;
  parameters_ = std::make_unique<Parameters>(config_, !unified, weights, options_.frozen,
                                             optimizer && optimizer->ema_decay > 0,
                                             optimizer.has_value(), *backend_);
  workspace_.emplace(*backend_);
  if (unified)
    unified_.emplace(config_, *parameters_, *unified);
  else
    vae_.emplace(*config_.vae, *parameters_, *vae());
}

StepResult Trainer::run(const TrainingBatches& batches, int64_t step, bool gradients) {
  return std::visit([&](const auto& examples) { return run_as(examples, step, gradients); },
                    batches);
}

template <class Example>
StepResult Trainer::run_as(const std::vector<std::vector<Example>>& batches, int64_t step,
                           bool gradients) {
  constexpr bool kVae = std::is_same_v<Example, VaeExample>;
  if (kVae != (vae() != nullptr))
    refuse(kVae ? "expected sequences, since this trains the unified model"
                : "expected pictures, since this trains an autoencoder");
  StepTokens total;
  int64_t examples = 0;
  for (const auto& batch : batches) {
    if (batch.empty()) refuse("expected at least one example in each batch");
    int64_t rows = 0;
    for (const Example& example : batch) {
      const std::string place = "example " + std::to_string(examples++) + " of the step";
      if constexpr (kVae) {
        vae_->check(example, place);
      } else {
        unified_->check(example, place);
        const StepTokens tokens = unified_->tokens(example);
        total.image += tokens.image;
        total.text += tokens.text;
        rows += unified_->rows(example);
      }
    }
    if (rows > kMostRows)
      refuse("expected at most " + std::to_string(kMostRows) +
             " decoder rows in a batch but received " + std::to_string(rows) +
             ": raise accumulation");
  }
  if (examples == 0) refuse("expected at least one batch");
  if (gradients && !options_.optimizer) refuse("this trainer computes losses only");

  StepResult result;
  if (gradients) parameters_->zero_gradients();
  DrawnAt at{options_.seed, static_cast<uint32_t>(step), 0, static_cast<uint32_t>(batches.size())};
  for (const auto& batch : batches) {
    workspace_->trim(workspace_->bytes());  // else what only almost fits would be added each time
    Workspace::Scope scope(*workspace_);
    Tape tape(*backend_, *workspace_, options_.bf16, gradients);
    if constexpr (kVae)
      vae_->add(tape, *backend_, batch, examples, at, &result.vae);
    else
      unified_->add(tape, *backend_, *workspace_, batch, total, at, &result.losses);
    if (gradients) tape.backward();
    for (const Parameter* used : tape.reached()) parameters_->reach(*used);
    ++at.first;
  }
  const double sum = result.losses.image.loss + result.losses.text.loss + result.vae.absolute +
                     result.vae.square + result.vae.kl;
  result.finite = std::isfinite(sum);
  return result;
}

void Trainer::update(StepResult* result, int64_t step, float learning_rate) {
  Parameters& p = *parameters_;
  const OptimizerOptions& options = *options_.optimizer;
  float* gradient = p.piece(ParameterState::gradient);
  TrainingBackend& ops = *backend_->training();
  result->gradient_norm = std::sqrt(ops.sum_of_squares(gradient, p.trained_size()));
  result->finite = result->finite && std::isfinite(result->gradient_norm);
  if (!result->finite) return;
  AdamWArgs args{};
  args.gradient_scale = 1;
  if (options.clip_norm > 0)  // as torch's clip_grad_norm_
    args.gradient_scale =
        static_cast<float>(std::min(1.0, options.clip_norm / (result->gradient_norm + 1e-6)));
  args.rate = learning_rate;
  args.beta1 = options.beta1;
  args.beta2 = options.beta2;
  args.epsilon = options.epsilon;
  const double n = static_cast<double>(step);
  args.average_keep =
      static_cast<float>(std::min(static_cast<double>(options.ema_decay), n / (n + 10)));
  // What no example of the step uses stays as it is, as with PyTorch: it neither decays nor counts.
  for (const ParameterRun& run : p.count_updates()) {
    const double updates = static_cast<double>(run.updates);
    args.correction1 =
        static_cast<float>(1 - std::pow(static_cast<double>(options.beta1), updates));
    args.correction2 =
        static_cast<float>(1 - std::pow(static_cast<double>(options.beta2), updates));
    args.value = p.piece(ParameterState::weights) + run.offset;
    args.first = p.piece(ParameterState::first_moment) + run.offset;
    args.second = p.piece(ParameterState::second_moment) + run.offset;
    args.gradient = gradient + run.offset;
    args.average =
        p.has(ParameterState::average) ? p.piece(ParameterState::average) + run.offset : nullptr;
    args.count = run.count;
    args.decay = run.matrix ? options.weight_decay : 0;
    ops.adamw(args);
  }
}

StepResult Trainer::step(const TrainingBatches& batches, int64_t step, float learning_rate) {
  StepResult result = run(batches, step, true);
  update(&result, step, learning_rate);
  return result;
}

namespace {

// The average in the place of the weights for as long as this lives.
class WithAverage {
 public:
  WithAverage(Parameters& parameters, bool average) : parameters_(parameters), average_(average) {
    if (average && !parameters.has(ParameterState::average))
      refuse("this trainer keeps no moving average");
    if (average_) parameters_.swap_average();
  }
  ~WithAverage() {
    if (average_) parameters_.swap_average();
  }

 private:
  Parameters& parameters_;
  const bool average_;
};

}  // namespace

StepResult Trainer::evaluate(const TrainingBatches& batches, int64_t step, bool average) {
  const WithAverage weights(*parameters_, average);
  return run(batches, step, false);
}

}  // namespace unifluid
