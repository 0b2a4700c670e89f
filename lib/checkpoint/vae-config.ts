/** The autoencoder's configuration: AutoencoderKL of the diffusers library, with its defaults. */

import type { NativeVaeConfig } from "../native.js";
import type { Fields } from "./fields.js";

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
  blockTypes(fields, "down_block_types", "DownEncoderBlock2D", blockOutChannels.length);
  blockTypes(fields, "up_block_types", "UpDecoderBlock2D", blockOutChannels.length);
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
    midBlockAttention: fields.boolean("mid_block_add_attention", { default: true }),
    quantConv: fields.boolean("use_quant_conv", { default: true }),
    postQuantConv: fields.boolean("use_post_quant_conv", { default: true }),
  };
}

function blockTypes(fields: Fields, name: string, supported: string, count: number): void {
  const types = fields.raw(name);
  if (types === undefined) return;
  const fits =
    Array.isArray(types) && types.length === count && types.every((t) => t === supported);
  if (!fits) fields.fail(name, `${count} times "${supported}" (nothing else is supported)`);
}

/** Pixels across one latent cell. */
export function vaeFactor(vae: NativeVaeConfig): number {
  return 2 ** (vae.blockOutChannels.length - 1);
}
