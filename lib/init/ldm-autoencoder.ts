/**
 * Autoencoders under the names of LDM (2112.10752), among them MAR's KL-16: what diffusers calls their tensors,
 * and the configuration that the shapes tell, since such a file comes without one.
 */
import type { StoredTensor } from "../checkpoint/shards.js";

/** The part of a name behind the number of a level: a pattern and what diffusers calls it. */
const WITHIN_LEVEL: readonly (readonly [RegExp, string])[] = [
  [/^block\.(\d+)\.nin_shortcut\./, "resnets.$1.conv_shortcut."],
  [/^block\.(\d+)\./, "resnets.$1."],
  [/^attn\.(\d+)\.(.*)/, "attentions.$1.$2"],
  [/^downsample\./, "downsamplers.0."],
  [/^upsample\./, "upsamplers.0."],
];
const MIDDLE: readonly (readonly [RegExp, string])[] = [
  [/^block_1\./, "resnets.0."],
  [/^block_2\./, "resnets.1."],
  [/^attn_1\./, "attentions.0."],
];
const ATTENTION: readonly (readonly [RegExp, string])[] = [
  [/(attentions\.\d+)\.norm\./, "$1.group_norm."],
  [/(attentions\.\d+)\.([qkv])\./, "$1.to_$2."],
  [/(attentions\.\d+)\.proj_out\./, "$1.to_out.0."],
];

function rename(name: string, rules: readonly (readonly [RegExp, string])[]): string {
  return rules.reduce((text, [from, to]) => text.replace(from, to), name);
}

/** diffusers' name of a tensor; LDM counts the decoder's levels from the image, diffusers from the latents. */
export function diffusersName(name: string, levels: number): string {
  const level = /^(encoder\.down|decoder\.up)\.(\d+)\.(.*)$/.exec(name);
  if (level) {
    const [, side, number, rest] = level as unknown as [string, string, string, string];
    const index = side === "decoder.up" ? levels - 1 - Number(number) : Number(number);
    return rename(`${side}_blocks.${index}.${rename(rest, WITHIN_LEVEL)}`, ATTENTION);
  }
  const middle = /^(encoder|decoder)\.mid\.(.*)$/.exec(name);
  if (middle) {
    const [, side, rest] = middle as unknown as [string, string, string];
    return rename(`${side}.mid_block.${rename(rest, MIDDLE)}`, ATTENTION);
  }
  return name.replace(/^(encoder|decoder)\.norm_out\./, "$1.conv_norm_out.");
}

const LDM_WITHIN_LEVEL: readonly (readonly [RegExp, string])[] = [
  [/^resnets\.(\d+)\.conv_shortcut\./, "block.$1.nin_shortcut."],
  [/^resnets\.(\d+)\./, "block.$1."],
  [/^attentions\.(\d+)\./, "attn.$1."],
  [/^(down|up)samplers\.0\./, "$1sample."],
];
const LDM_MIDDLE: readonly (readonly [RegExp, string])[] = [
  [/^resnets\.0\./, "block_1."],
  [/^resnets\.1\./, "block_2."],
  [/^attentions\.0\./, "attn_1."],
];
const LDM_ATTENTION: readonly (readonly [RegExp, string])[] = [
  [/(attn[._]\d+)\.group_norm\./, "$1.norm."],
  [/(attn[._]\d+)\.to_([qkv])\./, "$1.$2."],
  [/(attn[._]\d+)\.to_out\.0\./, "$1.proj_out."],
];

/** LDM's name of a tensor, for messages: what `diffusersName` makes diffusers' name of. */
export function ldmName(name: string, levels: number): string {
  const level = /^(encoder\.down|decoder\.up)_blocks\.(\d+)\.(.*)$/.exec(name);
  if (level) {
    const [, side, number, rest] = level as unknown as [string, string, string, string];
    const index = side === "decoder.up" ? levels - 1 - Number(number) : Number(number);
    return rename(`${side}.${index}.${rename(rest, LDM_WITHIN_LEVEL)}`, LDM_ATTENTION);
  }
  const middle = /^(encoder|decoder)\.mid_block\.(.*)$/.exec(name);
  if (middle) {
    const [, side, rest] = middle as unknown as [string, string, string];
    return rename(`${side}.mid.${rename(rest, LDM_MIDDLE)}`, LDM_ATTENTION);
  }
  return name.replace(/^(encoder|decoder)\.conv_norm_out\./, "$1.norm_out.");
}

/** Groups of the norms: LDM has no other number. */
const GROUPS = 32;
/** The spread of KL-16's latents is 1 / 0.2325, as MAR says; known by its factor of 16 and 16 channels. */
const KL16 = { levels: 5, channels: 16, scaling: 0.2325 };

/** Whether a file holds an autoencoder under LDM's names. */
export const isLdmAutoencoder = (tensors: readonly StoredTensor[]): boolean =>
  tensors.some(({ name }) => name === "encoder.down.0.block.0.conv1.weight");

/** Fields of AutoencoderKL that the tensors of a file tell. `scaling_factor` only for KL-16. */
export function ldmConfig(tensors: readonly StoredTensor[]): Record<string, unknown> {
  const shapes = new Map(tensors.map(({ name, shape }) => [name, shape]));
  const widths: number[] = [];
  for (;;) {
    const width = shapes.get(`encoder.down.${widths.length}.block.0.conv1.weight`)?.[0];
    if (width === undefined) break;
    widths.push(width);
  }
  let layers = 0;
  while (shapes.has(`encoder.down.0.block.${layers}.conv1.weight`)) layers++;
  const types = (side: string, plain: string, levels: number[]) =>
    levels.map((i) => (shapes.has(`${side}.${i}.attn.0.q.weight`) ? `Attn${plain}` : plain));
  const levels = widths.map((_, i) => i);
  const channels = shapes.get("decoder.conv_in.weight")?.[1];
  const isKl16 = widths.length === KL16.levels && channels === KL16.channels;
  return {
    block_out_channels: widths,
    layers_per_block: layers,
    latent_channels: channels,
    norm_num_groups: GROUPS,
    down_block_types: types("encoder.down", "DownEncoderBlock2D", levels),
    up_block_types: types("decoder.up", "UpDecoderBlock2D", [...levels].reverse()),
    mid_block_add_attention: shapes.has("encoder.mid.attn_1.q.weight"),
    use_quant_conv: shapes.has("quant_conv.weight"),
    use_post_quant_conv: shapes.has("post_quant_conv.weight"),
    ...(isKl16 && { scaling_factor: KL16.scaling }),
  };
}
