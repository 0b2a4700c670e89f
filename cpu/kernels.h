// The operations of core/backend.h for one instruction set: a table of functions that
// cpu/backend.cpp calls. Each has the contract of the method of the same name; tensors are float32
// but for weights.
#pragma once

#include "core/backend.h"
#include "cpu/parallel.h"

namespace unifluid::cpu {

// Operations on float32 activations in host memory. Those that can fail return false when they did:
// `sample_text` where a row of logits is not finite, the others where scratch memory is short.
struct Kernels {
  void (*linear)(const LinearArgs&, Parallel&);
  void (*gated_linear)(const GatedLinearArgs&, Parallel&);
  void (*rms_norm)(const RmsNormArgs&, Parallel&);
  void (*layer_norm)(const LayerNormArgs&, Parallel&);
  bool (*attention)(const AttentionArgs&, Parallel&);
  void (*embed_tokens)(const EmbedTokensArgs&, Parallel&);
  void (*image_embed)(const ImageEmbedArgs&, Parallel&);
  void (*add_rows)(const AddRowsArgs&, Parallel&);
  void (*soft_cap)(const SoftCapArgs&, Parallel&);
  bool (*sample_text)(const SampleTextArgs&, Parallel&);
  bool (*diffusion_head)(const DiffusionHeadArgs&, Parallel&);
  bool (*diffusion_sample)(const DiffusionSampleArgs&, Parallel&);
  bool (*convolution)(const ConvolutionArgs&, Parallel&);
  bool (*group_norm)(const GroupNormArgs&, Parallel&);
};

struct InstructionSet {
  const char* name;
  bool supported;  // this processor and operating system have it
  const Kernels* kernels;
};

// Those compiled in, from the plainest to the best.
struct InstructionSets {
  const InstructionSet* begin;
  int count;
};
InstructionSets instruction_sets();

}  // namespace unifluid::cpu
