// The Gemma decoder (spec section 4): Gemma 1 and Gemma 2 as the transformers library computes
// them.
#pragma once

#include <cstddef>
#include <vector>

#include "core/backend.h"
#include "core/config.h"
#include "core/memory.h"
#include "core/weights.h"

namespace unifluid {

// Consecutive new rows of one sequence in a batch, and where the sequence keeps its cache.
struct DecoderSpan {
  int64_t first_row;  // in the batch
  int64_t rows;
  int64_t index;       // of the first new row in its sequence
  int64_t prefix_end;  // rows below it see each other in both directions
  void* cache;         // `cache_bytes(capacity)` bytes
  int64_t capacity;    // rows the cache can hold
};

// A step by the operations of a backend, for those that do not take it as a whole.
void run_decoder_step(Backend& backend, const DecoderStepArgs& args);

class Decoder {
 public:
  Decoder(const TextConfig& config, const Weights& weights, Backend& backend);

  // Bytes of the keys and values of a sequence of so many rows, all layers.
  size_t cache_bytes(int64_t capacity) const;

  // Token embeddings times sqrt(d). ids: host, [m]; out [m, d].
  void embed(const int32_t* ids, const Tensor& out) const;
  // The same of ids that were sampled. sampled: host, [m], where they lie in the backend's memory.
  void embed(const int32_t* const* sampled, const Tensor& out) const;

  // rows [m, d] are the inputs, and are overwritten; out [m, d] gets the final norm's outputs.
  // Appends to the caches of the spans.
  void forward(const Tensor& rows, const std::vector<DecoderSpan>& spans, Workspace& workspace,
               const Tensor& out) const;

  // hidden [m, d] -> out [m, vocab], soft-capped.
  void logits(const Tensor& hidden, const Tensor& out) const;

 private:
  float embedding_scale() const;

  TextConfig config_;
  Backend& backend_;
  Tensor embedding_;  // [vocab, d]
  Tensor head_;       // [vocab, d]
  const float* final_norm_;
  std::vector<DecoderLayer> layers_;
};

}  // namespace unifluid
