// One step of the engine: which rows run in it, and what comes of them; beside it the vision tower
// and the autoencoder alone (core/engine.h).
#include <algorithm>
#include <map>
#include <optional>
#include <unordered_map>
#include <utility>
#include <variant>
#include <vector>

#include "core/engine.h"
#include "core/error.h"
#include "core/finite.h"
#include "core/philox.h"
#include "core/prefill.h"

namespace unifluid {

namespace {

Error drawing_not_finite() {
  return Error(error_code::kNumerical,
               "the drawing holds values that are not finite: a weight is NaN or infinite, or the "
               "sampler needs an x0 limit");
}

}  // namespace

// The batch of one step. Its rows are, in this order: a row for each text being written, the rows
// of each image being drawn (one a stream), and runs of prefix rows.
struct Engine::Step {
  struct PrefixRun {
    Sequence* sequence;
    Stream* stream;
    int64_t first_row, rows, index;
  };
  std::vector<Sequence*> texts, images;
  std::vector<const int32_t*> text_ids;  // where they lie, in the backend's memory
  std::vector<ImageRow> image_rows;
  std::vector<PrefixRun> prefixes;
  std::vector<DecoderSpan> spans;
  int64_t rows = 0;
  Tensor hidden;                   // [rows, d], the final norm's outputs
  std::vector<Sequence*> sampled;  // texts that get a token in this step

  int64_t first_image_row() const { return static_cast<int64_t>(texts.size()); }
  // Rows of logits that are made at a time.
  int64_t logits_rows() const {
    int64_t sampled = static_cast<int64_t>(texts.size()), scored = 0;
    for (const PrefixRun& run : prefixes) {
      if (std::holds_alternative<TextState>(run.sequence->state)) ++sampled;
      if (std::holds_alternative<ScoreState>(run.sequence->state))
        scored = std::max(scored, std::min(kScoreRows, run.rows));
    }
    return std::max(sampled, scored);
  }
  void add_span(Stream& s, int64_t count) {
    spans.push_back({rows, count, s.length, s.prefix_end, s.cache.data(), s.capacity});
    rows += count;
  }
};

void Engine::gather(Step& step) {
  for (const auto& sequence : running_) {
    if (sequence->prefilling()) continue;
    if (auto* text = std::get_if<TextState>(&sequence->state); text && !text->complete()) {
      step.texts.push_back(sequence.get());
      step.text_ids.push_back(text->latest);
      step.add_span(sequence->streams.front(), 1);
    }
  }
  for (const auto& sequence : running_) {
    auto* draw = std::get_if<DrawState>(&sequence->state);
    if (!draw || sequence->prefilling()) continue;
    step.images.push_back(sequence.get());
    const int64_t k = draw->drawn, channels = model_->config.image->token_channels;
    ImageRow row;
    row.next = draw->order[static_cast<size_t>(k)];
    if (k > 0) {
      row.cell = draw->order[static_cast<size_t>(k - 1)];
      row.token = static_cast<const float*>(draw->latents.data()) + row.cell * channels;
    }
    for (Stream& stream : sequence->streams) {
      step.image_rows.push_back(row);
      step.add_span(stream, 1);
    }
  }
  int64_t budget = kPrefillRows;
  for (const auto& sequence : running_) {
    for (Stream& stream : sequence->streams) {
      if (!stream.prefilling() || budget <= 0) continue;
      const int64_t count = stream.pending().next(budget);
      step.prefixes.push_back({sequence.get(), &stream, step.rows, count, stream.length});
      step.add_span(stream, count);
      budget -= count;
    }
  }
}

// What comes out of the decoder for every row of a step. No sequence has advanced when it fails.
void Engine::compute(Step& step) {
  const int64_t d = model_->config.text->hidden_size;
  const Tensor x = workspace_->tensor(step.rows, d);
  if (!step.text_ids.empty())
    model_->decoder->embed(step.text_ids.data(),
                           x.slice(0, static_cast<int64_t>(step.text_ids.size())));
  if (!step.image_rows.empty())
    model_->image->embed(step.image_rows, x.slice(step.first_image_row(),
                                                  static_cast<int64_t>(step.image_rows.size())));
  for (const Step::PrefixRun& run : step.prefixes)
    model_->backend->copy(run.stream->prefix.slice(run.index, run.rows),
                          x.slice(run.first_row, run.rows));
  step.hidden = workspace_->tensor(step.rows, d);
  model_->decoder->forward(x, step.spans, *workspace_, step.hidden);
}

// A prompt for whose rows there is no memory after all fails alone; what it ran beside is tried
// again without it. Returns whether there was one.
bool Engine::drop_largest_prompt(const Step& step, const std::exception& error) {
  if (!lacks_memory(error) || step.prefixes.empty()) return false;
  model_->backend->synchronize();  // its memory is about to go
  const auto largest = std::max_element(
      step.prefixes.begin(), step.prefixes.end(),
      [](const Step::PrefixRun& a, const Step::PrefixRun& b) { return a.rows < b.rows; });
  fail(largest->sequence->id, error);
  return true;
}

void Engine::step() {
  Step step;
  gather(step);
  if (step.rows > 0 && !advance(step)) return;
  // The tokens of this step are waited for when the next one has been issued.
  const bool lags = !step.sampled.empty() && model_->backend->asynchronous();
  hand_out_tokens(lags ? 1 : 0);
}

// Returns false where a prompt was dropped and nothing else done.
bool Engine::advance(Step& step) {
  std::optional<Workspace::Scope> scope;
  try {
    // All that it takes, before any sequence has advanced.
    workspace_->reserve(step_bytes(step.rows, step.logits_rows()));
    scope.emplace(*workspace_);
    compute(step);
  } catch (const std::exception& error) {
    if (!drop_largest_prompt(step, error)) throw;
    return false;
  }
  for (Sequence* s : step.texts) ++s->streams.front().length;
  for (Sequence* s : step.images)
    for (Stream& stream : s->streams) ++stream.length;
  for (const Step::PrefixRun& run : step.prefixes) run.stream->length += run.rows;

  sample_texts(step);
  finish_scores(step);
  finish_drawings(step);
  read_tokens(step);
  model_->backend->submit();
  for (const Step::PrefixRun& run : step.prefixes) {
    if (run.stream->prefilling()) continue;
    run.stream->prefix = Tensor();
    run.stream->prefix_memory.reset();
  }
  ++steps_;
  rows_ += step.rows;
  return true;
}

// Samples a token for every text that has one more row behind it: those being written, and those
// whose prefix has just ended.
void Engine::sample_texts(Step& step) {
  step.sampled = step.texts;
  std::vector<int64_t> rows(step.texts.size());
  for (size_t i = 0; i < rows.size(); ++i) rows[i] = static_cast<int64_t>(i);
  for (const Step::PrefixRun& run : step.prefixes) {
    if (run.stream->prefilling() || !std::holds_alternative<TextState>(run.sequence->state))
      continue;
    step.sampled.push_back(run.sequence);
    rows.push_back(run.first_row + run.rows - 1);
  }
  const int64_t n = static_cast<int64_t>(step.sampled.size());
  if (n == 0) return;

  Workspace::Scope scope(*workspace_);
  const TextConfig& config = model_->config.text.value();
  const Tensor hidden = workspace_->tensor(n, config.hidden_size);
  const Tensor logits = workspace_->tensor(n, config.vocab_size, DType::f32);
  std::vector<float> temperature(step.sampled.size());
  std::vector<double> uniforms(step.sampled.size());
  int32_t* ids = static_cast<int32_t*>(token_ids_.data());
  for (int64_t i = 0; i < n; ++i) {
    const size_t at = static_cast<size_t>(i);
    model_->backend->copy(step.hidden.slice(rows[at], 1), hidden.slice(i, 1));
    TextState& text = std::get<TextState>(step.sampled[at]->state);
    temperature[at] = text.request.temperature;
    uniforms[at] = text_uniform(text.request.seed, static_cast<uint32_t>(text.sampled));
    text.latest = ids + i;
    ++text.sampled;
  }
  model_->decoder->logits(hidden, logits);
  model_->backend->sample_text({logits, temperature.data(), uniforms.data(), ids});
}

// Last in a step, since it issues what the backend has gathered so far.
void Engine::read_tokens(const Step& step) {
  if (step.sampled.empty()) return;
  const size_t n = step.sampled.size();
  SampledTokens tokens{0, {}, std::make_unique<int32_t[]>(n)};
  for (const Sequence* sequence : step.sampled) tokens.sequences.push_back(sequence->id);
  tokens.ticket = model_->backend->begin_read(static_cast<const int32_t*>(token_ids_.data()),
                                              static_cast<int64_t>(n), tokens.ids.get());
  sampled_.push_back(std::move(tokens));
}

// Waits for the tokens of all steps but the latest `keep`. Those of a text that has ended since, by
// a stop token or otherwise, are dropped.
void Engine::hand_out_tokens(size_t keep) {
  if (sampled_.size() <= keep) return;
  std::unordered_map<uint64_t, Sequence*> running;
  for (const auto& sequence : running_) running.emplace(sequence->id, sequence.get());
  while (sampled_.size() > keep) {
    const SampledTokens tokens = std::move(sampled_.front());
    sampled_.pop_front();
    model_->backend->finish_read(tokens.ticket);
    for (size_t i = 0; i < tokens.sequences.size(); ++i) {
      const auto found = running.find(tokens.sequences[i]);
      if (found != running.end() && finished_.count(found->first) == 0)
        add_token(*found->second, tokens.ids[i]);
    }
  }
}

void Engine::add_token(Sequence& sequence, int32_t token) {
  if (token < 0)
    return fail(sequence.id,
                Error(error_code::kNumerical,
                      "the logits contain NaN or infinity, so no token can be chosen: a "
                      "weight is NaN or infinite"));
  TextState& text = std::get<TextState>(sequence.state);
  const std::vector<int32_t>& stops = text.request.stop_tokens;
  const bool stopped = std::find(stops.begin(), stops.end(), token) != stops.end();
  if (!stopped) {
    text.tokens.push_back(token);
    if (text.request.stream) emit(sequence.id, TokenEvent{token});
  }
  if (!stopped && static_cast<int64_t>(text.tokens.size()) < text.request.max_new_tokens) return;
  DoneEvent done;
  done.text = true;
  done.tokens = std::move(text.tokens);
  done.stopped = stopped;
  emit(sequence.id, std::move(done));
  ++completed_;
  remove(sequence.id);
}

void Engine::finish_scores(Step& step) {
  const int64_t vocab = model_->config.text->vocab_size;
  for (const Step::PrefixRun& run : step.prefixes) {
    auto* score = std::get_if<ScoreState>(&run.sequence->state);
    if (!score) continue;
    Workspace::Scope scope(*workspace_);
    const int64_t skip = std::max<int64_t>(0, score->first_row - run.index);
    bool finite = true;
    for (int64_t first = skip; first < run.rows && finite; first += kScoreRows) {
      Workspace::Scope inner(*workspace_);
      const int64_t count = std::min(kScoreRows, run.rows - first);
      const Tensor logits = workspace_->tensor(count, vocab, DType::f32);
      model_->decoder->logits(step.hidden.slice(run.first_row + first, count), logits);
      const size_t before = score->logits.size();
      score->logits.resize(before + static_cast<size_t>(count * vocab));
      model_->backend->read(logits, score->logits.data() + before);
      finite = all_finite(score->logits.data() + before, score->logits.size() - before);
    }
    if (!finite) {
      fail(run.sequence->id,
           Error(error_code::kNumerical,
                 "the logits hold values that are not finite: a weight is NaN or infinite"));
      continue;
    }
    if (run.stream->prefilling()) continue;
    DoneEvent done;
    done.logits = std::move(score->logits);
    emit(run.sequence->id, std::move(done));
    ++completed_;
    remove(run.sequence->id);
  }
}

void Engine::finish_drawings(Step& step) {
  const int64_t channels = model_->config.image ? model_->config.image->token_channels : 0;
  // Tokens at the same number of sampling steps go through the diffusion head together.
  std::map<int64_t, std::vector<DiffusionToken>> groups;
  // Conditions are the images' rows alone: the head embeds all that it is given.
  const Tensor z =
      step.hidden.slice(step.first_image_row(), static_cast<int64_t>(step.image_rows.size()));
  int64_t row = 0;
  for (Sequence* sequence : step.images) {
    DrawState& draw = std::get<DrawState>(sequence->state);
    const DrawRequest& r = draw.request;
    const int32_t cell = draw.order[static_cast<size_t>(draw.drawn)];
    const bool guided = sequence->streams.size() > 1;
    groups[r.steps].push_back({row, guided ? row + 1 : -1, draw.guidance_at(draw.drawn),
                               r.temperature, r.x0_limit, r.seed, cell,
                               static_cast<float*>(draw.latents.data()) + cell * channels});
    row += guided ? 2 : 1;
  }
  for (const auto& [steps, tokens] : groups) model_->image->sample(z, steps, tokens);
  for (Sequence* sequence : step.images) {
    DrawState& draw = std::get<DrawState>(sequence->state);
    if (draw.request.stream) {
      const int32_t cell = draw.order[static_cast<size_t>(draw.drawn)];
      CellEvent event{draw.drawn, cell, std::vector<float>(static_cast<size_t>(channels))};
      float* latents = static_cast<float*>(draw.latents.data());
      model_->backend->read(Tensor(latents + cell * channels, DType::f32, 1, channels),
                            event.values.data());
      if (!all_finite(event.values.data(), event.values.size())) {
        fail(sequence->id, drawing_not_finite());
        continue;
      }
      emit(sequence->id, std::move(event));
    }
    if (++draw.drawn == static_cast<int64_t>(draw.order.size())) complete_drawing(*sequence);
  }
}

void Engine::complete_drawing(Sequence& sequence) {
  try {
    const DrawState& draw = std::get<DrawState>(sequence.state);
    const ImageConfig& image = *model_->config.image;
    DoneEvent done;
    done.latents.resize(static_cast<size_t>(image.cells() * image.token_channels));
    model_->backend->read(
        Tensor(draw.latents.data(), DType::f32, image.cells(), image.token_channels),
        done.latents.data());
    if (!all_finite(done.latents.data(), done.latents.size())) throw drawing_not_finite();
    if (draw.request.decode) {
      undecoded_.push_back({sequence.id, std::move(done)});
    } else {
      emit(sequence.id, std::move(done));
      ++completed_;
    }
  } catch (const std::exception& error) {
    fail(sequence.id, error);
  }
  remove(sequence.id);
}

// One a step: drawings that were admitted together end together, and their decodings in a row would
// hold up all others. The sequence and its cache are gone by now.
void Engine::decode_next() {
  if (undecoded_.empty()) return;
  Undecoded& next = undecoded_.front();
  const ImageConfig& image = *model_->config.image;
  try {
    with_room(limits_.vae_activation_bytes,
              [&] { decode_pixels(next.done.latents.data(), image.grid, image.grid, next.done); });
    emit(next.id, std::move(next.done));
    ++completed_;
  } catch (const std::exception& error) {
    fail(next.id, error);
  }
  undecoded_.pop_front();  // last: what is not told here fail_all must find
}

// ---- the vision tower and the autoencoder alone ----

DoneEvent Engine::features(const FeaturesRequest& r) {
  Workspace::Scope scope(*workspace_);
  const VisionConfig& vision = *model_->config.vision;
  const Tensor out = workspace_->tensor(vision.features(), vision.hidden_size);
  model_->vision->features(r.pixels.data(), *workspace_, out);
  DoneEvent done;
  done.features.resize(static_cast<size_t>(out.size()));
  model_->backend->read(out, done.features.data());
  expect_finite(done.features, "the image features");
  return done;
}

DoneEvent Engine::encode(const EncodeRequest& r) {
  const VaeConfig& vae = *model_->config.vae;
  const int64_t patch = model_->config.image ? model_->config.image->latent_patch : 1;
  const int64_t unit = vae.factor() * patch;
  const std::vector<float> latents =
      model_->vae->encode(r.pixels.data(), r.height, r.width, *workspace_);
  expect_finite(latents, "the latents of the image");
  DoneEvent done;
  done.latents =
      patchify(latents.data(), vae.latent_channels, r.height / unit, r.width / unit, patch);
  return done;
}

DoneEvent Engine::decode(const DecodeRequest& r) {
  DoneEvent done;
  decode_pixels(r.latents.data(), r.columns, r.rows, done);
  return done;
}

void Engine::decode_pixels(const float* tokens, int64_t columns, int64_t rows, DoneEvent& done) {
  const VaeConfig& vae = *model_->config.vae;
  const int64_t patch = model_->config.image ? model_->config.image->latent_patch : 1;
  const std::vector<float> latents = unpatchify(tokens, vae.latent_channels, rows, columns, patch);
  done.width = columns * patch * vae.factor();
  done.height = rows * patch * vae.factor();
  done.pixels.resize(static_cast<size_t>(done.width * done.height * vae.out_channels));
  if (!model_->vae->decode(latents.data(), rows * patch, columns * patch, *workspace_,
                           done.pixels.data()))
    throw Error(error_code::kNumerical, "the autoencoder gave a pixel that is not finite");
}

}  // namespace unifluid
