#include "core/request.h"

#include <cmath>

#include "core/error.h"
#include "core/finite.h"
#include "core/model.h"

namespace unifluid {

namespace {

// Keeps every product of sizes far from overflow.
constexpr int64_t kMostRows = int64_t{1} << 24;
constexpr int64_t kLargestSide = int64_t{1} << 15;
// Of a rectified flow, whose steps no timesteps limit.
constexpr int64_t kMostFlowSteps = int64_t{1} << 20;

void require(bool fits, const std::string& what) {
  if (!fits) throw Error(error_code::kInvalidArgument, what);
}

void require_part(bool present, const std::string& what) {
  if (!present) throw Error(error_code::kUnsupportedTask, what);
}

void check_size(const char* what, size_t size, int64_t wanted) {
  require(size == static_cast<size_t>(wanted), std::string(what) + " has " + std::to_string(size) +
                                                   " values where " + std::to_string(wanted) +
                                                   " are expected");
}

void check_tokens(const std::vector<int32_t>& tokens, const Model& model) {
  require(static_cast<int64_t>(tokens.size()) <= kMostRows,
          "expected at most " + std::to_string(kMostRows) + " tokens but received " +
              std::to_string(tokens.size()));
  const int64_t vocab = model.config.text->vocab_size;
  // Of all of them no message is made but of the first that is wrong.
  for (int32_t id : tokens)
    if (id < 0 || id >= vocab)
      require(false, "token id " + std::to_string(id) + " is outside the vocabulary of " +
                         std::to_string(vocab));
}

void check_prefix(const Prefix& prefix, const Model& model) {
  require_part(model.decoder.has_value(), "this checkpoint has no decoder");
  require(!prefix.tokens.empty(), "the prefix has no tokens");
  check_tokens(prefix.tokens, model);
  if (!prefix.vision_pixels.empty()) {
    require_part(model.vision.has_value(), "this checkpoint has no vision tower");
    const int64_t side = model.config.vision->image_size;
    check_size("the image", prefix.vision_pixels.size(), 3 * side * side);
  }
  if (!prefix.source_pixels.empty()) {
    require_part(model.vae.has_value() && model.image.has_value(),
                 "this checkpoint has no autoencoder for the source image");
    const ImageConfig& image = *model.config.image;
    const int64_t side = image.grid * image.latent_patch * model.config.vae->factor();
    check_size("the source image", prefix.source_pixels.size(), 3 * side * side);
  }
}

struct Check {
  const Model& model;

  void operator()(const TextRequest& r) const {
    check_prefix(r.prefix, model);
    require(r.max_new_tokens > 0 && r.max_new_tokens <= kMostRows,
            "the number of new tokens must be between 1 and " + std::to_string(kMostRows));
    require(std::isfinite(r.temperature) && r.temperature >= 0,
            "the temperature must be finite and not negative");
  }

  void operator()(const ScoreRequest& r) const {
    check_prefix(r.prefix, model);
    check_tokens(r.suffix, model);
  }

  void operator()(const DrawRequest& r) const {
    check_prefix(r.prefix, model);
    require_part(model.image.has_value(), "this checkpoint has no diffusion head");
    require_part(!r.decode || model.vae.has_value(), "this checkpoint has no autoencoder");
    check_tokens(r.empty_tokens, model);
    const ImageConfig& image = *model.config.image;
    require(r.steps >= 1 && r.steps <= (image.flow ? kMostFlowSteps : image.timesteps),
            "sampling steps must be between 1 and " +
                std::to_string(image.flow ? kMostFlowSteps : image.timesteps));
    require(std::isfinite(r.guidance), "the guidance must be finite");
    require(std::isfinite(r.temperature) && r.temperature >= 0,
            "the temperature must be finite and not negative");
    require(r.x0_limit >= 0, "x0_limit must not be negative");
  }

  void operator()(const EncodeRequest& r) const {
    require_part(model.vae.has_value(), "this checkpoint has no autoencoder");
    const int64_t unit =
        model.config.vae->factor() * (model.config.image ? model.config.image->latent_patch : 1);
    require(r.width > 0 && r.height > 0 && r.width <= kLargestSide && r.height <= kLargestSide &&
                r.width % unit == 0 && r.height % unit == 0,
            "the sides of the image must be multiples of " + std::to_string(unit) +
                " and at most " + std::to_string(kLargestSide));
    check_size("the image", r.pixels.size(), 3 * r.width * r.height);
  }

  void operator()(const FeaturesRequest& r) const {
    require_part(model.vision.has_value(), "this checkpoint has no vision tower");
    const int64_t side = model.config.vision->image_size;
    check_size("the image", r.pixels.size(), 3 * side * side);
  }

  void operator()(const DecodeRequest& r) const {
    require_part(model.vae.has_value(), "this checkpoint has no autoencoder");
    require(
        r.columns > 0 && r.rows > 0 && r.columns <= kLargestSide && r.rows <= kLargestSide,
        "the sides of the grid of latents must be between 1 and " + std::to_string(kLargestSide));
    const int64_t channels =
        model.config.image ? model.config.image->token_channels : model.config.vae->latent_channels;
    check_size("the latents", r.latents.size(), r.rows * r.columns * channels);
    require(all_finite(r.latents.data(), r.latents.size()),
            "the latents hold a value that is not finite");
  }
};

}  // namespace

void validate(const Request& request, const Model& model) { std::visit(Check{model}, request); }

}  // namespace unifluid
