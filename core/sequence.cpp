#include "core/sequence.h"

#include <algorithm>
#include <numeric>
#include <string>
#include <utility>

#include "core/error.h"
#include "core/finite.h"
#include "core/philox.h"

namespace unifluid {

float DrawState::guidance_at(int64_t k) const {
  if (!request.linear_guidance) return static_cast<float>(request.guidance);
  const double share = static_cast<double>(k + 1) / static_cast<double>(order.size());
  return static_cast<float>(1 + (request.guidance - 1) * share);
}

size_t Sequence::bytes() const {
  size_t total = 0;
  for (const Stream& s : streams) total += s.cache.bytes() + s.prefix_memory.bytes();
  if (const auto* draw = std::get_if<DrawState>(&state)) total += draw->latents.bytes();
  if (const auto* score = std::get_if<ScoreState>(&state)) total += score->share.backend_bytes();
  return total;
}

namespace {

// What comes before the tokens of a prefix: image features, then source latents (spec section 5).
struct ImageRows {
  Block memory;
  Tensor rows;  // [F + N, d]; empty without an image
};

ImageRows image_rows(const Prefix& prefix, Model& model, Workspace& workspace) {
  const int64_t features = prefix.vision_pixels.empty() ? 0 : model.config.vision->features();
  const int64_t source = prefix.source_pixels.empty() ? 0 : model.config.image->cells();
  const int64_t d = model.config.text->hidden_size;
  ImageRows out;
  if (features + source == 0) return out;
  Backend& backend = *model.backend;
  const DType type = backend.activation_type();
  out.memory = Block(backend, static_cast<size_t>((features + source) * d) * size_of(type));
  out.rows = Tensor(out.memory.data(), type, features + source, d);
  if (features > 0)
    model.vision->forward(prefix.vision_pixels.data(), workspace, out.rows.slice(0, features));
  if (source > 0) {
    const ImageConfig& image = *model.config.image;
    const VaeConfig& vae = *model.config.vae;
    const int64_t cells = image.grid * image.latent_patch, side = cells * vae.factor();
    const std::vector<float> latents =
        model.vae->encode(prefix.source_pixels.data(), side, side, workspace);
    // They are on the host anyway. The features above are not: reading them would wait for a GPU,
    // and what is NaN among them shows in the result.
    expect_finite(latents, "the latents of the source image");
    const std::vector<float> tokens =
        patchify(latents.data(), vae.latent_channels, image.grid, image.grid, image.latent_patch);
    Workspace::Scope scope(workspace);
    const Tensor clean = workspace.tensor(source, image.token_channels, DType::f32);
    backend.write(tokens.data(), clean);
    std::vector<ImageRow> rows(static_cast<size_t>(source));
    for (int64_t g = 0; g < source; ++g)
      rows[static_cast<size_t>(g)] = {static_cast<const float*>(clean.row(g)),
                                      static_cast<int32_t>(g), -1};
    model.image->embed(rows, out.rows.slice(features, source));
  }
  return out;
}

// A stream that starts with the image rows and the embedded tokens, and can take `suffix` rows
// more. Of the tokens, the last `causal` belong to the suffix already.
Stream make_stream(const Tensor& image, const std::vector<int32_t>& tokens, int64_t causal,
                   int64_t suffix, Model& model) {
  Backend& backend = *model.backend;
  const TextConfig& text = *model.config.text;
  const int64_t text_rows = static_cast<int64_t>(tokens.size());
  const int64_t rows = image.rows + text_rows;
  Stream s;
  s.capacity = rows + suffix;
  s.cache = Block(backend, model.decoder->cache_bytes(s.capacity));
  const DType type = backend.activation_type();
  s.prefix_memory = Block(backend, static_cast<size_t>(rows * text.hidden_size) * size_of(type));
  s.prefix = Tensor(s.prefix_memory.data(), type, rows, text.hidden_size);
  s.prefix_end = text.bidirectional_prefix ? rows - causal : 0;
  if (image) backend.copy(image, s.prefix.slice(0, image.rows));
  model.decoder->embed(tokens.data(), s.prefix.slice(image.rows, text_rows));
  return s;
}

// Rows of a prefix that come from its image.
int64_t image_row_count(const Prefix& prefix, const Model& model) {
  return (prefix.vision_pixels.empty() ? 0 : model.config.vision->features()) +
         (prefix.source_pixels.empty() ? 0 : model.config.image->cells());
}

// What a block of so many rows of the decoder's width takes.
size_t rows_bytes(int64_t rows, const Model& model) {
  return rows == 0 ? 0
                   : model.backend->allocated_size(
                         static_cast<size_t>(rows * model.config.text->hidden_size) *
                         size_of(model.backend->activation_type()));
}

// As make_stream reserves for so many rows of prefix and suffix.
size_t stream_bytes(int64_t prefix, int64_t suffix, const Model& model) {
  return model.backend->allocated_size(model.decoder->cache_bytes(prefix + suffix)) +
         rows_bytes(prefix, model);
}

int64_t size_of_tokens(const std::vector<int32_t>& tokens) {
  return static_cast<int64_t>(tokens.size());
}

// Those of a prefix's tokens that belong to the suffix already: all of a plain text's.
int64_t causal_tokens(const Prefix& prefix) {
  return prefix.plain_text ? size_of_tokens(prefix.tokens) : 0;
}

// The rows of a stream whose last `causal` tokens belong to the suffix already.
PendingRows stream_rows(int64_t image, int64_t tokens, int64_t causal, const Model& model) {
  const int64_t rows = image + tokens;
  return {rows, model.config.text->bidirectional_prefix ? rows - causal : 0};
}

struct RowsNeeded {
  const Model& model;
  using Rows = std::vector<PendingRows>;

  Rows operator()(const TextRequest& r) const {
    return {stream_rows(image_row_count(r.prefix, model), size_of_tokens(r.prefix.tokens),
                        causal_tokens(r.prefix), model)};
  }
  Rows operator()(const ScoreRequest& r) const {
    const int64_t suffix = size_of_tokens(r.suffix);
    return {stream_rows(image_row_count(r.prefix, model), size_of_tokens(r.prefix.tokens) + suffix,
                        causal_tokens(r.prefix) + suffix, model)};
  }
  Rows operator()(const DrawRequest& r) const {
    const int64_t image = image_row_count(r.prefix, model);
    Rows rows{stream_rows(image, size_of_tokens(r.prefix.tokens), 0, model)};
    if (!r.empty_tokens.empty())
      rows.push_back(stream_rows(image, size_of_tokens(r.empty_tokens), 0, model));
    return rows;
  }
  Rows operator()(const EncodeRequest&) const { return {}; }
  Rows operator()(const FeaturesRequest&) const { return {}; }
  Rows operator()(const DecodeRequest&) const { return {}; }
};

// [rows, vocab] that a score gives: those of the last row of the prefix and of the suffix, or of
// all rows of a plain text, each of which predicts a token.
struct ScoreRows {
  int64_t first, count;
};

ScoreRows score_rows(const ScoreRequest& r, const Model& model) {
  const int64_t suffix = size_of_tokens(r.suffix);
  const int64_t rows = image_row_count(r.prefix, model) + size_of_tokens(r.prefix.tokens) + suffix;
  return r.prefix.plain_text ? ScoreRows{0, rows} : ScoreRows{rows - suffix - 1, suffix + 1};
}

size_t logits_bytes(const ScoreRows& wanted, const Model& model) {
  return static_cast<size_t>(wanted.count) * static_cast<size_t>(model.config.text->vocab_size) *
         sizeof(float);
}

// Those of the image, which are held beside the stream's until they are copied, among them.
struct BytesNeeded {
  const Model& model;

  size_t image(const Prefix& prefix) const {
    return rows_bytes(image_row_count(prefix, model), model);
  }
  size_t operator()(const TextRequest& r) const {
    return image(r.prefix) +
           stream_bytes(RowsNeeded{model}(r).front().left, r.max_new_tokens - 1, model);
  }
  size_t operator()(const ScoreRequest& r) const {
    const size_t logits =
        model.backend->in_host_memory() ? logits_bytes(score_rows(r, model), model) : 0;
    return image(r.prefix) + stream_bytes(RowsNeeded{model}(r).front().left, 0, model) + logits;
  }
  size_t operator()(const DrawRequest& r) const {
    const int64_t rows = image_row_count(r.prefix, model), n = model.config.image->cells();
    size_t bytes = image(r.prefix) + stream_bytes(rows + size_of_tokens(r.prefix.tokens), n, model);
    if (!r.empty_tokens.empty())
      bytes += stream_bytes(rows + size_of_tokens(r.empty_tokens), n, model);
    return bytes + model.backend->allocated_size(
                       static_cast<size_t>(n * model.config.image->token_channels) * sizeof(float));
  }
  size_t operator()(const EncodeRequest&) const { return 0; }
  size_t operator()(const FeaturesRequest&) const { return 0; }
  size_t operator()(const DecodeRequest&) const { return 0; }
};

// What the image took of the workspace is given back where the cache of `r` needs it.
template <class R>
void make_way(const R& r, Model& model, Workspace& workspace) {
  const BytesNeeded needed{model};
  if (needed(r) - needed.image(r.prefix) > model.backend->available()) workspace.trim(0);
}

// Rows of a stream behind its prefix.
struct SuffixRows {
  const Model& model;

  int64_t operator()(const TextRequest& r) const { return r.max_new_tokens - 1; }
  int64_t operator()(const DrawRequest&) const { return model.config.image->cells(); }
  template <class Other>
  int64_t operator()(const Other&) const {
    return 0;
  }
};

void add_text(const Model& model, StepSize& size) {
  ++size.texts;
  size.vocab = model.config.text->vocab_size;
}

void add_score(int64_t rows, StepSize& size) {
  size.scored = std::max(size.scored, std::min(kScoreRows, rows));
}

void add_drawing(const DrawRequest& request, int64_t streams, const Model& model, StepSize& size) {
  size.head = &model.image->head();
  ++size.tokens;
  size.token_rows += streams;
  size.sampling_steps = std::max(size.sampling_steps, request.steps);
}

void add_stream(int64_t capacity, StepSize& size) {
  ++size.streams;
  size.capacity = std::max(size.capacity, capacity);
}

}  // namespace

void add_sequence(const Request& request, const Model& model, StepSize& size) {
  const std::vector<PendingRows> prefixes = pending_rows(request, model);
  const int64_t suffix = std::visit(SuffixRows{model}, request);
  for (const PendingRows& prefix : prefixes) add_stream(prefix.left + suffix, size);
  if (std::holds_alternative<TextRequest>(request)) add_text(model, size);
  if (std::holds_alternative<ScoreRequest>(request)) add_score(prefixes.front().left, size);
  if (const auto* draw = std::get_if<DrawRequest>(&request))
    add_drawing(*draw, static_cast<int64_t>(prefixes.size()), model, size);
}

void add_sequence(const Sequence& sequence, const Model& model, StepSize& size) {
  for (const Stream& stream : sequence.streams) add_stream(stream.capacity, size);
  if (std::holds_alternative<TextState>(sequence.state)) add_text(model, size);
  if (std::holds_alternative<ScoreState>(sequence.state))
    add_score(sequence.streams.front().capacity, size);
  if (const auto* draw = std::get_if<DrawState>(&sequence.state))
    add_drawing(draw->request, static_cast<int64_t>(sequence.streams.size()), model, size);
}

size_t sequence_bytes(const Request& request, const Model& model) {
  return std::visit(BytesNeeded{model}, request);
}

size_t image_rows_bytes(const Request& request, const Model& model) {
  return std::visit(
      [&](const auto& r) -> size_t {
        if constexpr (requires { r.prefix; })
          return BytesNeeded{model}.image(r.prefix);
        else
          return 0;
      },
      request);
}

std::vector<PendingRows> pending_rows(const Request& request, const Model& model) {
  return std::visit(RowsNeeded{model}, request);
}

Sequence make_sequence(uint64_t id, TextRequest&& r, Model& model, Workspace& workspace) {
  const ImageRows image = image_rows(r.prefix, model, workspace);
  make_way(r, model, workspace);
  Sequence s{id, {}, TextState{}};
  // The last token is returned, not fed.
  s.streams.push_back(make_stream(image.rows, r.prefix.tokens, causal_tokens(r.prefix),
                                  r.max_new_tokens - 1, model));
  s.state = TextState{std::move(r), {}};
  return s;
}

void expect_host_memory(const Request& request, const Model& model) {
  const auto* score = std::get_if<ScoreRequest>(&request);
  if (!score) return;
  const ScoreRows wanted = score_rows(*score, model);
  const size_t bytes = logits_bytes(wanted, model), available = model.backend->host_available();
  if (bytes > available)
    throw Error(error_code::kInsufficientMemory,
                "the logits of " + std::to_string(wanted.count) + " rows over a vocabulary of " +
                    std::to_string(model.config.text->vocab_size) + " take " +
                    std::to_string(bytes) + " bytes of the host's memory where " +
                    std::to_string(available) + " are available");
}

Sequence make_sequence(uint64_t id, ScoreRequest&& r, Model& model, Workspace& workspace) {
  const ScoreRows wanted = score_rows(r, model);
  const size_t bytes = logits_bytes(wanted, model);
  ScoreState score{wanted.first, HostShare(*model.backend, bytes), {}};
  score.logits.reserve(bytes / sizeof(float));
  const ImageRows image = image_rows(r.prefix, model, workspace);
  make_way(r, model, workspace);
  const int64_t causal = causal_tokens(r.prefix) + size_of_tokens(r.suffix);
  std::vector<int32_t> tokens = r.prefix.tokens;
  tokens.insert(tokens.end(), r.suffix.begin(), r.suffix.end());
  Sequence s{id, {}, std::move(score)};
  s.streams.push_back(make_stream(image.rows, tokens, causal, 0, model));
  return s;
}

Sequence make_sequence(uint64_t id, DrawRequest&& r, Model& model, Workspace& workspace) {
  const ImageRows image = image_rows(r.prefix, model, workspace);
  make_way(r, model, workspace);
  const ImageConfig& config = *model.config.image;
  const int64_t n = config.cells();
  DrawState state;
  state.latents =
      Block(*model.backend, static_cast<size_t>(n * config.token_channels) * sizeof(float));
  if (r.random_order) {
    state.order = random_order(r.seed, static_cast<int32_t>(n));
  } else {
    state.order.resize(static_cast<size_t>(n));
    std::iota(state.order.begin(), state.order.end(), 0);
  }
  Sequence s{id, {}, ScoreState{}};
  s.streams.push_back(make_stream(image.rows, r.prefix.tokens, 0, n, model));
  if (!r.empty_tokens.empty())
    s.streams.push_back(make_stream(image.rows, r.empty_tokens, 0, n, model));
  state.request = std::move(r);
  s.state = std::move(state);
  return s;
}

}  // namespace unifluid
