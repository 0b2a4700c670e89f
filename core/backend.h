// The lower edge of core/: every operation the model needs, with its shapes and meaning.
//
// A backend runs on one device. Tensors given to it lie in its memory, in its activation type
// unless an argument says otherwise; vectors (`const float*`) are float32 in its memory, made by
// `vector`. Host pointers are named so. Operations are issued from one thread at a time; they may
// run later, and `synchronize` or `read` waits for them. All matrices are row-major.
//
// Invariance: every operation computes each output row from that row's own inputs in an order that
// does not depend on how many rows, spans or threads the call has. One row alone gives the same
// bits as that row among a thousand. "One seed, one image" (spec section 7) rests on this.
//
// With finite weights, every row is finite. Operations do not check this, but they propagate NaN: a
// row computed from a NaN contains a NaN, and soft caps and clamps turn infinities into NaN.
// Checking the final result is enough.
#pragma once

#include <cstddef>
#include <cstdint>

#include "core/tensor.h"

namespace unifluid {

enum class Activation : uint8_t { none, silu, gelu_tanh, gelu_erf };

// out = residual + activation(x weight^T + bias)
struct LinearArgs {
  Tensor x;                     // [m, k]
  Tensor weight;                // [n, k], f32, f16 or bf16
  const float* bias = nullptr;  // [n], or null
  Activation activation = Activation::none;
  Tensor residual;  // [m, n], or empty; may be `out`
  Tensor out;       // [m, n]
};

// Independent products, run together where that is faster; each gives the same bits as a separate
// `linear`.
struct GroupedLinearArgs {
  const LinearArgs* products;  // host, [count]
  int64_t count;
};

// out = activation(x gate^T) * (x up^T): the first half of a GeGLU
struct GatedLinearArgs {
  Tensor x;         // [m, k]
  Tensor gate, up;  // [n, k]
  Activation activation = Activation::gelu_tanh;
  Tensor out;  // [m, n]
};

// out = residual + x / sqrt(mean(x^2) + eps) * (1 + weight), in float32 (Gemma's)
// If `next_weight` is set, `next_out` also receives the RMS norm of the stored `out`, scaled by
// `next_weight`. This fuses the two norms between decoder blocks.
struct RmsNormArgs {
  Tensor x;             // [m, n]
  const float* weight;  // [n]
  float eps;
  Tensor residual;                     // [m, n], or empty; may be `out`
  Tensor out;                          // [m, n]; may be `x`
  const float* next_weight = nullptr;  // [n], or null
  Tensor next_out = {};                // [m, n]; may be `out`, which is then lost
};

// out = (x - mean) / sqrt(variance + eps) * weight + bias
struct LayerNormArgs {
  Tensor x;             // [m, n]
  const float* weight;  // [n], or null for ones
  const float* bias;    // [n], or null for zeros
  float eps;
  Tensor out;  // [m, n]; may be `x`
};

// Where one layer of one sequence keeps its keys (after rotary embedding) and values, each
// [kv_heads][capacity][head_dim] in the backend's cache type.
struct KvCache {
  void* keys = nullptr;
  void* values = nullptr;
  int64_t capacity = 0;
};

// Consecutive rows of one sequence within a ragged batch. At most one span of a call has a cache's
// memory: rows that another span appends need not be there yet.
struct AttentionSpan {
  int64_t first_row;  // in q, k, v and out
  int64_t rows;       // new rows
  int64_t index;      // index of the first new row in its sequence: so many rows are cached already
  int64_t
      prefix_end;  // rows with an index below it see each other in both directions; 0: all causal
  KvCache cache;   // empty: the span is its own sequence (index 0), nothing is kept
};

// Attention over ragged spans: rotary embedding of q and k, append of k and v to the caches, and
// softmax(cap(q k^T scale)) v per row, without the score matrix in memory.
// Row i of a sequence sees row j if j <= i, or both are below prefix_end; with window w > 0, row i
// sees only j > i - w unless both are below prefix_end. A span that begins inside a bidirectional
// prefix must contain the rest of it.
struct AttentionArgs {
  Tensor q;     // [m, heads * head_dim]
  Tensor k, v;  // [m, kv_heads * head_dim]
  int64_t heads, kv_heads, head_dim;
  float scale;
  float soft_cap = 0;          // 0: none; else cap * tanh(s / cap)
  int64_t window = 0;          // 0: none
  float rope_theta = 0;        // 0: no rotary embedding; else on the two halves of each head
  int64_t first_position;      // the rotary position of a sequence's row 0
  const AttentionSpan* spans;  // host, [span_count]
  int64_t span_count;
  bool bf16 = false;  // float32 operands of products may be rounded to bfloat16, as in GemmArgs
  Tensor out;         // [m, heads * head_dim]
};

// A layer of a decoder: its norms and matrices. Without the last two norms it is Gemma 1's, whose
// branches are added as they are.
struct DecoderLayer {
  const float *input_norm, *post_attention_norm, *pre_mlp_norm, *post_mlp_norm;
  Tensor q, k, v, o;
  Tensor gate, up, down;
  int64_t window;  // 0: none
};

// All layers of a decoder on the new rows of some sequences, as core/decoder.cpp has them operation
// by operation.
struct DecoderStepArgs {
  Tensor x;                    // [m, d]; its contents are lost
  const DecoderLayer* layers;  // host, [layer_count]
  int64_t layer_count;
  const float* final_norm;  // [d]
  float eps;
  Activation activation;  // of the gates
  int64_t heads, kv_heads, head_dim;
  float scale, soft_cap, rope_theta;  // as in AttentionArgs
  int64_t first_position;
  // Host, [span_count]. `cache` is that of the first layer; each layer's keys, then its values, lie
  // behind those of the layer before.
  const AttentionSpan* spans;
  int64_t span_count;
  // What lies between the operations: [m, d], [m, heads * head_dim], twice
  // [m, kv_heads * head_dim], [m, heads * head_dim], [m, mlp]; the last, [m, d], only for Gemma 2.
  Tensor normed, q, k, v, mixed, hidden, branch;
  Tensor out;  // [m, d]: the final norm's outputs
};

// out[i] = table[ids[i]] * scale
struct EmbedTokensArgs {
  const int32_t* ids;  // host, [m]; each within the table
  Tensor table;        // [vocab, d], f32, f16 or bf16
  float scale;
  Tensor out;  // [m, d]
  // Where `ids` is null: host, [m], of each row where its id lies in the backend's memory, as
  // `sample_text` wrote it. A row whose id is -1 comes out as that of id 0.
  const int32_t* const* sampled = nullptr;
};

// One input row made of image tokens (spec section 5):
//   (token ? image_in(token) + image_position[cell] : image_begin) + (next >= 0 ?
//   image_next_position[next] : 0)
struct ImageRow {
  const float* token = nullptr;  // [C] float32 in the backend's memory, or null
  int32_t cell = -1;             // where the token lies; -1 with no token
  int32_t next = -1;             // where the next token will lie; -1: none
};
struct ImageEmbedArgs {
  const ImageRow* rows;  // host, [out.rows]
  Tensor weight;         // [d, C]
  const float* bias;     // [d]
  Tensor position;       // [N, d], f32, f16 or bf16
  Tensor next_position;  // [N, d], the same
  const float* begin;    // [d]
  Tensor out;            // [m, d]
};

// out[i] += table[i mod table.rows]
struct AddRowsArgs {
  Tensor table;  // f32, f16 or bf16
  Tensor out;
};

// x = cap * tanh(x / cap), in place
struct SoftCapArgs {
  Tensor x;
  float cap;
};

// One token id for each row of logits: the largest (the first of equals) where temperature is 0,
// else the first id at which the running float64 sum of softmax(logits / temperature) exceeds u. -1
// where a row holds logits that are not finite.
struct SampleTextArgs {
  Tensor logits;             // [m, vocab]
  const float* temperature;  // host, [m]
  const double* uniform;     // host, [m]; in (0, 1)
  int32_t* ids;              // in the backend's memory, [m]
};

// The diffusion head (spec section 6): MAR's SimpleMLPAdaLN.
struct DiffusionHeadWeights {
  int64_t channels, condition, width, depth;
  bool flow;                     // objective "flow": outputs are [C] wide, else [2C]
  Tensor input_proj;             // [W, C]
  const float* input_proj_bias;  // [W]
  Tensor cond_embed;             // [W, d]
  const float* cond_embed_bias;  // [W]
  Tensor time_mlp0, time_mlp2;   // [W, 256], [W, W]
  const float *time_mlp0_bias, *time_mlp2_bias;  // [W]
  struct Block {
    const float *norm_weight, *norm_bias;  // [W]
    Tensor mlp0, mlp2;                     // [W, W]
    const float *mlp0_bias, *mlp2_bias;    // [W]
    Tensor modulation;                     // [3W, W]: shift, scale, gate
    const float* modulation_bias;          // [3W]
  };
  const Block* blocks;                 // host, [depth]
  Tensor final_modulation;             // [2W, W]: shift, scale
  const float* final_modulation_bias;  // [2W]
  Tensor final_linear;                 // [2C or C, W]
  const float* final_linear_bias;
};

// One sampling step; for "flow" only `time` and `tau` count. Float64 tables rounded once.
struct DiffusionStep {
  float time;                 // what the network sees, 0..timesteps
  float recip, recipm1;       // x0 = recip * x - recipm1 * eps
  float coef_x0, coef_x;      // posterior mean = coef_x0 * x0 + coef_x * x
  float log_beta, log_tilde;  // the two ends of the log variance
  float tau;                  // flow: share of noise, 1 at the first step
  bool noise;                 // ddpm: noise is added after this step (all but the last)
};

struct DiffusionToken {
  int64_t z;        // row of `z` with the prompt's condition
  int64_t z_empty;  // row of `z` with the empty prompt's; -1: no guidance
  float guidance;   // g of this token
  float temperature;
  float x0_limit;  // infinity: none
  uint64_t seed;
  int32_t cell;
  float* out;  // [C] float32 in the backend's memory
};

// All sampling steps for many tokens. Starting and step noise are Philox draws named by
// (seed, cell, step, channel), spec section 7.
struct DiffusionSampleArgs {
  const DiffusionHeadWeights* head;  // host
  Tensor z;                          // [rows, d], the decoder's final-norm outputs
  const DiffusionStep* steps;        // host, [step_count], first step first
  int64_t step_count;
  const DiffusionToken* tokens;  // host, [token_count]
  int64_t token_count;
};

// The head's network alone, for tests and inspection: out = f(x, time, z).
struct DiffusionHeadArgs {
  const DiffusionHeadWeights* head;  // host
  Tensor x;                          // [m, C]
  const float* time;                 // host, [m]
  Tensor z;                          // [m, d]
  Tensor out;                        // [m, 2C or C]
};

// Which pixels of an image a convolution sees. The image is first enlarged `upsample` times by
// repeating pixels (1: not), then padded with zeros.
struct ConvolutionGeometry {
  int64_t height, width;          // before `upsample`
  int64_t upsample = 1;           // 1 or 2
  int64_t kernel, stride;         // square
  int64_t pad_before, pad_after;  // zeros above and left, below and right

  int64_t out_height() const { return outputs(height); }
  int64_t out_width() const { return outputs(width); }

 private:
  int64_t outputs(int64_t side) const {
    return (side * upsample + pad_before + pad_after - kernel) / stride + 1;
  }
};

// Convolution on channels-last images. out = residual + conv(x) + bias.
struct ConvolutionArgs {
  Tensor x;  // [height * width, in]
  ConvolutionGeometry geometry;
  Tensor weight;      // as `convolution_weight` made it
  const float* bias;  // [out]
  Tensor residual;    // as out, or empty; may be `out`
  Tensor out;         // [out_height * out_width, out]
};

// Group norm over a channels-last image, then SiLU if asked. Groups are runs of channels.
struct GroupNormArgs {
  Tensor x;  // [pixels, channels]
  int64_t groups;
  const float *weight, *bias;  // [channels]
  float eps;
  bool silu;
  Tensor out;  // as x; may be `x`
};

// What lies in a checkpoint file, in host memory (mapped).
struct StoredTensor {
  const void* data;
  DType type;
  int64_t rows, cols;  // a vector is [1, n]; a convolution [out, in * kh * kw]
};

// Sizes of the steps of the engine that are to come, at most: of the decoder, and of what becomes
// of its rows.
struct StepSize {
  int64_t rows = 0;      // of the decoder
  int64_t streams = 0;   // spans of attention
  int64_t capacity = 0;  // rows of the longest cache
  int64_t heads = 1, kv_heads = 1, head_dim = 0;
  bool rotary = false;
  int64_t texts = 0, vocab = 0;                // rows of logits that a token is sampled from
  int64_t scored = 0;                          // rows of logits that are handed out, at a time
  const DiffusionHeadWeights* head = nullptr;  // host; null: nothing is drawn
  int64_t tokens = 0, token_rows = 0;          // image tokens, and rows of z behind them
  int64_t sampling_steps = 0;                  // of any of them
};

// Lists of operations that a backend ran since it was opened: replayed as a graph, and launched one
// operation after another; and how often some of a list ran beside others of it. One that knows no
// lists counts none.
struct LaunchCounts {
  int64_t graphs = 0, plain = 0, forks = 0;
};

class TrainingBackend;  // core/training_backend.h

class Backend {
 public:
  virtual ~Backend() = default;

  // What training needs besides; null where this backend cannot train.
  virtual TrainingBackend* training() { return nullptr; }

  // One line for people: "cpu avx2, 2 threads".
  virtual const char* description() const = 0;
  virtual DType activation_type() const = 0;
  virtual DType cache_type() const = 0;

  // ---- memory: uninitialized, aligned to 64 bytes. Throws INSUFFICIENT_MEMORY. ----
  // A block may be released while earlier operations still use it; operations of its next owner are
  // ordered after them.
  virtual void* allocate(size_t bytes) = 0;
  // `bytes`: those asked for, or what they take.
  virtual void release(void* memory, size_t bytes) noexcept = 0;
  // Bytes that a block of `bytes` takes.
  virtual size_t allocated_size(size_t bytes) const { return bytes; }
  // Bytes that can still be allocated, as far as the system tells.
  virtual size_t available() const = 0;
  // Bytes allocated now, converted weights and scratch included.
  virtual size_t allocated() const = 0;

  // ---- host memory for results that grow in the caller (logits) ----
  // A library's backend leaves these to the side that calls it (cuda/loader.cpp).
  // Whether allocate() takes from the host's memory too, so that held bytes count in allocated()
  // and available(), and `maxMemory` bounds them.
  virtual bool in_host_memory() const { return false; }
  // Bytes of it that can still be held, as far as the system tells.
  virtual size_t host_available() const { return available(); }
  // Counts bytes as taken until they are released. Nothing is allocated.
  virtual void hold_host(size_t bytes) noexcept { (void)bytes; }
  virtual void release_host(size_t bytes) noexcept { (void)bytes; }

  // ---- scratch: what operations take beside their tensors, one after another in the same place.
  // Some of the memory above, for a backend that cannot do without it in the middle of a step. ----
  // Bytes that any operation takes in steps of up to these sizes; grows with each of them.
  virtual size_t scratch_needed(const StepSize&) const { return 0; }
  // Bytes there are.
  virtual size_t scratch() const { return 0; }
  // Makes it `bytes`, between steps; it also grows by itself where an operation finds too little.
  // Throws INSUFFICIENT_MEMORY where it cannot grow, and stays what it was.
  virtual void resize_scratch(size_t) {}

  // ---- weights ----
  // A matrix in the type it is stored in. The CPU returns the mapped memory itself.
  virtual Tensor matrix(const StoredTensor& stored) = 0;
  // A vector as float32.
  virtual const float* vector(const StoredTensor& stored) = 0;
  // stored [out, in * kernel * kernel] in the order in, row, column -> [out, kernel * kernel * in],
  // in the order row, column, in.
  virtual Tensor convolution_weight(const StoredTensor& stored, int64_t kernel) = 0;

  // ---- transfers ----
  virtual void read(const Tensor& from, float* host) = 0;  // packed rows, as float32; waits
  virtual void write(const float* host, const Tensor& to) = 0;
  // Packed rows as bytes: clipped to [-1, 1], which becomes 0 to 255, rounded to nearest, ties to
  // even. Waits. False where an element is not finite; the bytes are then of no use.
  virtual bool read_pixels(const Tensor& from, uint8_t* host) = 0;
  // Same shape, both activations, which do not overlap.
  virtual void copy(const Tensor& from, const Tensor& to) = 0;
  virtual void synchronize() = 0;
  // Token ids, in two halves, so that operations issued meanwhile are not waited for. `begin_read`
  // reads what is there once the operations so far are done, and returns a ticket; when
  // `finish_read` returns, `host` is filled. A ticket need not be finished. At most kOpenReads can
  // be outstanding; one more invalidates the oldest.
  static constexpr int kOpenReads = 4;
  virtual uint64_t begin_read(const int32_t* ids, int64_t count, int32_t* host) = 0;
  virtual void finish_read(uint64_t ticket) = 0;
  // Whether operations run while the caller goes on.
  virtual bool asynchronous() const { return false; }
  // Lets what was issued so far begin to run, without waiting: a backend may gather operations and
  // begin only here, at `read` or at `synchronize`. The engine calls it at the end of each step.
  virtual void submit() {}
  virtual LaunchCounts launches() const { return {}; }

  // ---- operations ----
  virtual void linear(const LinearArgs&) = 0;
  virtual void grouped_linear(const GroupedLinearArgs& args) {
    for (int64_t i = 0; i < args.count; ++i) linear(args.products[i]);
  }
  virtual void gated_linear(const GatedLinearArgs&) = 0;
  virtual void rms_norm(const RmsNormArgs&) = 0;
  virtual void layer_norm(const LayerNormArgs&) = 0;
  virtual void attention(const AttentionArgs&) = 0;
  // All at once where that is faster; false, and nothing is done, where it is not.
  virtual bool decoder_step(const DecoderStepArgs&) { return false; }
  virtual void embed_tokens(const EmbedTokensArgs&) = 0;
  virtual void image_embed(const ImageEmbedArgs&) = 0;
  virtual void add_rows(const AddRowsArgs&) = 0;
  virtual void soft_cap(const SoftCapArgs&) = 0;
  virtual void sample_text(const SampleTextArgs&) = 0;
  virtual void diffusion_head(const DiffusionHeadArgs&) = 0;
  virtual void diffusion_sample(const DiffusionSampleArgs&) = 0;
  virtual void convolution(const ConvolutionArgs&) = 0;
  virtual void group_norm(const GroupNormArgs&) = 0;
};

}  // namespace unifluid
