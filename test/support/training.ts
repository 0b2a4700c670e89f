/** Batches of training that `test/fixtures/training/make.py` makes as well, and trainers to run them on. */
import { join } from "node:path";
import { findAddon } from "../../lib/addon";
import { readCheckpoint } from "../../lib/checkpoint/checkpoint";
import type { CheckpointKind } from "../../lib/checkpoint/config";
import { canonicalName } from "../../lib/checkpoint/tensor-names";
import { vaeFactor } from "../../lib/checkpoint/vae-config";
import type {
  NativeModelSpec,
  NativeOptimizerOptions,
  NativeTrainer,
  NativeTrainerOptions,
  NativeTrainerState,
  NativeTrainingSequence,
  NativeUnifiedOptions,
  NativeVaeExample,
} from "../../lib/native";
import { FIXTURES, type Tensors } from "./fixtures";
import { fromBFloat16 } from "./numbers";
import { instructionSets, simulatedLibrary } from "./ops";
import { roundings } from "./parity-cases";

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

/** Two drawings, a caption, an answer and an edit, with all their draws; of them what the model's parts can do. */
export function batchOf(spec: NativeModelSpec, step: number): NativeTrainingSequence[] {
  const r = new Numbers(1000 + step);
  const { vision, image } = spec;
  const vocab = spec.text!.vocabSize;
  const pixels = () => r.values(3 * vision!.imageSize ** 2);
  const prompt = () => Int32Array.from(r.ids(3 + r.below(6), vocab));
  const latents = () => r.values(image!.grid ** 2 * image!.tokenChannels, 2);
  const drawing = () => {
    const { grid, tokenChannels: channels, flow } = image!;
    const cells = grid * grid;
    return {
      targetLatents: latents(),
      order: Int32Array.from(r.order(cells)),
      timesteps: Float32Array.from({ length: cells * MULTIPLIER }, () =>
        flow ? r.word() / 65.536 : r.below(1000),
      ),
      noise: r.values(cells * MULTIPLIER * channels, 1.75),
    };
  };
  const out: NativeTrainingSequence[] = [];
  if (image)
    for (let i = 0; i < 2; i++) out.push({ task: "generate", tokens: prompt(), ...drawing() });
  if (vision)
    for (const task of ["caption", "answer"])
      out.push({
        task,
        tokens: prompt(),
        visionPixels: pixels(),
        targetTokens: Int32Array.from([...r.ids(2 + r.below(6), vocab), 1]),
      });
  if (image && vision) {
    const edit = { task: "edit", tokens: prompt(), visionPixels: pixels() };
    const source = image.editSourceLatents && { sourceLatents: latents() };
    out.push({ ...edit, ...source, ...drawing() });
  }
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

const UNIFIED: NativeUnifiedOptions = {
  recompute: false,
  textWeight: 0.7,
  batchMultiplier: MULTIPLIER,
  noiseWeightCap: 1,
  contextNoise: 0,
  order: "random",
};
const OPTIMIZER: NativeOptimizerOptions = {
  beta1: 0.9,
  beta2: 0.98,
  epsilon: 1e-8,
  weightDecay: 0.02,
  clipNorm: 1,
  emaDecay: 0.995,
};

/** What tests change of a trainer's options. `vae`: an autoencoder is trained. `optimizer: null`: losses alone. */
export type TrainerChange = Partial<Omit<NativeTrainerOptions, "unified" | "optimizer">> & {
  unified?: Partial<NativeUnifiedOptions>;
  optimizer?: Partial<NativeOptimizerOptions> | null;
};

/** A first moment that is the gradient. */
export const GRADIENT = { beta1: 0, clipNorm: 0 };

export function trainerOptions({
  unified,
  vae,
  optimizer,
  ...others
}: TrainerChange = {}): NativeTrainerOptions {
  return {
    threads: 2,
    maxMemory: 0,
    compute: "float32",
    seed: 5n,
    frozen: [],
    ...(vae ? { vae } : { unified: { ...UNIFIED, ...unified } }),
    ...(optimizer !== null && { optimizer: { ...OPTIMIZER, ...optimizer } }),
    ...others,
  };
}

const native = findAddon().addon;

/** As `createTrainer`, of trainers that end with the test; called at the top of a test file. */
export function trainersOfTests(): typeof createTrainer {
  let open: NativeTrainer[] = [];
  afterEach(() => {
    for (const t of open) t.dispose();
    open = [];
  });
  return async (...args) => {
    const t = await createTrainer(...args);
    open.push(t);
    return t;
  };
}

/** `fixture`: a folder below `test/fixtures`. */
export async function specOf(fixture: string): Promise<NativeModelSpec> {
  return (await readCheckpoint(join(FIXTURES, fixture))).spec;
}

/** Checkpoints that differ in what the graph of training is made of (test/fixtures/training/variants.py). */
export const VARIANTS = join("training", "variants");

/** Where trainers are held against PyTorch: every instruction set, and CUDA on its simulation. */
export const trainingPlaces = [...instructionSets, "cuda-simulated"];
export const placeOf = (place: string): TrainerChange =>
  place === "cuda-simulated"
    ? { cuda: { library: simulatedLibrary, device: 0, dtype: "float32" } }
    : { isa: place };

export function createTrainer(
  spec: NativeModelSpec,
  change: TrainerChange = {},
): Promise<NativeTrainer> {
  return native.createTrainer(spec, trainerOptions(change));
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

/** PyTorch's tensors of a kind, such as "gradient", by our names; without a kind those of the whole file. */
export function byName(
  tensors: Tensors,
  model: Exclude<CheckpointKind, "vae">,
  kind?: string,
): Map<string, string> {
  const prefix = kind === undefined ? "" : `${kind}.`;
  const names = tensors.names.filter((n) => n.startsWith(prefix));
  return new Map(names.map((n) => [canonicalName(n.slice(prefix.length), model)!, n]));
}

/**
 * How far from another gradient one of a tensor is. `total`: the length of all gradients together, to which those count that
 * vanish by symmetry (biases of keys) and are rounding errors of the whole.
 */
export function gradientError(got: Float32Array, wanted: Float32Array, total: number): number {
  return norm(got.map((v, i) => v - wanted[i]!)) / (norm(wanted) + 1e-3 * total);
}

/**
 * How far from another a gradient in float32 may be, of a tensor; and in "bf16", which rounds both operands of every
 * product. The longest way to the loss and back has each twice: six products of a layer of the vision tower and of the
 * decoder, with attention's two, three of a block of the head, and those at the ends of the three parts.
 */
export const F32_GRADIENT = 1e-4;
export function bf16Gradient({ text, vision, image }: NativeModelSpec): number {
  const layers = (text?.layers ?? 0) + (vision?.layers ?? 0);
  return roundings(2 * 2 * (6 * layers + 3 * (image?.headDepth ?? 0) + 3));
}

/** The tensors whose gradients are not PyTorch's, of a trainer whose first moment is `GRADIENT`. `names`: of `byName`. */
export function wrongGradients(
  trainer: NativeTrainer,
  tensors: Tensors,
  names: Map<string, string>,
  total: number,
  tolerance = F32_GRADIENT,
): string[] {
  return [...names].flatMap(([name, stored]) => {
    const error = gradientError(readFloats(trainer, name, "first"), tensors.floats(stored), total);
    return error < tolerance ? [] : [`${name}: ${error} of ${tolerance}`];
  });
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
