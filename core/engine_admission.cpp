// Which waiting request starts next, and whether memory will do for it: the engine's decisions
// before any of a request's work (core/engine.h).
#include <algorithm>
#include <string>
#include <type_traits>
#include <utility>

#include "core/engine.h"
#include "core/error.h"
#include "core/prefill.h"

namespace unifluid {

namespace {

// Tensors of a step of the decoder, with room to spare; each may lose a line to its alignment.
constexpr size_t kStepSlack = 16 * 64;

}  // namespace

size_t Engine::running_bytes() const {
  size_t bytes = 0;
  for (const auto& sequence : running_) bytes += sequence->bytes();
  return bytes;
}

// What a step of the decoder takes: for its rows, and for those that logits are made of.
size_t Engine::step_bytes(int64_t rows, int64_t logits_rows) const {
  const TextConfig& text = *model_->config.text;
  const size_t width = size_of(model_->backend->activation_type());
  const size_t logits = static_cast<size_t>(text.hidden_size) * width +
                        static_cast<size_t>(text.vocab_size) * sizeof(float);
  return static_cast<size_t>(rows) * limits_.row_activation_bytes / sizeof(float) * width +
         static_cast<size_t>(logits_rows) * logits + kStepSlack;
}

// The largest step that is to come when `next` runs beside all that runs already, or alone.
StepSize Engine::largest_step(const Waiting& next, bool alone) const {
  StepSize size;
  if (!model_->config.text) return size;
  const TextConfig& text = *model_->config.text;
  size.heads = text.heads;
  size.kv_heads = text.kv_heads;
  size.head_dim = text.head_dim;
  size.rotary = text.rope_theta > 0;
  add_sequence(next.request, *model_, size);
  std::vector<PendingRows> prefixes;
  int64_t others = 0;
  // Prompts are run by rank.
  bool added = false;
  const auto add_next = [&] {
    for (const PendingRows& rows : pending_rows(next.request, *model_)) prefixes.push_back(rows);
    added = true;
  };
  if (!alone)
    for (const auto& sequence : running_) {
      if (!added && next.rank < sequence->rank) add_next();
      add_sequence(*sequence, *model_, size);
      for (const Stream& stream : sequence->streams)
        if (stream.prefilling())
          prefixes.push_back(stream.pending());
        else
          ++others;
    }
  if (!added) add_next();
  size.rows = largest_step_of(std::move(prefixes), others);
  return size;
}

size_t Engine::step_bytes(const StepSize& size) const {
  return step_bytes(size.rows, std::max(size.texts, size.scored));
}

// What the images of a sequence take before its cache is there, and after it is gone.
size_t Engine::image_activation_bytes(const Request& request) const {
  size_t in_float32 = 0;
  const auto of_prefix = [&](const Prefix& prefix) {
    if (!prefix.vision_pixels.empty())
      in_float32 = std::max(in_float32, limits_.vision_activation_bytes);
    if (!prefix.source_pixels.empty())
      in_float32 = std::max(in_float32, limits_.vae_activation_bytes);
  };
  if (const auto* text = std::get_if<TextRequest>(&request)) of_prefix(text->prefix);
  if (const auto* score = std::get_if<ScoreRequest>(&request)) of_prefix(score->prefix);
  if (const auto* draw = std::get_if<DrawRequest>(&request)) {
    of_prefix(draw->prefix);
    if (draw->decode) in_float32 = std::max(in_float32, limits_.vae_activation_bytes);
  }
  return in_float32 / sizeof(float) * size_of(model_->backend->activation_type());
}

// Whether a request may start; all that its steps take beside its own cache is there then, or will
// be had, so that no step fails for it. Throws INSUFFICIENT_MEMORY where it never may.
bool Engine::make_room(const Waiting& next) {
  Backend& backend = *model_->backend;
  const StepSize alone = largest_step(next, true), together = largest_step(next, false);
  const size_t bytes = sequence_bytes(next.request, *model_);
  // What the workspace and scratch hold is there for a step, or can be given back.
  const size_t held = workspace_->bytes();
  const size_t available = backend.available() + backend.scratch() + held;
  // Even with all that runs out of the way.
  const size_t most = available + running_bytes();
  const size_t more = alone.streams == 0 ? 0
                                         : backend.allocated_size(step_bytes(alone)) +
                                               backend.scratch_needed(alone);
  const size_t cache = bytes - image_rows_bytes(next.request, *model_);
  if (std::max(bytes, cache + more) > most)
    throw Error(error_code::kInsufficientMemory,
                "the request needs " + std::to_string(cache) + " bytes of cache and " +
                    std::to_string(more) + " for its largest step, but at most " +
                    std::to_string(most) + " are available even with nothing else running");
  if (const size_t image = image_activation_bytes(next.request); image > most)
    throw Error(error_code::kInsufficientMemory,
                "the image needs about " + std::to_string(image) + " bytes, but at most " +
                    std::to_string(most) + " are available even with nothing else running");
  size_t step = limits_.fixed_activation_bytes;
  if (model_->config.text) step = std::max(step, step_bytes(together));
  step = backend.allocated_size(step);
  const size_t scratch = backend.scratch_needed(together);
  if (!running_.empty() && bytes + step + scratch > available) return false;
  // More than that is of earlier work, and given back only where it is in the way.
  if (bytes + scratch > available - held) workspace_->trim(0);
  const size_t needed = bytes + step - std::min(step, workspace_->bytes());
  if (scratch <= backend.scratch() && needed <= backend.available()) return true;
  try {
    backend.resize_scratch(scratch);
  } catch (const std::exception& error) {
    if (!lacks_memory(error) || running_.empty()) throw;
    starved_ = {next.id, running_.size()};
    return false;
  }
  return true;
}

void Engine::begin_workspace(size_t bytes) {
  workspace_->trim(0);
  const Backend& backend = *model_->backend;
  if (bytes > 0 && backend.allocated_size(bytes) <= backend.available()) workspace_->reserve(bytes);
}

// Images alone take no sequence and are done at once, so neither kind waits for the other. Each has
// its own share of a step.
void Engine::admit() {
  admit_from(waiting_images_);
  admit_from(waiting_);
}

// By rank. A request that must wait for memory holds back those behind it, or a stream of small
// ones would keep a large one out for good.
void Engine::admit_from(RequestQueue& queue) {
  const auto has_place = [&] {
    return static_cast<int64_t>(std::max(running_.size(), undecoded_.size())) <
           limits_.max_sequences;
  };
  int64_t prefill = 0;
  while (!queue.empty() && prefill < kPrefillRows) {
    Waiting& next = queue.front();
    const bool sequence = takes_sequence(next.request);
    if (sequence && !has_place()) return;
    const uint64_t id = next.id;
    if (id == starved_.id && running_.size() >= starved_.running) return;
    bool fits = false;
    try {
      if (!make_room(next)) return;
      expect_host_memory(next.request, *model_);
      // Of images alone make_room knows nothing: they are tried once.
      fits = sequence;
      start(std::move(next), prefill);
    } catch (const std::exception& error) {
      if (fits && lacks_memory(error) && !running_.empty()) {
        starved_ = {id, running_.size()};
        return;
      }
      fail(id, error);
    }
    unqueue(id);
    queue.pop_front();
  }
}

// Work of a request that is done at once counts as a step's share of prefill rows, so that what
// runs already gets its turn between any two such pieces.
void Engine::start(Waiting&& waiting, int64_t& prefill) {
  const uint64_t id = waiting.id;
  std::visit(
      [&](auto&& request) {
        using Kind = std::decay_t<decltype(request)>;
        if constexpr (std::is_same_v<Kind, EncodeRequest>) {
          emit(id, with_room(limits_.vae_activation_bytes, [&] { return encode(request); }));
          ++completed_;
          prefill += kPrefillRows;
        } else if constexpr (std::is_same_v<Kind, FeaturesRequest>) {
          emit(id, with_room(limits_.vision_activation_bytes, [&] { return features(request); }));
          ++completed_;
          prefill += model_->config.vision->features();
        } else if constexpr (std::is_same_v<Kind, DecodeRequest>) {
          emit(id, with_room(limits_.vae_activation_bytes, [&] { return decode(request); }));
          ++completed_;
          prefill += kPrefillRows;
        } else {
          if (!request.prefix.source_pixels.empty()) prefill += kPrefillRows;  // an encoding
          // Whatever finds no memory leaves the request whole: it may be tried again.
          running_.reserve(running_.size() + 1);
          auto sequence = std::make_unique<Sequence>();
          *sequence = with_room(
              0, [&] { return make_sequence(id, std::move(request), *model_, *workspace_); });
          sequence->rank = waiting.rank;
          for (const Stream& s : sequence->streams) prefill += s.prefix.rows;
          const auto at = std::upper_bound(
              running_.begin(), running_.end(), sequence->rank,
              [](int64_t rank, const auto& running) { return rank < running->rank; });
          running_.insert(at, std::move(sequence));
        }
      },
      std::move(waiting.request));
}

}  // namespace unifluid
