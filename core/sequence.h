// A sequence: one unit of work in the decoder. A prefix, a suffix being produced, a cache and a
// state. Text, scores and images are three kinds; guidance gives an image sequence a second stream.
#pragma once

#include <algorithm>
#include <cstdint>
#include <variant>
#include <vector>

#include "core/memory.h"
#include "core/model.h"
#include "core/prefill.h"
#include "core/request.h"

namespace unifluid {

// Rows of one decoder sequence and their cache, one contiguous piece reserved at admission.
struct Stream {
  Block cache;
  int64_t capacity = 0;  // rows
  Block prefix_memory;
  Tensor prefix;           // [P, d] input rows, until they have been run
  int64_t prefix_end = 0;  // rows that see each other in both directions
  int64_t length = 0;      // rows run so far

  bool prefilling() const { return prefix && length < prefix.rows; }
  PendingRows pending() const {
    return {prefix.rows - length, std::max<int64_t>(0, prefix_end - length)};
  }
};

struct TextState {
  TextRequest request;
  std::vector<int32_t> tokens;      // that have been read
  int64_t sampled = 0;              // tokens, read or still on their way
  const int32_t* latest = nullptr;  // where the latest one lies, in the backend's memory

  bool complete() const { return sampled == request.max_new_tokens; }
};

// Rows of logits made at a time when a whole sequence is scored: bounds memory at large
// vocabularies.
inline constexpr int64_t kScoreRows = 64;

struct ScoreState {
  int64_t first_row = 0;  // the first row whose logits are wanted
  HostShare share;
  std::vector<float> logits;  // reserved for all wanted rows
};

struct DrawState {
  DrawRequest request;
  std::vector<int32_t> order;  // cells, [N]
  int64_t drawn = 0;
  Block latents;  // float32 [N, C], by cell

  // The guidance scale of token k (spec section 6).
  float guidance_at(int64_t k) const;
};

struct Sequence {
  uint64_t id;
  std::vector<Stream> streams;  // one; two under guidance: the prompt's, then the empty prompt's
  std::variant<TextState, ScoreState, DrawState> state;
  int64_t rank = 0;  // of its request (core/request_queue.h): who is prefilled first

  bool prefilling() const { return streams.front().prefilling() || streams.back().prefilling(); }
  size_t bytes() const;
};

// Bytes of the backend's memory that make_sequence will take for a request, logits included where
// that is the host's; 0 for those that are no sequences.
size_t sequence_bytes(const Request& request, const Model& model);

// The part of sequence_bytes() that holds image rows; freed before the first step.
size_t image_rows_bytes(const Request& request, const Model& model);

// The prefixes of a request, one a stream; none for those that are no sequences.
std::vector<PendingRows> pending_rows(const Request& request, const Model& model);

// What a sequence adds to the sizes of steps, its rows left out (StepSize::rows). Nothing for a
// request that is no sequence.
void add_sequence(const Request& request, const Model& model, StepSize& size);
void add_sequence(const Sequence& sequence, const Model& model, StepSize& size);

// Throws INSUFFICIENT_MEMORY where the host has no room for the logits that a request asks for,
// which no wait for other sequences is sure to make.
void expect_host_memory(const Request& request, const Model& model);

// Reserves the memory of a sequence and computes the rows of its prefix. Throws INSUFFICIENT_MEMORY
// before anything runs, and NUMERICAL_ERROR where the latents of its source image are not finite;
// the request is as it was then.
Sequence make_sequence(uint64_t id, TextRequest&& request, Model& model, Workspace& workspace);
Sequence make_sequence(uint64_t id, ScoreRequest&& request, Model& model, Workspace& workspace);
Sequence make_sequence(uint64_t id, DrawRequest&& request, Model& model, Workspace& workspace);

}  // namespace unifluid
