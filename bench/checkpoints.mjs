// Checkpoints of published shapes with random weights, for measuring speed. Written once into a folder;
// a second run finds them there.
import { randomFillSync } from "node:crypto";
import {
  closeSync,
  copyFileSync,
  existsSync,
  mkdirSync,
  openSync,
  renameSync,
  writeFileSync,
  writeSync,
} from "node:fs";
import { join } from "node:path";

const BYTES = { F32: 4, BF16: 2 };

/** A block of random weights, uniform in (-scale, scale), in the given type. */
function randomBlock(dtype, scale, bytes) {
  const count = bytes / BYTES[dtype];
  const bits = new Uint32Array(randomFillSync(new Uint8Array(count * 4)).buffer);
  const values = new Float32Array(count);
  for (let i = 0; i < count; i++) values[i] = (bits[i] / 2 ** 31 - 1) * scale;
  if (dtype === "F32") return Buffer.from(values.buffer);
  const wide = new Uint32Array(values.buffer);
  const halves = new Uint16Array(count);
  for (let i = 0; i < count; i++) halves[i] = wide[i] >>> 16;
  return Buffer.from(halves.buffer);
}

/** Writes a safetensors file. tensors: [name, shape]; the values repeat after 4 MiB, which no cache notices. */
function writeSafetensors(path, tensors, dtype, scale) {
  const header = {};
  let offset = 0;
  for (const [name, shape] of tensors) {
    const bytes = shape.reduce((a, b) => a * b, 1) * BYTES[dtype];
    header[name] = { dtype, shape, data_offsets: [offset, offset + bytes] };
    offset += bytes;
  }
  let text = JSON.stringify(header);
  text += " ".repeat((64 - ((8 + text.length) % 64)) % 64);
  const size = Buffer.alloc(8);
  size.writeBigUInt64LE(BigInt(text.length));
  const file = openSync(`${path}.part`, "w");
  writeSync(file, size);
  writeSync(file, text);
  const block = randomBlock(dtype, scale, 4 << 20);
  for (let at = 0; at < offset; at += block.length) {
    writeSync(file, block, 0, Math.min(block.length, offset - at));
  }
  closeSync(file);
  renameSync(`${path}.part`, path);
}

const GEMMA_2_2B = {
  model_type: "gemma2",
  hidden_size: 2304,
  intermediate_size: 9216,
  num_attention_heads: 8,
  num_key_value_heads: 4,
  head_dim: 256,
  query_pre_attn_scalar: 256,
  sliding_window: 4096,
  attn_logit_softcapping: 50.0,
  final_logit_softcapping: 30.0,
  max_position_embeddings: 8192,
  rms_norm_eps: 1e-6,
  rope_theta: 10000.0,
  hidden_activation: "gelu_pytorch_tanh",
  pad_token_id: 0,
  eos_token_id: 1,
  bos_token_id: 2,
  tie_word_embeddings: true,
};

function gemma2Tensors(c, prefix = "model.") {
  const d = c.hidden_size;
  const q = c.num_attention_heads * c.head_dim;
  const kv = c.num_key_value_heads * c.head_dim;
  const out = [
    [`${prefix}embed_tokens.weight`, [c.vocab_size, d]],
    [`${prefix}norm.weight`, [d]],
  ];
  for (let i = 0; i < c.num_hidden_layers; i++) {
    const at = `${prefix}layers.${i}.`;
    for (const norm of ["input", "post_attention", "pre_feedforward", "post_feedforward"]) {
      out.push([`${at}${norm}_layernorm.weight`, [d]]);
    }
    out.push(
      [`${at}self_attn.q_proj.weight`, [q, d]],
      [`${at}self_attn.k_proj.weight`, [kv, d]],
      [`${at}self_attn.v_proj.weight`, [kv, d]],
      [`${at}self_attn.o_proj.weight`, [d, q]],
      [`${at}mlp.gate_proj.weight`, [c.intermediate_size, d]],
      [`${at}mlp.up_proj.weight`, [c.intermediate_size, d]],
      [`${at}mlp.down_proj.weight`, [d, c.intermediate_size]],
    );
  }
  return out;
}

const SIGLIP_SO400M = {
  model_type: "siglip_vision_model",
  hidden_size: 1152,
  intermediate_size: 4304,
  num_hidden_layers: 27,
  num_attention_heads: 16,
  image_size: 224,
  patch_size: 14,
  num_channels: 3,
  hidden_act: "gelu_pytorch_tanh",
  layer_norm_eps: 1e-6,
  vision_use_head: false,
};

function siglipTensors(c) {
  const h = c.hidden_size;
  const root = "model.vision_tower.vision_model.";
  const linear = (name, out, inner) => [
    [`${name}.weight`, [out, inner]],
    [`${name}.bias`, [out]],
  ];
  const norm = (name) => [
    [`${name}.weight`, [h]],
    [`${name}.bias`, [h]],
  ];
  const out = [
    [`${root}embeddings.patch_embedding.weight`, [h, 3, c.patch_size, c.patch_size]],
    [`${root}embeddings.patch_embedding.bias`, [h]],
    [`${root}embeddings.position_embedding.weight`, [(c.image_size / c.patch_size) ** 2, h]],
    ...norm(`${root}post_layernorm`),
  ];
  for (let i = 0; i < c.num_hidden_layers; i++) {
    const at = `${root}encoder.layers.${i}.`;
    out.push(...norm(`${at}layer_norm1`), ...norm(`${at}layer_norm2`));
    for (const p of ["q_proj", "k_proj", "v_proj", "out_proj"])
      out.push(...linear(`${at}self_attn.${p}`, h, h));
    out.push(
      ...linear(`${at}mlp.fc1`, c.intermediate_size, h),
      ...linear(`${at}mlp.fc2`, h, c.intermediate_size),
    );
  }
  return out;
}

/** Stable Diffusion's autoencoder. */
const SD_VAE = {
  _class_name: "AutoencoderKL",
  act_fn: "silu",
  in_channels: 3,
  out_channels: 3,
  block_out_channels: [128, 256, 512, 512],
  layers_per_block: 2,
  latent_channels: 4,
  norm_num_groups: 32,
  sample_size: 256,
  scaling_factor: 0.18215,
};

function vaeTensors(c) {
  const out = [];
  const conv = (name, o, i, k) => out.push([`${name}.weight`, [o, i, k, k]], [`${name}.bias`, [o]]);
  const norm = (name, n) => out.push([`${name}.weight`, [n]], [`${name}.bias`, [n]]);
  const resnet = (name, i, o) => {
    norm(`${name}.norm1`, i);
    conv(`${name}.conv1`, o, i, 3);
    norm(`${name}.norm2`, o);
    conv(`${name}.conv2`, o, o, 3);
    if (i !== o) conv(`${name}.conv_shortcut`, o, i, 1);
  };
  const half = (root, blocks, resampler, channels, resnets, input, output) => {
    conv(`${root}conv_in`, root.includes("encoder") ? channels[0] : channels[0], input, 3);
    let now = channels[0];
    channels.forEach((ch, i) => {
      for (let j = 0; j < resnets; j++) {
        resnet(`${root}${blocks}.${i}.resnets.${j}`, now, ch);
        now = ch;
      }
      if (i + 1 < channels.length) conv(`${root}${blocks}.${i}.${resampler}.0.conv`, now, now, 3);
    });
    const mid = c.block_out_channels.at(-1);
    for (const r of [0, 1]) resnet(`${root}mid_block.resnets.${r}`, mid, mid);
    const at = `${root}mid_block.attentions.0.`;
    norm(`${at}group_norm`, mid);
    for (const p of ["to_q", "to_k", "to_v", "to_out.0"]) {
      out.push([`${at}${p}.weight`, [mid, mid]], [`${at}${p}.bias`, [mid]]);
    }
    norm(`${root}conv_norm_out`, now);
    conv(`${root}conv_out`, output, now, 3);
  };
  const ch = c.block_out_channels;
  const z = c.latent_channels;
  half("encoder.", "down_blocks", "downsamplers", ch, c.layers_per_block, 3, 2 * z);
  half("decoder.", "up_blocks", "upsamplers", [...ch].reverse(), c.layers_per_block + 1, z, 3);
  conv("quant_conv", 2 * z, 2 * z, 1);
  conv("post_quant_conv", z, z, 1);
  return out;
}

/** The autoencoder of 256² images in 16 x 16 tokens of 16 channels. */
const KL16_VAE = {
  ...SD_VAE,
  block_out_channels: [128, 128, 256, 256, 512],
  latent_channels: 16,
  scaling_factor: 0.2325,
};

/** What UniFluid adds to a decoder of width `d`: image rows and the diffusion head (objective "ddpm"). */
function imageTensors(d, channels, cells, width, depth) {
  const linear = (name, out, inner) => [
    [`${name}.weight`, [out, inner]],
    [`${name}.bias`, [out]],
  ];
  const head = "diffusion_head.";
  const out = [
    ...linear("image_in", d, channels),
    ["image_position.weight", [cells, d]],
    ["image_next_position.weight", [cells, d]],
    ["image_begin", [d]],
    ...linear(`${head}input_proj`, width, channels),
    ...linear(`${head}cond_embed`, width, d),
    ...linear(`${head}time_embed.mlp.0`, width, 256),
    ...linear(`${head}time_embed.mlp.2`, width, width),
    ...linear(`${head}final_layer.adaLN_modulation.1`, 2 * width, width),
    ...linear(`${head}final_layer.linear`, 2 * channels, width),
  ];
  for (let i = 0; i < depth; i++) {
    const at = `${head}res_blocks.${i}.`;
    out.push(
      [`${at}in_ln.weight`, [width]],
      [`${at}in_ln.bias`, [width]],
      ...linear(`${at}mlp.0`, width, width),
      ...linear(`${at}mlp.2`, width, width),
      ...linear(`${at}adaLN_modulation.1`, 3 * width, width),
    );
  }
  return out;
}

/** Draws 256² images with a decoder of these sizes; a vision tower of one layer, which drawing does not use. */
function unifluid(folder, tokenizers, text, head) {
  const vision = {
    ...SIGLIP_SO400M,
    num_hidden_layers: 1,
    hidden_size: 64,
    intermediate_size: 64,
    num_attention_heads: 1,
    image_size: 64,
    patch_size: 16,
  };
  const [grid, channels] = [16, 16];
  json(join(folder, "config.json"), {
    model_type: "unifluid",
    text_config: text,
    vision_config: vision,
    prefix_attention: "bidirectional",
    image_generation: { image_size: 256, latent_patch: 1, grid, token_channels: channels },
    diffusion_head: { ...head, timesteps: 1000, noise_schedule: "cosine", objective: "ddpm" },
    edit_source_latents: false,
    prompts: {
      generate: "draw {prompt}\n",
      caption: "caption en\n",
      answer: "answer en {question}\n",
      edit: "edit {instruction}\n",
    },
  });
  json(join(folder, "generation_config.json"), {
    image: {
      steps: 100,
      guidance: 2.5,
      guidance_schedule: "constant",
      temperature: 1,
      order: "random",
      x0_limit: 3,
    },
    text: { max_new_tokens: 16, temperature: 0 },
  });
  const projector = "model.multi_modal_projector.linear";
  const tensors = [
    ...gemma2Tensors(text, "model.language_model."),
    ...siglipTensors(vision),
    [`${projector}.weight`, [text.hidden_size, vision.hidden_size]],
    [`${projector}.bias`, [text.hidden_size]],
    ...imageTensors(text.hidden_size, channels, grid ** 2, head.width, head.depth),
  ];
  writeSafetensors(join(folder, "model.safetensors"), tensors, "BF16", 0.02);
  mkdirSync(join(folder, "vae"), { recursive: true });
  json(join(folder, "vae", "config.json"), KL16_VAE);
  const path = join(folder, "vae", "diffusion_pytorch_model.safetensors");
  writeSafetensors(path, vaeTensors(KL16_VAE), "BF16", 0.02);
  copyTokenizer(tokenizers, folder);
  copyFileSync(
    join(tokenizers, "preprocessor_config.json"),
    join(folder, "preprocessor_config.json"),
  );
}

/** JavaScript writes 30.0 as 30, which transformers takes for an integer where it wants a float. */
const FLOATS = /("(?:attn_logit_softcapping|final_logit_softcapping|rope_theta)": \d+)(?=[,\n])/g;
const json = (path, value) =>
  writeFileSync(path, `${JSON.stringify(value, null, 2).replace(FLOATS, "$1.0")}\n`);

/** Builders by name; each fills an empty folder. `tokenizers`: a folder with a small tokenizer. */
const BUILDERS = {
  "gemma-2-2b": (folder, tokenizers) => gemma(folder, tokenizers, 26, 256000, "BF16"),
  "gemma-2-two-layers": (folder, tokenizers) => gemma(folder, tokenizers, 2, 512, "F32"),
  "siglip-so400m": (folder, tokenizers) => {
    const text = {
      ...GEMMA_2_2B,
      vocab_size: 512,
      num_hidden_layers: 1,
      hidden_size: 64,
      intermediate_size: 64,
      num_attention_heads: 1,
      num_key_value_heads: 1,
      head_dim: 64,
    };
    json(join(folder, "config.json"), {
      model_type: "paligemma",
      text_config: text,
      vision_config: SIGLIP_SO400M,
      projection_dim: 64,
    });
    const tensors = [
      ...gemma2Tensors(text, "model.language_model."),
      ...siglipTensors(SIGLIP_SO400M),
      ["model.multi_modal_projector.linear.weight", [64, SIGLIP_SO400M.hidden_size]],
      ["model.multi_modal_projector.linear.bias", [64]],
    ];
    writeSafetensors(join(folder, "model.safetensors"), tensors, "F32", 0.02);
    copyTokenizer(tokenizers, folder);
  },
  "unifluid-2b": (folder, tokenizers) =>
    unifluid(
      folder,
      tokenizers,
      { ...GEMMA_2_2B, num_hidden_layers: 26, vocab_size: 256000 },
      { width: 1280, depth: 8 },
    ),
  // The same in small, to try the benchmark itself.
  "unifluid-small": (folder, tokenizers) =>
    unifluid(
      folder,
      tokenizers,
      {
        ...GEMMA_2_2B,
        hidden_size: 64,
        intermediate_size: 128,
        num_attention_heads: 2,
        num_key_value_heads: 1,
        head_dim: 64,
        num_hidden_layers: 1,
        vocab_size: 512,
      },
      { width: 64, depth: 1 },
    ),
  "sd-vae": (folder) => {
    mkdirSync(join(folder, "vae"));
    json(join(folder, "vae", "config.json"), SD_VAE);
    const path = join(folder, "vae", "diffusion_pytorch_model.safetensors");
    writeSafetensors(path, vaeTensors(SD_VAE), "F32", 0.02);
  },
};

function gemma(folder, tokenizers, layers, vocab, dtype) {
  const config = { ...GEMMA_2_2B, num_hidden_layers: layers, vocab_size: vocab };
  json(join(folder, "config.json"), config);
  writeSafetensors(join(folder, "model.safetensors"), gemma2Tensors(config), dtype, 0.02);
  copyTokenizer(tokenizers, folder);
}

function copyTokenizer(from, to) {
  for (const name of ["tokenizer.json", "tokenizer_config.json"])
    copyFileSync(join(from, name), join(to, name));
}

/** The folder of the checkpoint `name` below `root`, made if it is not there. */
export function randomCheckpoint(name, root, tokenizers) {
  const folder = join(root, name);
  const complete = join(folder, "complete");
  if (!existsSync(complete)) {
    mkdirSync(folder, { recursive: true });
    BUILDERS[name](folder, tokenizers);
    writeFileSync(complete, "");
  }
  return folder;
}
