// Checkpoints of published shapes with random weights, for measuring speed. Written once into a folder;
// a second run finds them there.
import { createCipheriv } from "node:crypto";
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
import { parseModelConfig } from "../dist/checkpoint/config.js";
import { Fields } from "../dist/checkpoint/fields.js";
import { spellingsOf } from "../dist/checkpoint/tensor-names.js";
import { modelTensors, vaeTensors } from "../dist/checkpoint/tensor-table.js";
import { parseVaeConfig } from "../dist/checkpoint/vae-config.js";

const BYTES = { F32: 4, BF16: 2 };

const SCALE = 0.02;

/**
 * A block of random weights, uniform in (-SCALE, SCALE), in the given type; the same every time, since whether a text
 * ends early depends on them.
 */
function randomBlock(dtype, bytes) {
  const count = bytes / BYTES[dtype];
  const cipher = createCipheriv("aes-128-ctr", Buffer.alloc(16), Buffer.alloc(16));
  const bits = new Uint32Array(new Uint8Array(cipher.update(Buffer.alloc(4 * count))).buffer);
  const values = new Float32Array(count);
  for (let i = 0; i < count; i++) values[i] = (bits[i] / 2 ** 31 - 1) * SCALE;
  if (dtype === "F32") return Buffer.from(values.buffer);
  const wide = new Uint32Array(values.buffer);
  const halves = new Uint16Array(count);
  for (let i = 0; i < count; i++) halves[i] = wide[i] >>> 16;
  return Buffer.from(halves.buffer);
}

/** Writes a safetensors file. tensors: [name, shape]; the values repeat after 4 MiB, which no cache notices. */
function writeSafetensors(path, tensors, dtype) {
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
  const block = randomBlock(dtype, 4 << 20);
  for (let at = 0; at < offset; at += block.length) {
    writeSync(file, block, 0, Math.min(block.length, offset - at));
  }
  closeSync(file);
  renameSync(`${path}.part`, path);
}

/** The tensors that a configuration asks for, under the names that published files have. */
function stored(tensors, kind) {
  const [spell] = spellingsOf(kind);
  return tensors.filter((t) => !t.optional).map(({ name, shape }) => [spell(name), shape]);
}

/** config.json, and the weights that it asks for. */
function writeModel(folder, config, dtype) {
  json(join(folder, "config.json"), config);
  const parsed = parseModelConfig(Fields.of(config, "config.json"));
  const tensors = stored(modelTensors(parsed), parsed.kind);
  writeSafetensors(join(folder, "model.safetensors"), tensors, dtype);
}

/** The same of an autoencoder. */
function writeVae(folder, config, dtype) {
  mkdirSync(join(folder, "vae"), { recursive: true });
  json(join(folder, "vae", "config.json"), config);
  const tensors = stored(vaeTensors(parseVaeConfig(Fields.of(config, "vae/config.json"))), "vae");
  writeSafetensors(join(folder, "vae", "diffusion_pytorch_model.safetensors"), tensors, dtype);
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

/** The autoencoder of 256² images in 16 x 16 tokens of 16 channels. */
const KL16_VAE = {
  ...SD_VAE,
  block_out_channels: [128, 128, 256, 256, 512],
  latent_channels: 16,
  scaling_factor: 0.2325,
};

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
  const config = {
    model_type: "unifluid",
    text_config: text,
    vision_config: vision,
    prefix_attention: "bidirectional",
    image_generation: { image_size: 256, latent_patch: 1, grid: 16, token_channels: 16 },
    diffusion_head: { ...head, timesteps: 1000, noise_schedule: "cosine", objective: "ddpm" },
    edit_source_latents: false,
    prompts: {
      generate: "draw {prompt}\n",
      caption: "caption en\n",
      answer: "answer en {question}\n",
      edit: "edit {instruction}\n",
    },
  };
  writeModel(folder, config, "BF16");
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
  writeVae(folder, KL16_VAE, "BF16");
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
    const config = {
      model_type: "paligemma",
      text_config: text,
      vision_config: SIGLIP_SO400M,
      projection_dim: 64,
    };
    writeModel(folder, config, "F32");
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
  "sd-vae": (folder) => writeVae(folder, SD_VAE, "F32"),
};

function gemma(folder, tokenizers, layers, vocab, dtype) {
  const config = { ...GEMMA_2_2B, num_hidden_layers: layers, vocab_size: vocab };
  writeModel(folder, config, dtype);
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
