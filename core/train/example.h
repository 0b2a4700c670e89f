// What a training step is given: sequences for the unified model, pictures for the autoencoder.
#pragma once

#include <cstdint>
#include <string>
#include <variant>
#include <vector>

namespace unifluid {

// One sequence (spec section 5): image features, source latents, tokens, then the suffix whose loss
// is taken, text or an image.
struct TrainingSequence {
  std::string task;                   // losses are told by this name as well
  std::vector<float> vision_pixels;   // [3, S, S], or empty
  std::vector<float> source_latents;  // [cells, token channels], or empty
  std::vector<int32_t> tokens;        // with <bos>
  // One of these two.
  std::vector<int32_t> target_tokens;  // with <eos>
  std::vector<float> target_latents;   // [cells, token channels]
  // Draws of another program; empty: drawn from the seed, the step and the sequence's place in it.
  std::vector<int32_t> order;  // [cells]
  std::vector<float>
      timesteps;             // [cells, multiplier]: those of the token at each cell of the order
  std::vector<float> noise;  // [cells, multiplier, token channels]
};

struct VaeExample {
  std::vector<float> pixels;  // [3, S, S] in [-1, 1]
  std::vector<float> noise;   // [latent channels, s, s], or empty as above
};

using TrainingBatches =
    std::variant<std::vector<std::vector<TrainingSequence>>, std::vector<std::vector<VaeExample>>>;

// Draws of a step are named by these (spec section 7).
struct DrawnAt {
  uint64_t seed;
  uint32_t step;
  // Places in the step: of the batch's first example, and from one to the next. Several batches are
  // dealt the step's examples in turn, so that these draw the same however many batches there are.
  uint32_t first, stride;

  uint32_t place(size_t example) const { return first + stride * static_cast<uint32_t>(example); }
};

}  // namespace unifluid
