// What people ask of the engine, and what it tells them: the C++ side of the requests and events of
// lib/native.ts, which says what each field means.
#pragma once

#include <cstdint>
#include <string>
#include <variant>
#include <vector>

namespace unifluid {

struct Prefix {
  std::vector<float> vision_pixels;  // [3, S, S], or empty
  std::vector<float> source_pixels;  // [3, H, W], or empty
  std::vector<int32_t> tokens;
  // The tokens are those of a plain text, which has no prefix (spec section 5): causal, and each
  // row predicts the next token.
  bool plain_text = false;
};

struct TextRequest {
  Prefix prefix;
  int64_t max_new_tokens;
  float temperature;
  uint64_t seed;
  std::vector<int32_t> stop_tokens;
  bool stream;
};

struct ScoreRequest {
  Prefix prefix;
  std::vector<int32_t> suffix;
};

struct DrawRequest {
  Prefix prefix;
  std::vector<int32_t> empty_tokens;  // empty: no guidance
  int64_t steps;
  double guidance;
  bool linear_guidance;
  float temperature;
  float x0_limit;
  bool random_order;
  uint64_t seed;
  bool stream;
  bool decode;
};

struct EncodeRequest {
  std::vector<float> pixels;  // [3, height, width]
  int64_t width, height;
};

// An image to the last hidden states of the vision tower.
struct FeaturesRequest {
  std::vector<float> pixels;  // [3, S, S]
};

struct DecodeRequest {
  std::vector<float> latents;  // [rows * columns, channels]
  int64_t columns, rows;
};

using Request = std::variant<TextRequest, ScoreRequest, DrawRequest, EncodeRequest, FeaturesRequest,
                             DecodeRequest>;

// Whether the decoder runs for it; the others are of images alone.
inline bool takes_sequence(const Request& request) {
  return std::visit([](const auto& r) { return requires { r.prefix; }; }, request);
}

struct TokenEvent {
  int32_t token;
};
struct CellEvent {
  int64_t position;
  int32_t cell;
  std::vector<float> values;
};
// Empty fields are left out of the event that JavaScript sees.
struct DoneEvent {
  bool text = false;
  std::vector<int32_t> tokens;
  bool stopped = false;
  std::vector<float> logits;
  std::vector<float> latents;
  std::vector<float> features;
  std::vector<uint8_t> pixels;
  int64_t width = 0, height = 0;
};
struct ErrorEvent {
  std::string code, message;
};

struct Event {
  uint64_t id;
  std::variant<TokenEvent, CellEvent, DoneEvent, ErrorEvent> what;
};

struct Model;

// Throws INVALID_ARGUMENT or UNSUPPORTED_TASK where the model cannot do what is asked. lib/ has
// told people in their words what is wrong; this guards the native side.
void validate(const Request& request, const Model& model);

}  // namespace unifluid
