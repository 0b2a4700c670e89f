/** The autoencoder's configuration: AutoencoderKL of the diffusers library, with its defaults. */

import type { NativeVaeConfig } from "../native.js";
import type { Fields } from "./fields.js";

/** Canonical names of the tensors that latents come from: the decoder's may change without them. */
export const ENCODER_TENSORS = /^vae\.(encoder|quant_conv)\./;

export function parseVaeConfig(fields: Fields): NativeVaeConfig {
  const size = (name: string, fallback: number, max: number) =>
    fields.integer(name, { min: 1, max, default: fallback });
  fields.only("_class_name", "AutoencoderKL");
  fields.only("act_fn", "silu", "swish");
  fields.only("in_channels", 3);
  fields.only("out_channels", 3);
  for (const name of ["latents_mean", "latents_std"]) fields.only(name, null);

  const blockOutChannels = fields.integers("block_out_channels", {
    min: 1,
    max: 1 << 14,
    maxLength: 8,
    default: [64],
  });
  const levels = blockOutChannels.length;
  const downAttention = blockTypes(fields, "down_block_types", "DownEncoderBlock2D", levels);
  const upAttention = blockTypes(fields, "up_block_types", "UpDecoderBlock2D", levels);
  const normGroups = size("norm_num_groups", 32, 1 << 14);
  for (const channels of blockOutChannels) {
    if (channels % normGroups !== 0) {
      fields.fail(
        "norm_num_groups",
        `a divisor of every block's channels (${channels})`,
        normGroups,
      );
    }
  }
  return {
    inChannels: 3,
    outChannels: 3,
    blockOutChannels,
    layersPerBlock: size("layers_per_block", 1, 64),
    latentChannels: size("latent_channels", 4, 1024),
    normGroups,
    scalingFactor: fields.number("scaling_factor", {
      min: 0,
      max: 1e6,
      open: true,
      default: 0.18215,
    }),
    shiftFactor: fields.number("shift_factor", { min: -1e6, max: 1e6, default: 0 }),
    downAttention,
    upAttention,
    midBlockAttention: fields.boolean("mid_block_add_attention", { default: true }),
    quantConv: fields.boolean("use_quant_conv", { default: true }),
    postQuantConv: fields.boolean("use_post_quant_conv", { default: true }),
  };
}

/** Whether each block is of the type that has attention, `Attn` before the plain one's name. */
function blockTypes(fields: Fields, name: string, plain: string, count: number): boolean[] {
  const types = fields.raw(name) ?? new Array<string>(count).fill(plain);
  const fits =
    Array.isArray(types) &&
    types.length === count &&
    types.every((t) => t === plain || t === `Attn${plain}`);
  if (!fits)
    fields.fail(name, `${count} times "${plain}" or "Attn${plain}" (nothing else is supported)`);
  return (types as string[]).map((type) => type !== plain);
}

/** Pixels across one latent cell. */
export function vaeFactor(vae: NativeVaeConfig): number {
  return 2 ** (vae.blockOutChannels.length - 1);
}
