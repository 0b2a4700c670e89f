// What a backend offers beside core/backend.h so that a model can be trained on it: the backward
// operations and the optimizer.
//
// Tensors are float32 in the backend's memory. Gradients of weights are always added to what is
// there; gradients of activations too where `accumulate` says so. An empty gradient tensor (or a
// null pointer) is not computed. Every sum has an order that depends on shapes alone, never on the
// number of threads: the same step gives the same bits.
//
// Where a backend `takes_rounded`, what only products with bfloat16 operands take may be bfloat16:
// `out` of rms_norm, activation, gated and modulated_norm; `dx` of rms_norm_backward and
// activation_backward where they do not accumulate; `dgate` and `dup` of gated_backward, `dgate`
// and `dy` of gated_add_backward, `dshift` and `dscale`; and what they are then, ColumnSumArgs::x,
// GemmArgs::a, LinearBackwardArgs::x and `dout`. Rows of operands of products begin at multiples of
// 16 bytes.
#pragma once

#include "core/backend.h"

namespace unifluid {

// out = (accumulate ? out : 0) + op(a) op(b) + bias, where op is the transpose if asked.
struct GemmArgs {
  Tensor a;  // [m, k]; [k, m] with transpose_a
  bool transpose_a = false;
  Tensor b;  // [k, n]; [n, k] with transpose_b
  bool transpose_b = false;
  const float* bias = nullptr;  // [n], or null
  bool accumulate = false;
  // Operands are rounded to bfloat16 (to nearest, ties to even); products and sums are float32.
  bool bf16 = false;
  Tensor out;  // [m, n]; overlaps neither a nor b
};

// out[j] += sum over rows of x[i, j]: the gradient of a bias.
struct ColumnSumArgs {
  Tensor x;    // [m, n]
  float* out;  // [n]
};

// The gradients of out = x weight^T + bias.
struct LinearBackwardArgs {
  Tensor dout;              // [m, n]
  Tensor x, weight;         // [m, k], [n, k]; each may be empty where its product is not computed
  bool bf16 = false;        // as in GemmArgs
  Tensor dweight;           // dout^T x, added to; or empty
  float* dbias = nullptr;   // [n], added to; or null
  bool accumulate = false;  // concerns dx
  Tensor dx;                // dout weight; or empty
};

// out += x
struct AddArgs {
  Tensor x, out;  // [m, n]
};

// out = activation(x)
struct ActivationArgs {
  Tensor x;
  Activation activation;
  Tensor out;  // may be x
};
// dx (+)= dout * activation'(x)
struct ActivationBackwardArgs {
  Tensor x;
  Activation activation;
  Tensor dout;
  bool accumulate = false;
  Tensor dx;  // may be dout where it does not accumulate
};

// out = activation(gate) * up
struct GatedArgs {
  Tensor gate, up;  // [m, n]
  Activation activation;
  Tensor out;
};
struct GatedBackwardArgs {
  Tensor gate, up;
  Activation activation;
  Tensor dout;
  Tensor dgate, dup;  // written; may be dout (one of them)
};

// out = x + gate * y, the end of a residual block of the diffusion head
struct GatedAddArgs {
  Tensor x, gate, y;  // [m, n]
  Tensor out;         // may be x
};
// dgate = dout * y, dy = dout * gate; dx is dout itself
struct GatedAddBackwardArgs {
  Tensor gate, y, dout;
  Tensor dgate, dy;  // written
};

// Of rms_norm without its residual.
struct RmsNormBackwardArgs {
  Tensor x;             // [m, n]
  const float* weight;  // [n]
  float eps;
  Tensor dout;
  bool accumulate = false;
  Tensor dx;       // [m, n]
  float* dweight;  // [n], added to; or null
};

// out = (norm(x) * weight + bias) * (1 + scale) + shift, norm as in layer_norm (eps inside the
// root): the adaptive layer norm of the diffusion head, and a plain one without scale and shift.
struct ModulatedNormArgs {
  Tensor x;             // [m, n]
  const float* weight;  // [n], or null for ones
  const float* bias;    // [n], or null for zeros
  Tensor shift, scale;  // [m, n], or both empty
  float eps;
  Tensor out;
};
struct ModulatedNormBackwardArgs {
  Tensor x;
  const float *weight, *bias;
  Tensor shift, scale;
  float eps;
  Tensor dout;
  bool accumulate = false;  // concerns dx
  Tensor dx;
  float *dweight, *dbias;  // added to; or null
  Tensor dshift, dscale;   // written; or empty
};

// The forward operation's arguments (with spans that have no cache and begin at index 0, and `out`
// holding the result), and the gradients of q, k and v as they were before rotary embedding.
struct AttentionBackwardArgs {
  AttentionArgs forward;
  Tensor dout;        // [m, heads * head_dim]
  Tensor dq, dk, dv;  // as q, k, v; written
};

// out[i] += scale * table[index[i]]; nothing where index[i] < 0
struct GatherRowsArgs {
  Tensor table;
  const int32_t* index;  // host, [out.rows]
  float scale = 1;
  Tensor out;
};
// dtable[index[i]] += scale * dout[i], in the order of i
struct ScatterRowsArgs {
  Tensor dout;
  const int32_t* index;  // host, [dout.rows]
  float scale = 1;
  Tensor dtable;
};

// Cross-entropy of rows of logits, soft-capped first where cap > 0. The logits are replaced by
// scale times the loss's gradient with respect to them before the cap.
struct CrossEntropyArgs {
  Tensor logits;           // [m, vocab]
  const int32_t* targets;  // host, [m]
  float cap = 0;
  float scale;
  float* losses;  // host, [m]
};

// The sinusoids that the diffusion head's time embedding starts from: cosines, then sines.
struct TimeFeaturesArgs {
  const float* time;  // host, [m]
  Tensor out;         // [m, 256]
};

// Normal noise named by (seed, counter of the row, channel): spec section 7 with c3 = 4.
struct TrainingNoiseArgs {
  uint64_t seed;
  const uint64_t* counters;  // host, [m]
  Tensor out;                // [m, channels]
};

// One timestep of a training diffusion (core/schedule.h): float64 tables rounded once.
struct TrainingStep {
  float signal, noise;  // x_t = signal * x0 + noise * epsilon
  float time;           // what the network sees
  // "ddpm" only
  float recip, recipm1, coef_x0, coef_x, log_beta, log_tilde;
  float weight;  // of the square error of epsilon
  bool first;    // t = 0: the likelihood of x0 instead of the divergence
};

// x_t of many tokens: out[i] = signal[i] * x0[index[i]] + noise[i] * epsilon[i]
struct DiffuseArgs {
  Tensor x0;
  const int32_t* index;       // host, [m]
  const TrainingStep* steps;  // host, [m]
  Tensor epsilon;             // [m, C]
  Tensor out;                 // [m, C]
};

// The training loss of each row (spec sections 6 and 8), and scale times its gradient with respect
// to the head's outputs.
struct DiffusionLossArgs {
  bool flow;
  Tensor output;  // [m, 2C], "flow": [m, C]
  Tensor x0;
  const int32_t* index;       // host, [m]: row of x0
  const TrainingStep* steps;  // host, [m]
  Tensor epsilon;             // [m, C]
  float scale;
  Tensor doutput;  // as output; written
  float* losses;   // host, [m]
};

// Patches of channels-last images as rows: out[(image, y, x), (ky, kx, channel)], zeros beyond the
// edges; `images` images lie one after another.
struct PatchesArgs {
  Tensor x;  // [images * height * width, channels]
  int64_t images;
  ConvolutionGeometry geometry;  // of each
  Tensor out;                    // [images * out_height * out_width, kernel * kernel * channels]
};
// dx += the patches' gradients, each pixel getting those of all patches that it is part of.
struct PatchesBackwardArgs {
  Tensor dout;
  int64_t images;
  ConvolutionGeometry geometry;
  Tensor dx;
};

struct GroupNormBackwardArgs {
  Tensor x;  // [images * pixels, channels]
  int64_t images, groups;
  const float *weight, *bias;
  float eps;
  bool silu;
  Tensor dout;
  bool accumulate = false;
  Tensor dx;
  float *dweight, *dbias;  // added to
};

// AdamW (1711.05101) with decoupled weight decay on one run of parameters, and their moving
// average.
struct AdamWArgs {
  float *value, *first, *second;
  const float* gradient;
  float* average;  // or null
  int64_t count;
  float gradient_scale;  // from clipping by the global norm
  float rate, beta1, beta2, epsilon, decay;
  float correction1, correction2;  // 1 - beta^step
  float average_keep;              // average = keep * average + (1 - keep) * value
};

class TrainingBackend {
 public:
  virtual ~TrainingBackend() = default;
  virtual bool takes_rounded() const { return false; }
  virtual void gemm(const GemmArgs&) = 0;
  virtual void column_sum(const ColumnSumArgs&) = 0;
  virtual void linear_backward(const LinearBackwardArgs& args) {
    if (args.dweight)
      gemm({.a = args.dout,
            .transpose_a = true,
            .b = args.x,
            .accumulate = true,
            .bf16 = args.bf16,
            .out = args.dweight});
    if (args.dbias) column_sum({args.dout, args.dbias});
    if (args.dx)
      gemm({.a = args.dout,
            .b = args.weight,
            .accumulate = args.accumulate,
            .bf16 = args.bf16,
            .out = args.dx});
  }
  virtual void add(const AddArgs&) = 0;
  virtual void activation(const ActivationArgs&) = 0;
  virtual void activation_backward(const ActivationBackwardArgs&) = 0;
  virtual void gated(const GatedArgs&) = 0;
  virtual void gated_backward(const GatedBackwardArgs&) = 0;
  virtual void gated_add(const GatedAddArgs&) = 0;
  virtual void gated_add_backward(const GatedAddBackwardArgs&) = 0;
  virtual void rms_norm_backward(const RmsNormBackwardArgs&) = 0;
  virtual void modulated_norm(const ModulatedNormArgs&) = 0;
  virtual void modulated_norm_backward(const ModulatedNormBackwardArgs&) = 0;
  virtual void attention_backward(const AttentionBackwardArgs&) = 0;
  virtual void gather_rows(const GatherRowsArgs&) = 0;
  virtual void scatter_rows(const ScatterRowsArgs&) = 0;
  virtual void cross_entropy(const CrossEntropyArgs&) = 0;
  virtual void time_features(const TimeFeaturesArgs&) = 0;
  virtual void training_noise(const TrainingNoiseArgs&) = 0;
  virtual void diffuse(const DiffuseArgs&) = 0;
  virtual void diffusion_loss(const DiffusionLossArgs&) = 0;
  virtual void patches(const PatchesArgs&) = 0;
  virtual void patches_backward(const PatchesBackwardArgs&) = 0;
  virtual void group_norm_backward(const GroupNormBackwardArgs&) = 0;
  virtual void adamw(const AdamWArgs&) = 0;
  // The sum of squares in float64.
  virtual double sum_of_squares(const float* values, int64_t count) = 0;
  virtual void fill(const Tensor&, float value) = 0;
};

}  // namespace unifluid
