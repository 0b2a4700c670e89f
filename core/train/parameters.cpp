#include "core/train/parameters.h"

#include <algorithm>
#include <utility>

#include "core/convert.h"
#include "core/error.h"
#include "core/training_backend.h"

namespace unifluid {

namespace {

// Tensors begin at whole cache lines: so many elements.
constexpr int64_t kLine = 16;
int64_t room_of(const Parameter& p) { return (p.rows * p.cols + kLine - 1) / kLine * kLine; }

// The tensors of a configuration (spec section 3), in the order they are written, and which of them
// are to lie together in memory.
class Shapes {
 public:
  void matrix(const std::string& name, int64_t rows, int64_t cols) {
    add(name, rows, cols, 0, true);
  }
  void vector(const std::string& name, int64_t size) { add(name, 1, size, 0, false); }
  void linear(const std::string& name, int64_t out, int64_t in) {
    matrix(name + ".weight", out, in);
    vector(name + ".bias", out);
  }
  void norm(const std::string& name, int64_t size) {
    vector(name + ".weight", size);
    vector(name + ".bias", size);
  }
  void convolution(const std::string& name, int64_t out, int64_t in, int64_t kernel) {
    add(name + ".weight", out, in * kernel * kernel, kernel, true);
    vector(name + ".bias", out);
  }

  void text(const TextConfig& c) {
    const int64_t d = c.hidden_size, q = c.heads * c.head_dim, kv = c.kv_heads * c.head_dim;
    matrix("language_model.embed_tokens.weight", c.vocab_size, d);
    for (int64_t i = 0; i < c.layers; ++i) {
      const std::string at = "language_model.layers." + std::to_string(i) + ".";
      vector(at + "input_layernorm.weight", d);
      vector(at + "post_attention_layernorm.weight", d);
      if (c.gemma2) {
        vector(at + "pre_feedforward_layernorm.weight", d);
        vector(at + "post_feedforward_layernorm.weight", d);
      }
      matrix(at + "self_attn.q_proj.weight", q, d);
      matrix(at + "self_attn.k_proj.weight", kv, d);
      matrix(at + "self_attn.v_proj.weight", kv, d);
      matrix(at + "self_attn.o_proj.weight", d, q);
      matrix(at + "mlp.gate_proj.weight", c.intermediate_size, d);
      matrix(at + "mlp.up_proj.weight", c.intermediate_size, d);
      matrix(at + "mlp.down_proj.weight", d, c.intermediate_size);
      groups.push_back({at + "self_attn.q_proj.weight", at + "self_attn.k_proj.weight",
                        at + "self_attn.v_proj.weight"});
      groups.push_back({at + "mlp.gate_proj.weight", at + "mlp.up_proj.weight"});
    }
    vector("language_model.norm.weight", d);
    if (!c.tied) matrix("lm_head.weight", c.vocab_size, d);
  }

  void vision(const VisionConfig& c, int64_t width) {
    const std::string root = "vision_tower.";
    const int64_t h = c.hidden_size;
    // A convolution whose patches do not overlap: its rows are used as they are.
    linear(root + "embeddings.patch_embedding", h, 3 * c.patch_size * c.patch_size);
    matrix(root + "embeddings.position_embedding.weight", c.features(), h);
    for (int64_t i = 0; i < c.layers; ++i) {
      const std::string at = root + "encoder.layers." + std::to_string(i) + ".";
      norm(at + "layer_norm1", h);
      norm(at + "layer_norm2", h);
      for (const char* name : {"q_proj", "k_proj", "v_proj", "out_proj"})
        linear(at + "self_attn." + name, h, h);
      for (const char* kind : {".weight", ".bias"})
        groups.push_back({at + "self_attn.q_proj" + kind, at + "self_attn.k_proj" + kind,
                          at + "self_attn.v_proj" + kind});
      linear(at + "mlp.fc1", c.intermediate_size, h);
      linear(at + "mlp.fc2", h, c.intermediate_size);
    }
    norm(root + "post_layernorm", h);
    linear("multi_modal_projector.linear", width, h);
  }

  void image(const ImageConfig& c, int64_t width) {
    const int64_t w = c.head_width;
    linear("image_in", width, c.token_channels);
    matrix("image_position.weight", c.cells(), width);
    matrix("image_next_position.weight", c.cells(), width);
    vector("image_begin", width);
    const std::string root = "diffusion_head.";
    linear(root + "input_proj", w, c.token_channels);
    linear(root + "cond_embed", w, width);
    linear(root + "time_embed.mlp.0", w, 256);
    linear(root + "time_embed.mlp.2", w, w);
    for (int64_t i = 0; i < c.head_depth; ++i) {
      const std::string at = root + "res_blocks." + std::to_string(i) + ".";
      norm(at + "in_ln", w);
      linear(at + "mlp.0", w, w);
      linear(at + "mlp.2", w, w);
      linear(at + "adaLN_modulation.1", 3 * w, w);
    }
    linear(root + "final_layer.adaLN_modulation.1", 2 * w, w);
    for (const char* kind : {".weight", ".bias"}) {
      std::vector<std::string> modulations;
      for (int64_t i = 0; i < c.head_depth; ++i)
        modulations.push_back(root + "res_blocks." + std::to_string(i) + ".adaLN_modulation.1" +
                              kind);
      modulations.push_back(root + "final_layer.adaLN_modulation.1" + kind);
      groups.push_back(std::move(modulations));
    }
    linear(root + "final_layer.linear", (c.flow ? 1 : 2) * c.token_channels, w);
  }

  void autoencoder(const VaeConfig& c) {
    const std::vector<int64_t>& channels = c.block_out_channels;
    const std::vector<int64_t> reversed(channels.rbegin(), channels.rend());
    const int64_t z = c.latent_channels, deepest = channels.back();
    half("vae.encoder.", "down_blocks", "downsamplers", channels, c.down_attention,
         c.layers_per_block, c.in_channels, deepest, 2 * z, c.mid_block_attention);
    half("vae.decoder.", "up_blocks", "upsamplers", reversed, c.up_attention,
         c.layers_per_block + 1, z, deepest, c.out_channels, c.mid_block_attention);
    if (c.quant_conv) convolution("vae.quant_conv", 2 * z, 2 * z, 1);
    if (c.post_quant_conv) convolution("vae.post_quant_conv", z, z, 1);
  }

  std::vector<Parameter> list;
  std::vector<std::vector<std::string>> groups;

 private:
  void add(const std::string& name, int64_t rows, int64_t cols, int64_t kernel, bool matrix) {
    Parameter p;
    p.name = name;
    p.rows = rows;
    p.cols = cols;
    p.kernel = kernel;
    p.matrix = matrix;
    list.push_back(std::move(p));
  }
  void resnet(const std::string& at, int64_t in, int64_t out) {
    norm(at + ".norm1", in);
    convolution(at + ".conv1", out, in, 3);
    norm(at + ".norm2", out);
    convolution(at + ".conv2", out, out, 3);
    if (in != out) convolution(at + ".conv_shortcut", out, in, 1);
  }
  void attention(const std::string& at, int64_t channels) {
    norm(at + "group_norm", channels);
    for (const char* name : {"to_q", "to_k", "to_v", "to_out.0"})
      linear(at + name, channels, channels);
  }
  void half(const std::string& root, const std::string& blocks, const std::string& resampler,
            const std::vector<int64_t>& channels, const std::vector<bool>& attends, int64_t resnets,
            int64_t in, int64_t deepest, int64_t out, bool mid_attention) {
    convolution(root + "conv_in", channels.front(), in, 3);
    int64_t current = channels.front();
    for (size_t i = 0; i < channels.size(); ++i) {
      const std::string at = root + blocks + "." + std::to_string(i) + ".";
      for (int64_t j = 0; j < resnets; ++j) {
        resnet(at + "resnets." + std::to_string(j), current, channels[i]);
        current = channels[i];
        if (attends[i]) attention(at + "attentions." + std::to_string(j) + ".", current);
      }
      if (i + 1 < channels.size()) convolution(at + resampler + ".0.conv", current, current, 3);
    }
    resnet(root + "mid_block.resnets.0", deepest, deepest);
    if (mid_attention) attention(root + "mid_block.attentions.0.", deepest);
    resnet(root + "mid_block.resnets.1", deepest, deepest);
    norm(root + "conv_norm_out", current);
    convolution(root + "conv_out", out, current, 3);
  }
};

// Between [out, in, taps] and [out, taps, in]; `to_here`: the first to the second.
std::vector<float> permuted(const std::vector<float>& from, const Parameter& p, bool to_here) {
  if (p.kernel <= 1) return from;
  const int64_t taps = p.kernel * p.kernel, in = p.cols / taps;
  std::vector<float> to(from.size());
  transpose_inner(from.data(), p.rows, to_here ? in : taps, to_here ? taps : in, sizeof(float),
                  to.data());
  return to;
}

}  // namespace

Parameters::Parameters(const ModelConfig& config, bool autoencoder, const Weights& weights,
                       const std::vector<std::string>& frozen, bool average, bool training,
                       Backend& backend)
    : backend_(backend) {
  Shapes shapes;
  if (autoencoder) {
    shapes.autoencoder(*config.vae);
  } else {
    shapes.text(*config.text);
    if (config.vision) shapes.vision(*config.vision, config.text->hidden_size);
    if (config.image) shapes.image(*config.image, config.text->hidden_size);
  }
  all_ = std::move(shapes.list);
  for (size_t i = 0; i < all_.size(); ++i) index_.emplace(all_[i].name, i);
  for (const std::string& name : frozen) {
    const auto found = index_.find(name);
    if (found == index_.end())
      throw Error(error_code::kInvalidArgument, "there is no tensor " + name + " to freeze");
    all_[found->second].trainable = false;
  }
  if (!training)
    for (Parameter& p : all_) p.trainable = false;
  else if (std::none_of(all_.begin(), all_.end(), [](const Parameter& p) { return p.trainable; }))
    throw Error(error_code::kInvalidArgument, "every tensor is frozen: nothing is left to train");

  place(shapes.groups, true);
  trained_size_ = size_;
  place(shapes.groups, false);

  const auto make = [&](Block& block, int64_t size) {
    block = Block(backend, static_cast<size_t>(size) * sizeof(float));
    backend.training()->fill(Tensor(block.data(), DType::f32, 1, size), 0);
  };
  make(values_, size_);
  if (training) {
    for (Block* block : {&gradients_, &first_, &second_}) make(*block, trained_size_);
    if (average) make(average_, trained_size_);
  }
  for (Parameter& p : all_) {
    p.value = tensor(p, ParameterState::weights);
    if (p.trainable) p.gradient = tensor(p, ParameterState::gradient);
    const StoredTensor stored = weights.stored(p.name, p.rows, p.cols);
    std::vector<float> values(static_cast<size_t>(p.rows * p.cols));
    convert_to_float(stored.data, stored.type, values.size(), values.data());
    write(p.name, ParameterState::weights, values);
    if (p.trainable && average) write(p.name, ParameterState::average, values);
  }
  for (const std::vector<std::string>& group : shapes.groups) join(group);
  for (Parameter& p : all_)
    if (p.trainable) trained_.push_back(&p);
  std::sort(trained_.begin(), trained_.end(),
            [](const Parameter* a, const Parameter* b) { return a->offset < b->offset; });
}

void Parameters::place(const std::vector<std::vector<std::string>>& groups, bool trained) {
  std::unordered_map<std::string, const std::vector<std::string>*> group_of;
  for (const std::vector<std::string>& group : groups)
    for (const std::string& name : group) group_of.emplace(name, &group);
  std::vector<bool> placed(all_.size());
  const auto put = [&](size_t i) {
    if (placed[i] || all_[i].trainable != trained) return;
    placed[i] = true;
    all_[i].offset = size_;
    size_ += room_of(all_[i]);
  };
  for (size_t i = 0; i < all_.size(); ++i) {
    const auto group = group_of.find(all_[i].name);
    if (group == group_of.end()) {
      put(i);
    } else {
      for (const std::string& name : *group->second) put(index_.at(name));
    }
  }
}

void Parameters::join(const std::vector<std::string>& group) {
  Parameter whole = at(group.front());
  for (size_t i = 1; i < group.size(); ++i) {
    const Parameter& p = at(group[i]);
    if (p.trainable != whole.trainable || p.offset != whole.offset + whole.rows * whole.cols)
      return;
    (p.matrix ? whole.rows : whole.cols) += p.matrix ? p.rows : p.cols;
  }
  whole.value = tensor(whole, ParameterState::weights);
  if (whole.trainable) whole.gradient = tensor(whole, ParameterState::gradient);
  joined_.emplace(group.front(), std::move(whole));
}

const Parameter* Parameters::joined(const std::string& first) const {
  const auto found = joined_.find(first);
  return found == joined_.end() ? nullptr : &found->second;
}

const Parameter& Parameters::at(const std::string& name) const {
  const auto found = index_.find(name);
  if (found == index_.end())
    throw Error(error_code::kInvalidArgument, "the model has no tensor " + name);
  return all_[found->second];
}

float* Parameters::piece(ParameterState what) const {
  switch (what) {
    case ParameterState::weights:
      return static_cast<float*>(values_.data());
    case ParameterState::average:
      return static_cast<float*>(average_.data());
    case ParameterState::first_moment:
      return static_cast<float*>(first_.data());
    case ParameterState::second_moment:
      return static_cast<float*>(second_.data());
    case ParameterState::updates:  // there are some where there are gradients
    case ParameterState::gradient:
      break;
  }
  return static_cast<float*>(gradients_.data());
}

Tensor Parameters::tensor(const Parameter& p, ParameterState what) const {
  return Tensor(piece(what) + p.offset, DType::f32, p.rows, p.cols);
}

void Parameters::zero_gradients() {
  backend_.training()->fill(Tensor(gradients_.data(), DType::f32, 1, trained_size_), 0);
  for (Parameter* p : trained_) p->reached = false;
}

void Parameters::reach(const Parameter& parameter) {
  const int64_t end = parameter.offset + parameter.rows * parameter.cols;
  auto p = std::lower_bound(trained_.begin(), trained_.end(), parameter.offset,
                            [](const Parameter* t, int64_t offset) { return t->offset < offset; });
  for (; p != trained_.end() && (*p)->offset < end; ++p) (*p)->reached = true;
}

std::vector<ParameterRun> Parameters::count_updates() {
  std::vector<ParameterRun> runs;
  for (Parameter* p : trained_) {
    if (!p->reached) continue;
    ++p->updates;
    const bool goes_on = !runs.empty() && runs.back().matrix == p->matrix &&
                         runs.back().updates == p->updates &&
                         runs.back().offset + runs.back().count == p->offset;
    if (!goes_on) runs.push_back({p->offset, 0, p->matrix, p->updates});
    runs.back().count += room_of(*p);
  }
  return runs;
}

void Parameters::expect(ParameterState what) const {
  if (has(what)) return;
  throw Error(error_code::kInvalidArgument, what == ParameterState::average
                                                ? "this trainer keeps no moving average"
                                                : "this trainer computes losses only");
}

std::vector<float> Parameters::read(const std::string& name, ParameterState what) const {
  const Parameter& p = at(name);
  expect(what);
  if (what == ParameterState::updates) return {static_cast<float>(p.updates)};
  std::vector<float> values(static_cast<size_t>(p.rows * p.cols));
  if (!p.trainable) {
    if (what != ParameterState::weights && what != ParameterState::average) return values;
    what = ParameterState::weights;
  }
  backend_.read(tensor(p, what), values.data());
  return permuted(values, p, false);
}

void Parameters::write(const std::string& name, ParameterState what,
                       const std::vector<float>& values) {
  const Parameter& p = at(name);
  expect(what);
  if (!p.trainable && what != ParameterState::weights)
    throw Error(error_code::kInvalidArgument, name + " is frozen: it has weights alone");
  const bool one = what == ParameterState::updates;
  const int64_t wanted = one ? 1 : p.rows * p.cols;
  if (values.size() != static_cast<size_t>(wanted))
    throw Error(error_code::kInvalidArgument, "expected " + std::to_string(wanted) +
                                                  " values for " + name + " but received " +
                                                  std::to_string(values.size()));
  if (one) {
    if (!(values.front() >= 0 && values.front() < 0x1p62f))
      throw Error(error_code::kInvalidArgument, "expected a count of updates for " + name);
    all_[index_.at(name)].updates = static_cast<int64_t>(values.front());
    return;
  }
  backend_.write(permuted(values, p, true).data(), tensor(p, what));
}

void Parameters::swap_average() {
  averaged_ = !averaged_;
  const auto swap = [&](Parameter& p) {
    if (p.trainable)
      p.value = tensor(p, averaged_ ? ParameterState::average : ParameterState::weights);
  };
  for (Parameter& p : all_) swap(p);
  for (auto& [name, p] : joined_) swap(p);
}

}  // namespace unifluid
