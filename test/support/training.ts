/** Batches of training that `test/fixtures/training/make.py` makes as well, and trainers to run them on. */
import { join } from "node:path";
import { findAddon } from "../../lib/addon";
import { readCheckpoint } from "../../lib/checkpoint/checkpoint";
import { vaeFactor } from "../../lib/checkpoint/vae-config";
import type {
  NativeModelSpec,
  NativeTrainer,
  NativeTrainerOptions,
  NativeTrainerState,
  NativeTrainingSequence,
  NativeVaeExample,
} from "../../lib/native";
import { FIXTURES, type Tensors } from "./fixtures";
import { fromBFloat16 } from "./numbers";
import { instructionSets, simulatedLibrary } from "./ops";

export const MULTIPLIER = 2;

/** A linear congruential generator whose numbers are exact in float32. */
export class Numbers {
  constructor(private x: number) {}

  /** 16 bits. */
  word(): number {
    this.x = (Math.imul(1664525, this.x) + 1013904223) >>> 0;
    return this.x >>> 16;
  }

  below(n: number): number {
    return Math.floor((this.word() * n) / 65536);
  }

  /** In [-scale, scale), in steps of scale / 2048. */
  values(count: number, scale = 1): Float32Array {
    return Float32Array.from({ length: count }, () => ((this.word() >> 4) / 2048 - 1) * scale);
  }

  ids(count: number, vocab: number): number[] {
    return Array.from({ length: count }, () => 4 + this.below(vocab - 4));
  }

  order(n: number): number[] {
    const order = Array.from({ length: n }, (_, i) => i);
    for (let i = n - 1; i > 0; i--) {
      const j = this.below(i + 1);
      [order[i], order[j]] = [order[j]!, order[i]!];
    }
    return order;
  }
}

/** Two drawings, a caption, an answer and an edit, with all their draws. */
export function batchOf(spec: NativeModelSpec, step: number): NativeTrainingSequence[] {
  const r = new Numbers(1000 + step);
  const vocab = spec.text!.vocabSize;
  const { grid, tokenChannels: channels, flow } = spec.image!;
  const cells = grid * grid;
  const pixels = () => r.values(3 * spec.vision!.imageSize ** 2);
  const prefix = () => Int32Array.from(r.ids(3 + r.below(6), vocab));
  const drawing = () => ({
    targetLatents: r.values(cells * channels, 2),
    order: Int32Array.from(r.order(cells)),
    timesteps: Float32Array.from({ length: cells * MULTIPLIER }, () =>
      flow ? r.word() / 65.536 : r.below(1000),
    ),
    noise: r.values(cells * MULTIPLIER * channels, 1.75),
  });
  const out: NativeTrainingSequence[] = [];
  for (let i = 0; i < 2; i++) out.push({ task: "generate", tokens: prefix(), ...drawing() });
  for (const task of ["caption", "answer"])
    out.push({
      task,
      tokens: prefix(),
      visionPixels: pixels(),
      targetTokens: Int32Array.from([...r.ids(2 + r.below(6), vocab), 1]),
    });
  const edit = { task: "edit", tokens: prefix(), visionPixels: pixels() };
  out.push({ ...edit, sourceLatents: r.values(cells * channels, 2), ...drawing() });
  return out;
}

/** Three pictures, with the noise of their latents. */
export function picturesOf(spec: NativeModelSpec, step: number): NativeVaeExample[] {
  const r = new Numbers(2000 + step);
  const side = 32;
  const cells = (side / vaeFactor(spec.vae!)) ** 2;
  return Array.from({ length: 3 }, () => ({
    pixels: r.values(3 * side * side),
    noise: r.values(spec.vae!.latentChannels * cells, 1.75),
  }));
}

const OPTIONS: NativeTrainerOptions = {
  threads: 2,
  maxMemory: 0,
  compute: "f32",
  recompute: false,
  seed: 5n,
  textWeight: 0.7,
  batchMultiplier: MULTIPLIER,
  noiseWeightCap: 1,
  contextNoise: 0,
  order: "random",
  frozen: [],
  beta1: 0.9,
  beta2: 0.98,
  epsilon: 1e-8,
  weightDecay: 0.02,
  clipNorm: 1,
  emaDecay: 0.995,
};

const native = findAddon().addon;

export async function specOf(fixture: string): Promise<NativeModelSpec> {
  return (await readCheckpoint(join(FIXTURES, fixture))).spec;
}

/** Where trainers are held against PyTorch: every instruction set, and CUDA on its simulation. */
export const trainingPlaces = [...instructionSets, "cuda-simulated"];
export const placeOf = (place: string): Partial<NativeTrainerOptions> =>
  place === "cuda-simulated"
    ? { cuda: { library: simulatedLibrary, device: 0, dtype: "float32" } }
    : { isa: place };

export function createTrainer(
  spec: NativeModelSpec,
  options: Partial<NativeTrainerOptions> = {},
): Promise<NativeTrainer> {
  return native.createTrainer(spec, { ...OPTIONS, ...options });
}

/** A `model.yaml` for `initCheckpoint`, with the shipped autoencoder and tokenizer. */
export const TINY_MODEL = {
  text_config: {
    model_type: "gemma2",
    vocab_size: 480,
    hidden_size: 32,
    intermediate_size: 48,
    num_hidden_layers: 2,
    num_attention_heads: 2,
    num_key_value_heads: 1,
    head_dim: 16,
    query_pre_attn_scalar: 16,
    sliding_window: 64,
    max_position_embeddings: 256,
    final_logit_softcapping: 30,
    pad_token_id: 0,
    eos_token_id: 1,
    bos_token_id: 2,
  },
  vision_config: {
    hidden_size: 16,
    intermediate_size: 24,
    num_hidden_layers: 1,
    num_attention_heads: 2,
    image_size: 64,
    patch_size: 16,
  },
  image_generation: { image_size: 64, latent_patch: 4, grid: 4, token_channels: 64 },
  diffusion_head: { width: 32, depth: 1, timesteps: 1000, objective: "flow" },
};

/** Names of the tensors that the unified model trains, or the autoencoder. */
export function trained(spec: NativeModelSpec, autoencoder = false): string[] {
  return spec.tensors.map((t) => t.name).filter((n) => n.startsWith("vae.") === autoencoder);
}

/** The length of a vector. */
export const norm = (v: ArrayLike<number>) =>
  Math.sqrt(Array.from(v).reduce((sum, x) => sum + x * x, 0));

/** A tensor's values of a fixture kept in bfloat16. */
export const bfloats = (tensors: Tensors, name: string): number[] =>
  Array.from(tensors.get(name).data as Uint16Array, fromBFloat16);

export function readFloats(
  trainer: NativeTrainer,
  name: string,
  what: NativeTrainerState,
): Float32Array {
  return new Float32Array(Uint8Array.from(trainer.read(name, what, "F32")).buffer);
}

export function writeFloats(
  trainer: NativeTrainer,
  name: string,
  what: NativeTrainerState,
  values: Float32Array,
): void {
  trainer.write(name, what, new Uint8Array(values.buffer, values.byteOffset, values.byteLength));
}
