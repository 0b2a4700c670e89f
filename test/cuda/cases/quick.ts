/** A case or two of each kernel, by family, for sanitizers, which are slow, and for simulations. */
export const QUICK: Record<string, string[]> = {
  attention: [
    "Gemma 2's: 256, grouped, soft cap, rotary: without a cache",
    "128, multi-query, window, rotary: through a cache, in pieces",
    "an odd one, 34, whose rows are not aligned: without a cache",
    "the VAE's one of 512: without a cache",
  ],
  attention_gradients: [
    "SigLIP's 72: dq",
    "128, grouped, window: dk",
    "Gemma 2's: 256, grouped, soft cap, rotary: dv",
  ],
  convolution: [
    "few channels, with a residual and gaps",
    "a large tile",
    "whole boxes, a square tile",
    "upsampling whole boxes",
  ],
  diffusion: [
    "diffusion_head: 9 rows, width 32, depth 2, 16 channels, ddpm",
    "diffusion_sample: 9 rows, width 32, depth 2, 16 channels, ddpm",
    "diffusion_sample: 75 rows, width 64, depth 1, 8 channels, flow",
  ],
  embedding: [
    "embed_tokens of 19",
    "image_embed of 5 channels to 19",
    "add_rows of 8, the table several times",
  ],
  group_norm: ["70 pixels of 64 channels in 32 groups, silu"],
  linear: [
    "linear [16, 1000] by 24",
    "linear [130, 160] by 136",
    "linear with bias, silu, residual and gaps, 44 columns, 47 apart",
    "grouped_linear [16, 72]",
    "gated_linear [200, 456] by 328",
  ],
  norm: [
    "rms_norm of 37 and of what it becomes",
    "rms_norm of 1152, in place and with gaps",
    "layer_norm of 1152",
  ],
  sampling: ["soft_cap of 300", "sample_text of 2049 at 1"],
};
