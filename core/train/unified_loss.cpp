#include "core/train/unified_loss.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "core/error.h"
#include "core/noise.h"
#include "core/philox.h"
#include "core/schedule.h"
#include "core/vision.h"

namespace unifluid {

namespace {

constexpr float kHeadNormEps = 1e-6f;

[[noreturn]] void unfit(const std::string& place, const std::string& what) {
  throw Error(error_code::kInvalidArgument, place + ": " + what);
}

void expect_size(size_t size, int64_t wanted, const std::string& place, const char* what) {
  if (size != static_cast<size_t>(wanted))
    unfit(place, "expected " + std::to_string(wanted) + " values of " + what + " but received " +
                     std::to_string(size));
}

// ddpm: uniform over the timesteps. flow: `timesteps` times the sigmoid of a
// standard normal.
std::vector<float> drawn_times(const DrawnAt& at, uint32_t example, int64_t count, bool flow,
                               int64_t timesteps) {
  std::vector<float> times(static_cast<size_t>(count));
  PhiloxWords w{};
  for (int64_t i = 0; i < count; ++i) {
    if (i % 4 == 0)
      w = philox4x32(at.seed, static_cast<uint32_t>(i / 4), example, at.step,
                     static_cast<uint32_t>(Draw::training_time));
    if (!flow) {
      times[i] =
          static_cast<float>((uint64_t{w.word[i % 4]} * static_cast<uint64_t>(timesteps)) >> 32);
      continue;
    }
    const double r = std::sqrt(-2 * std::log(uniform(w.word[i % 4 / 2 * 2])));
    const double angle = 6.283185307179586 * uniform(w.word[i % 4 / 2 * 2 + 1]);
    const double normal = r * (i % 2 ? std::sin(angle) : std::cos(angle));
    times[i] = static_cast<float>(static_cast<double>(timesteps) / (1 + std::exp(-normal)));
  }
  return times;
}

}  // namespace

UnifiedLoss::UnifiedLoss(const ModelConfig& config, const Parameters& parameters,
                         const UnifiedLossOptions& options)
    : config_(config), parameters_(parameters), options_(options) {
  if (config.image && !config.image->flow)
    schedule_ = training_steps(config.image->timesteps, options.noise_weight_cap);
}

void UnifiedLoss::check(const TrainingSequence& s, const std::string& place) const {
  const bool draws = !s.target_latents.empty();
  if (draws == !s.target_tokens.empty())
    unfit(place, "expected target tokens or target latents, one of them");
  if (s.tokens.empty()) unfit(place, "expected prefix tokens");
  for (const auto* ids : {&s.tokens, &s.target_tokens})
    for (int32_t id : *ids)
      if (id < 0 || id >= config_.text->vocab_size)
        unfit(place, "token id " + std::to_string(id) + " lies outside the vocabulary of " +
                         std::to_string(config_.text->vocab_size));
  if (!s.vision_pixels.empty()) {
    if (!config_.vision) unfit(place, "this model reads no images: it has no vision tower");
    const int64_t side = config_.vision->image_size;
    expect_size(s.vision_pixels.size(), 3 * side * side, place, "vision pixels");
  }
  if (!draws && s.source_latents.empty()) return;
  if (!config_.image) unfit(place, "this model draws no images: it has no diffusion head");
  const int64_t cells = config_.image->cells(), c = config_.image->token_channels;
  if (!s.source_latents.empty())
    expect_size(s.source_latents.size(), cells * c, place, "source latents");
  if (!draws) return;
  expect_size(s.target_latents.size(), cells * c, place, "target latents");
  const int64_t m = cells * options_.multiplier;
  if (!s.order.empty()) {
    expect_size(s.order.size(), cells, place, "the order");
    std::vector<bool> seen(static_cast<size_t>(cells));
    for (int32_t cell : s.order) {
      if (cell < 0 || cell >= cells || seen[cell]) unfit(place, "the order is no permutation");
      seen[cell] = true;
    }
  }
  if (!s.timesteps.empty()) expect_size(s.timesteps.size(), m, place, "timesteps");
  for (float t : s.timesteps)
    if (!(t >= 0) || t > static_cast<float>(config_.image->timesteps) ||
        (!config_.image->flow && (t != std::floor(t) || t >= config_.image->timesteps)))
      unfit(place, "a timestep lies outside the schedule");
  if (!s.noise.empty()) expect_size(s.noise.size(), m * c, place, "noise");
}

int64_t UnifiedLoss::rows(const TrainingSequence& s) const {
  int64_t rows = static_cast<int64_t>(s.tokens.size());
  if (!s.vision_pixels.empty()) rows += config_.vision->features();
  if (!s.source_latents.empty()) rows += config_.image->cells();
  // The last row of the prefix predicts the first word.
  if (s.target_latents.empty()) return rows + static_cast<int64_t>(s.target_tokens.size()) - 1;
  return rows + config_.image->cells();
}

StepTokens UnifiedLoss::tokens(const TrainingSequence& s) const {
  if (s.target_latents.empty()) return {0, static_cast<int64_t>(s.target_tokens.size())};
  return {config_.image->cells() * options_.multiplier, 0};
}

// ---- the parts of the model ----

std::vector<Var> UnifiedLoss::linears(Tape& tape, Var x, const std::vector<std::string>& names,
                                      bool biases) const {
  const Parameter* weight = parameters_.joined(names.front() + ".weight");
  const Parameter* bias = biases ? parameters_.joined(names.front() + ".bias") : nullptr;
  std::vector<Var> out;
  if (!weight || (biases && !bias)) {
    for (const std::string& name : names)
      out.push_back(tape.linear(x, at(name + ".weight"), biases ? &at(name + ".bias") : nullptr));
    return out;
  }
  const Var all = tape.linear(x, *weight, bias);
  int64_t first = 0;
  for (const std::string& name : names) {
    const int64_t count = at(name + ".weight").rows;
    out.push_back(tape.columns(all, first, count));
    first += count;
  }
  return out;
}

Var UnifiedLoss::vision_layer(Tape& tape, int64_t layer, Var x,
                              const std::vector<AttentionSpan>& spans) const {
  const VisionConfig& c = *config_.vision;
  const int64_t head_dim = c.hidden_size / c.heads;
  const std::string at_ = "vision_tower.encoder.layers." + std::to_string(layer) + ".";
  const auto norm = [&](Var v, const std::string& name) {
    return tape.layer_norm(v, &at(at_ + name + ".weight"), &at(at_ + name + ".bias"),
                           c.layer_norm_eps);
  };
  const Var normed = norm(x, "layer_norm1");
  const std::string attention = at_ + "self_attn.";
  const std::vector<Var> qkv = linears(
      tape, normed, {attention + "q_proj", attention + "k_proj", attention + "v_proj"}, true);
  const float scale = static_cast<float>(1.0 / std::sqrt(static_cast<double>(head_dim)));
  const Var mixed = tape.attention(qkv[0], qkv[1], qkv[2],
                                   {c.heads, c.heads, head_dim, scale, 0, 0, 0, 0}, spans);
  const Var y = linear(tape, mixed, at_ + "self_attn.out_proj", x);
  const Var hidden = linear(tape, norm(y, "layer_norm2"), at_ + "mlp.fc1");
  return linear(tape, tape.activation(hidden, c.activation), at_ + "mlp.fc2", y);
}

// Features of all images of the batch, one after another: [images * features, d].
Var UnifiedLoss::vision(Tape& tape, Backend& backend,
                        const std::vector<TrainingSequence>& batch) const {
  const VisionConfig& c = *config_.vision;
  const int64_t f = c.features(), patch = 3 * c.patch_size * c.patch_size;
  std::vector<float> patches;
  std::vector<AttentionSpan> spans;
  std::vector<int32_t> positions;
  for (const TrainingSequence& sequence : batch) {
    if (sequence.vision_pixels.empty()) continue;
    const int64_t first = static_cast<int64_t>(positions.size());
    spans.push_back({first, f, 0, f, KvCache{}});
    for (int64_t i = 0; i < f; ++i) positions.push_back(static_cast<int32_t>(i));
    patches.resize(patches.size() + static_cast<size_t>(f * patch));
    extract_patches(c, sequence.vision_pixels.data(), patches.data() + first * patch);
  }
  if (spans.empty()) return kNone;
  const int64_t m = static_cast<int64_t>(positions.size());
  const Var rows = tape.input(m, patch);
  backend.write(patches.data(), tape.value(rows));
  std::vector<int32_t> every(positions.size());
  for (size_t i = 0; i < every.size(); ++i) every[i] = static_cast<int32_t>(i);
  const std::string root = "vision_tower.";
  const Var embedded = linear(tape, rows, root + "embeddings.patch_embedding");
  Var x = tape.gather(
      m, c.hidden_size,
      {{embedded, nullptr, std::move(every)},
       {kNone, &at(root + "embeddings.position_embedding.weight"), std::move(positions)}});
  for (int64_t i = 0; i < c.layers; ++i) {
    if (options_.recompute)
      x = tape.recomputed(
          x, m, [&tape, this, i, spans](Var v) { return vision_layer(tape, i, v, spans); });
    else
      x = vision_layer(tape, i, x, spans);
  }
  x = tape.layer_norm(x, &at(root + "post_layernorm.weight"), &at(root + "post_layernorm.bias"),
                      c.layer_norm_eps);
  return linear(tape, x, "multi_modal_projector.linear");
}

Var UnifiedLoss::decoder_layer(Tape& tape, int64_t layer, Var x,
                               const std::vector<AttentionSpan>& spans,
                               const std::vector<int32_t>* wanted) const {
  const TextConfig& c = *config_.text;
  const std::string root = "language_model.layers." + std::to_string(layer) + ".";
  const auto norm = [&](Var v, const char* name) {
    return tape.operand_norm(v, at(root + name + ".weight"), c.rms_norm_eps);
  };
  const auto add_norm = [&](Var v, const char* name, Var residual) {
    return tape.rms_norm(v, at(root + name + ".weight"), c.rms_norm_eps, residual);
  };
  const auto project = [&](Var v, const char* name, Var residual = kNone) {
    return tape.linear(v, at(root + name + ".weight"), nullptr, residual);
  };
  const Var normed = norm(x, "input_layernorm");
  const std::string attention = root + "self_attn.";
  const std::vector<Var> qkv = linears(
      tape, normed, {attention + "q_proj", attention + "k_proj", attention + "v_proj"}, false);
  Var mixed =
      tape.attention(qkv[0], qkv[1], qkv[2],
                     {c.heads, c.kv_heads, c.head_dim, c.attention_scale, c.attention_soft_cap,
                      c.windows[static_cast<size_t>(layer)], c.rope_theta, c.first_position},
                     spans);
  if (wanted) {
    const auto rows = static_cast<int64_t>(wanted->size());
    mixed = tape.gather(rows, c.heads * c.head_dim, {{mixed, nullptr, *wanted}});
    x = tape.gather(rows, c.hidden_size, {{x, nullptr, *wanted}});
  }
  const auto mlp = [&](Var v_, Var residual) {
    const std::vector<Var> gate_up =
        linears(tape, v_, {root + "mlp.gate_proj", root + "mlp.up_proj"}, false);
    return project(tape.gated(gate_up[0], gate_up[1], c.activation), "mlp.down_proj", residual);
  };
  if (c.gemma2) {
    const Var y = add_norm(project(mixed, "self_attn.o_proj"), "post_attention_layernorm", x);
    return add_norm(mlp(norm(y, "pre_feedforward_layernorm"), kNone), "post_feedforward_layernorm",
                    y);
  }
  const Var y = project(mixed, "self_attn.o_proj", x);
  return mlp(norm(y, "post_attention_layernorm"), y);
}

// z [tokens, d] and noised [m, C], row i being a noised form of token rows[i] -> the outputs of the
// head's network, [m, 2C or C].
Var UnifiedLoss::head(Tape& tape, Backend& backend, Var z, const std::vector<int32_t>& rows,
                      Var noised, const std::vector<TrainingStep>& steps) const {
  const ImageConfig& c = *config_.image;
  const int64_t m = static_cast<int64_t>(rows.size());
  const std::string root = "diffusion_head.";
  std::vector<float> times(steps.size());
  for (size_t i = 0; i < steps.size(); ++i) times[i] = steps[i].time;
  const Var features = tape.input(m, 256);
  backend.training()->time_features({times.data(), tape.value(features)});
  Var time = linear(tape, features, root + "time_embed.mlp.0");
  time = linear(tape, tape.activation(time, Activation::silu), root + "time_embed.mlp.2");
  std::vector<int32_t> every(rows.size());
  for (size_t i = 0; i < every.size(); ++i) every[i] = static_cast<int32_t>(i);
  const Var condition = linear(tape, z, root + "cond_embed");
  const Var y = tape.activation(
      tape.gather(m, c.head_width, {{time, nullptr, std::move(every)}, {condition, nullptr, rows}}),
      Activation::silu);
  Var x = linear(tape, noised, root + "input_proj");
  std::vector<std::string> names;
  for (int64_t i = 0; i < c.head_depth; ++i)
    names.push_back(root + "res_blocks." + std::to_string(i) + ".adaLN_modulation.1");
  names.push_back(root + "final_layer.adaLN_modulation.1");
  const std::vector<Var> modulations = linears(tape, y, names, true);
  for (int64_t i = 0; i < c.head_depth; ++i) {
    const std::string block = root + "res_blocks." + std::to_string(i) + ".";
    const Var modulation = modulations[static_cast<size_t>(i)];
    const Var normed = tape.modulated_norm(x, &at(block + "in_ln.weight"),
                                           &at(block + "in_ln.bias"), modulation, kHeadNormEps);
    const Var hidden = linear(tape, normed, block + "mlp.0");
    const Var out = linear(tape, tape.activation(hidden, Activation::silu), block + "mlp.2");
    x = tape.gated_add(x, modulation, out);
  }
  const Var normed = tape.modulated_norm(x, nullptr, nullptr, modulations.back(), kHeadNormEps);
  return linear(tape, normed, root + "final_layer.linear");
}

// ---- a batch ----

// Where everything of a batch lies.
struct UnifiedLoss::Packed {
  std::vector<AttentionSpan> spans;  // sequences, among the decoder's rows
  int64_t rows = 0;
  // One entry for each decoder row: where it comes from, -1 where not from there.
  std::vector<int32_t> token, feature, image_token, position, next, begin;
  std::vector<float> inputs;  // image tokens that are inputs, [n, C]

  // Rows whose outputs are conditions of image tokens, and those tokens.
  std::vector<int32_t> conditions;
  std::vector<float> targets;       // [conditions, C]
  std::vector<int32_t> noised;      // of each noised token: its condition
  std::vector<TrainingStep> steps;  // of each noised token
  std::vector<uint64_t> counters;
  std::vector<float> noise;    // where any is given, else empty: the backend draws it
  std::vector<int32_t> drawn;  // of each condition: its sequence

  // Rows whose outputs predict text, and what they should say.
  std::vector<int32_t> predictions, words, written;

  void row(int32_t token_, int32_t feature_, int32_t image, int32_t position_, int32_t next_,
           bool begins) {
    token.push_back(token_);
    feature.push_back(feature_);
    image_token.push_back(image);
    position.push_back(position_);
    next.push_back(next_);
    begin.push_back(begins ? 0 : -1);
    ++rows;
  }
  int32_t input(const float* values, int64_t channels) {
    inputs.insert(inputs.end(), values, values + channels);
    return static_cast<int32_t>(inputs.size() / static_cast<size_t>(channels)) - 1;
  }
  // An image token of the suffix, with noise up to `highest`; `number`: its place in the step.
  int32_t context(const float* values, int64_t channels, const DrawnAt& at, int64_t number,
                  float highest) {
    const int32_t index = input(values, channels);
    if (highest <= 0) return index;
    std::vector<float> noise(static_cast<size_t>(channels));
    context_noise(at.seed, (static_cast<uint64_t>(at.step) << 32) | static_cast<uint32_t>(number),
                  highest, channels, noise.data());
    float* row = inputs.data() + inputs.size() - noise.size();
    for (size_t c = 0; c < noise.size(); ++c) row[c] += noise[c];
    return index;
  }
};

// The suffix of an example that is an image: a row for each cell, and the noised tokens that its
// outputs are conditions of.
void UnifiedLoss::pack_image(const TrainingSequence& s, int32_t sequence, uint32_t example,
                             const DrawnAt& at, bool given_noise, Packed& p) const {
  const ImageConfig& image = *config_.image;
  const int64_t cells = image.cells(), channels = image.token_channels, mul = options_.multiplier;
  std::vector<int32_t> order = s.order;
  if (order.empty() && !options_.raster)
    order =
        random_order(at.seed, static_cast<int32_t>(cells), Draw::training_order, example, at.step);
  if (order.empty())
    for (int64_t i = 0; i < cells; ++i) order.push_back(static_cast<int32_t>(i));
  const std::vector<float> times =
      s.timesteps.empty() ? drawn_times(at, example, cells * mul, image.flow, image.timesteps)
                          : s.timesteps;
  for (int64_t k = 0; k < cells; ++k) {
    const int32_t cell = order[k];
    if (k == 0)
      p.row(-1, -1, -1, -1, cell, true);
    else
      p.row(-1, -1,
            p.context(s.target_latents.data() + order[k - 1] * channels, channels, at,
                      example * cells + k, options_.context_noise),
            order[k - 1], cell, false);
    const float* target = s.target_latents.data() + cell * channels;
    const auto condition = static_cast<int32_t>(p.conditions.size());
    p.conditions.push_back(static_cast<int32_t>(p.rows - 1));
    p.drawn.push_back(sequence);
    p.targets.insert(p.targets.end(), target, target + channels);
    for (int64_t j = 0; j < mul; ++j) {
      const float time = times[k * mul + j];
      p.noised.push_back(condition);
      p.steps.push_back(image.flow ? flow_training_step(time, image.timesteps)
                                   : schedule_[static_cast<size_t>(time)]);
      p.counters.push_back((static_cast<uint64_t>(at.step) << 32) |
                           static_cast<uint32_t>((example * cells + k) * mul + j));
    }
  }
  p.noise.insert(p.noise.end(), s.noise.begin(), s.noise.end());
  if (given_noise && s.noise.empty())
    for (size_t i = p.counters.size() - static_cast<size_t>(cells * mul); i < p.counters.size();
         ++i) {
      p.noise.resize(p.noise.size() + static_cast<size_t>(channels));
      training_noise(at.seed, p.counters[i], channels, p.noise.data() + p.noise.size() - channels);
    }
}

UnifiedLoss::Packed UnifiedLoss::pack(const std::vector<TrainingSequence>& batch,
                                      const DrawnAt& at) const {
  const int64_t cells = config_.image ? config_.image->cells() : 0;
  const int64_t channels = config_.image ? config_.image->token_channels : 0;
  Packed p;
  int32_t features = 0;
  // Then the backend draws none: the rest is drawn here.
  const bool given_noise = std::any_of(batch.begin(), batch.end(),
                                       [](const TrainingSequence& s) { return !s.noise.empty(); });
  for (size_t n = 0; n < batch.size(); ++n) {
    const TrainingSequence& s = batch[n];
    const auto sequence = static_cast<int32_t>(n);
    const int64_t first = p.rows;
    if (!s.vision_pixels.empty())
      for (int64_t i = 0; i < config_.vision->features(); ++i)
        p.row(-1, features++, -1, -1, -1, false);
    if (!s.source_latents.empty())
      for (int64_t i = 0; i < cells; ++i)
        p.row(-1, -1, p.input(s.source_latents.data() + i * channels, channels),
              static_cast<int32_t>(i), -1, false);
    for (int32_t id : s.tokens) p.row(id, -1, -1, -1, -1, false);
    const int64_t prefix = p.rows - first;
    // The last row of the prefix predicts the first word.
    for (size_t i = 0; i < s.target_tokens.size(); ++i) {
      if (i > 0) p.row(s.target_tokens[i - 1], -1, -1, -1, -1, false);
      p.predictions.push_back(static_cast<int32_t>(p.rows - 1));
      p.words.push_back(s.target_tokens[i]);
      p.written.push_back(sequence);
    }
    if (!s.target_latents.empty()) pack_image(s, sequence, at.place(n), at, given_noise, p);
    p.spans.push_back(
        {first, p.rows - first, 0, config_.text->bidirectional_prefix ? prefix : 0, KvCache{}});
  }
  return p;
}

// The decoder's inputs.
Var UnifiedLoss::inputs(Tape& tape, Backend& backend, const std::vector<TrainingSequence>& batch,
                        const Packed& p) const {
  const int64_t d = config_.text->hidden_size;
  std::vector<GatherPart> parts;
  const auto used = [](const std::vector<int32_t>& index) {
    return std::any_of(index.begin(), index.end(), [](int32_t i) { return i >= 0; });
  };
  parts.push_back({kNone, &at("language_model.embed_tokens.weight"), p.token,
                   static_cast<float>(std::sqrt(static_cast<double>(d)))});
  if (used(p.feature)) parts.push_back({vision(tape, backend, batch), nullptr, p.feature});
  if (!p.inputs.empty()) {
    const int64_t channels = config_.image->token_channels;
    const Var values = tape.input(static_cast<int64_t>(p.inputs.size()) / channels, channels);
    backend.write(p.inputs.data(), tape.value(values));
    parts.push_back({linear(tape, values, "image_in"), nullptr, p.image_token});
    parts.push_back({kNone, &at("image_position.weight"), p.position});
  }
  if (used(p.begin)) {
    parts.push_back({kNone, &at("image_begin"), p.begin});
    parts.push_back({kNone, &at("image_next_position.weight"), p.next});
  }
  return tape.gather(p.rows, d, std::move(parts));
}

// x through the decoder. Behind the last layer's attention only rows count that something is
// predicted from: less than a half where pictures are read. Those come out, of image tokens first.
Var UnifiedLoss::decoder(Tape& tape, Var x, const Packed& p) const {
  const TextConfig& text = *config_.text;
  std::vector<int32_t> outputs = p.conditions;
  outputs.insert(outputs.end(), p.predictions.begin(), p.predictions.end());
  for (int64_t i = 0; i < text.layers; ++i) {
    const std::vector<int32_t>* wanted = i + 1 < text.layers ? nullptr : &outputs;
    if (options_.recompute)
      x = tape.recomputed(
          x, wanted ? static_cast<int64_t>(wanted->size()) : p.rows,
          [&tape, this, i, spans = p.spans, outputs, last = wanted != nullptr](Var v) {
            return decoder_layer(tape, i, v, spans, last ? &outputs : nullptr);
          });
    else
      x = decoder_layer(tape, i, x, p.spans, wanted);
  }
  return tape.rms_norm(x, at("language_model.norm.weight"), text.rms_norm_eps);
}

namespace {

// Rows [first, first + count) of hidden.
Var rows_of(Tape& tape, Var hidden, size_t first, size_t count) {
  std::vector<int32_t> index(count);
  std::iota(index.begin(), index.end(), static_cast<int32_t>(first));
  return tape.gather(static_cast<int64_t>(count), tape.value(hidden).cols,
                     {{hidden, nullptr, std::move(index)}});
}

// One token's loss, in the sum of its kind and in that of its task.
void count(UnifiedLosses* losses, LossSum& sum, const TrainingSequence& sequence, float loss,
           bool right) {
  for (LossSum* s : {&sum, &losses->by_task[sequence.task]}) {
    s->loss += loss;
    ++s->tokens;
    s->right += right;
  }
}

}  // namespace

void UnifiedLoss::text_loss(Tape& tape, Var hidden, const Packed& p,
                            const std::vector<TrainingSequence>& batch, const StepTokens& total,
                            UnifiedLosses* losses) const {
  if (p.predictions.empty()) return;
  const TextConfig& text = *config_.text;
  const Var out = rows_of(tape, hidden, p.conditions.size(), p.predictions.size());
  std::vector<float> each;
  std::vector<int32_t> likeliest;
  const std::string weight = text.tied ? "language_model.embed_tokens.weight" : "lm_head.weight";
  tape.cross_entropy(out, at(weight), p.words, text.logit_soft_cap,
                     options_.text_weight / static_cast<float>(total.text), &each, &likeliest);
  for (size_t i = 0; i < each.size(); ++i)
    count(losses, losses->text, batch[static_cast<size_t>(p.written[i])], each[i],
          !likeliest.empty() && likeliest[i] == p.words[i]);
}

void UnifiedLoss::image_loss(Tape& tape, Backend& backend, Workspace& workspace, Var hidden,
                             const Packed& p, const std::vector<TrainingSequence>& batch,
                             const StepTokens& total, uint64_t seed, UnifiedLosses* losses) const {
  if (p.conditions.empty()) return;
  const int64_t channels = config_.image->token_channels;
  const int64_t m = static_cast<int64_t>(p.noised.size());
  const Var z = rows_of(tape, hidden, 0, p.conditions.size());
  const Tensor targets = workspace.tensor(static_cast<int64_t>(p.conditions.size()), channels);
  const Tensor epsilon = workspace.tensor(m, channels);
  const Var noised = tape.input(m, channels);
  backend.write(p.targets.data(), targets);
  TrainingBackend& ops = *backend.training();
  if (p.noise.empty())
    ops.training_noise({seed, p.counters.data(), epsilon});
  else
    backend.write(p.noise.data(), epsilon);
  ops.diffuse({targets, p.noised.data(), p.steps.data(), epsilon, tape.value(noised)});
  const Var output = head(tape, backend, z, p.noised, noised, p.steps);
  std::vector<float> each;
  tape.diffusion_loss(output, config_.image->flow, targets, p.noised, p.steps, epsilon,
                      1 / static_cast<float>(total.image), &each);
  for (size_t i = 0; i < each.size(); ++i) {
    const int32_t sequence = p.drawn[static_cast<size_t>(p.noised[i])];
    count(losses, losses->image, batch[static_cast<size_t>(sequence)], each[i], false);
  }
}

void UnifiedLoss::add(Tape& tape, Backend& backend, Workspace& workspace,
                      const std::vector<TrainingSequence>& batch, const StepTokens& total,
                      const DrawnAt& drawn_at, UnifiedLosses* losses) const {
  const Packed p = pack(batch, drawn_at);
  losses->rows += p.rows;
  const Var hidden = decoder(tape, inputs(tape, backend, batch, p), p);
  text_loss(tape, hidden, p, batch, total, losses);
  image_loss(tape, backend, workspace, hidden, p, batch, total, drawn_at.seed, losses);
}

}  // namespace unifluid
