/**
 * Everything the addon offers, typed in one place. Nothing else in `lib` knows the addon's shape.
 *
 * The addon computes; it reads no JSON, tokenizes nothing and makes no error objects. A call that fails at
 * once throws, and a promise that fails rejects, with an object `{ code, message }`; `lib/errors.ts` turns
 * it into a class.
 */

export type StoredType = "F32" | "F16" | "BF16";

/** One tensor of the checkpoint under its canonical name (`lib/checkpoint/tensor-names.ts`). */
export interface NativeTensor {
  name: string;
  dtype: StoredType;
  shape: number[];
  /** Index into `NativeModelSpec.files`. */
  file: number;
  /** Bytes from the start of the file. */
  offset: number;
}

export interface NativeTextConfig {
  /** Gemma 2's four norms a layer, or Gemma 1's two. */
  gemma2: boolean;
  vocabSize: number;
  hiddenSize: number;
  intermediateSize: number;
  layers: number;
  heads: number;
  kvHeads: number;
  headDim: number;
  rmsNormEps: number;
  ropeTheta: number;
  /** Factor of the attention scores: `query_pre_attn_scalar ** -0.5` or `head_dim ** -0.5`. */
  attentionScale: number;
  /** 0: none. */
  attentionSoftCap: number;
  /** 0: none. */
  logitSoftCap: number;
  /** One per layer; 0: full attention. */
  windows: number[];
  activation: NativeActivation;
  /** Rotary position of a sequence's first row: 1 for PaliGemma and UniFluid, 0 for plain Gemma. */
  firstPosition: 0 | 1;
  bidirectionalPrefix: boolean;
  /** `lm_head.weight` is absent: the logits come from the embedding. */
  tied: boolean;
}

export interface NativeVisionConfig {
  hiddenSize: number;
  intermediateSize: number;
  layers: number;
  heads: number;
  imageSize: number;
  patchSize: number;
  layerNormEps: number;
  activation: NativeActivation;
}

export type NativeActivation = "silu" | "gelu_tanh" | "gelu_erf";

export interface NativeVaeConfig {
  inChannels: number;
  outChannels: number;
  blockOutChannels: number[];
  layersPerBlock: number;
  latentChannels: number;
  normGroups: number;
  scalingFactor: number;
  shiftFactor: number;
  /** Whether a block's resnets have attention behind them, by block of the encoder and of the decoder. */
  downAttention: boolean[];
  upAttention: boolean[];
  midBlockAttention: boolean;
  quantConv: boolean;
  postQuantConv: boolean;
}

export interface NativeImageConfig {
  grid: number;
  latentPatch: number;
  tokenChannels: number;
  headWidth: number;
  headDepth: number;
  timesteps: number;
  flow: boolean;
  /** An edit's prefix also holds the source image's latent tokens. */
  editSourceLatents: boolean;
}

export interface NativeModelSpec {
  files: string[];
  tensors: NativeTensor[];
  text?: NativeTextConfig;
  vision?: NativeVisionConfig;
  vae?: NativeVaeConfig;
  image?: NativeImageConfig;
}

/** What activations, caches and matrices are kept in on a GPU; sums are float32 in both. */
export type NativeComputeType = "float32" | "bfloat16";

export interface NativeLoadOptions {
  threads: number;
  /** Name of an instruction set of `instructionSets()`; absent: the best that this processor has. */
  isa?: string;
  /** The CPU rounds what it multiplies with weights stored in bfloat16 to bfloat16, where it multiplies those. */
  bfloat16?: boolean;
  /** Bytes that weights copied, caches and activations may take together; 0: what the system has free. */
  maxMemory: number;
  /** Sequences that may run at once; later ones wait. A guided image counts as one. */
  maxSequences: number;
  /** Requests that may wait besides; absent: any number. More are refused with QUEUE_FULL. */
  maxQueue?: number;
  /** Bytes that a step's activations are expected to take (`lib/activation-memory.ts`). */
  activations: { row: number; vision: number; vae: number; fixed: number };
  cuda?: NativeCuda;
}

/** Computes on a GPU; `library`: the file of the CUDA library. Absent: on the CPU. */
export interface NativeCuda {
  library: string;
  device: number;
  dtype: NativeComputeType;
  /** Bytes that a model's weights will take (`weightsOnDevice`). */
  weights?: number;
}

export interface NativeCudaDevice {
  name: string;
  /** Compute capability, such as "9.0". */
  capability: string;
  /** Multiprocessors. */
  processors: number;
  /** The newest CUDA that the driver knows, and the one of the library; such as "13.0". */
  driver: string;
  runtime: string;
  /** Bytes. */
  totalMemory: number;
}

/** What a sequence starts from: image features, then source latents, then tokens (spec section 5). */
export interface NativePrefix {
  /** SigLIP's input, [3, S, S], normalized as the checkpoint's preprocessor says. */
  visionPixels?: Float32Array;
  /** The VAE's input in [-1, 1], [3, image size, image size], for `editSourceLatents`. */
  sourcePixels?: Float32Array;
  /** Token ids, `<bos>` included. */
  tokens: Int32Array;
  /** The tokens are a plain text's, which has no prefix: causal, whatever `bidirectionalPrefix` says. */
  plainText?: boolean;
}

export interface NativeScheduling {
  /** -1000 to 1000; absent: 0. A level is worth 64 places in the queue. */
  priority?: number;
}

export interface NativeTextRequest extends NativeScheduling {
  kind: "text";
  prefix: NativePrefix;
  maxNewTokens: number;
  temperature: number;
  seed: bigint;
  stopTokens: Int32Array;
  /** Send a `token` event for each token. */
  stream: boolean;
}

/** Logits of the prefix's last row and of every suffix row; of a plain text: of every row. */
export interface NativeScoreRequest extends NativeScheduling {
  kind: "score";
  prefix: NativePrefix;
  suffix: Int32Array;
}

export interface NativeDrawRequest extends NativeScheduling {
  kind: "draw";
  prefix: NativePrefix;
  /** The tokens of the same prefix with an empty prompt, for guidance; absent: no guidance. */
  emptyTokens?: Int32Array;
  steps: number;
  guidance: number;
  /** 1 + (g - 1)(k + 1) / N at token k, instead of g. */
  linearGuidance: boolean;
  temperature: number;
  /** `Infinity`: no bound. */
  x0Limit: number;
  randomOrder: boolean;
  seed: bigint;
  /** Send a `cell` event for each image token. */
  stream: boolean;
  /** Also decode: `done` then carries `pixels`. */
  decode: boolean;
}

/** VAE: pixels [3, height, width] in [-1, 1] to tokens of latents. */
export interface NativeEncodeRequest extends NativeScheduling {
  kind: "encode";
  pixels: Float32Array;
  width: number;
  height: number;
}

/** Vision tower: pixels [3, S, S], normalized, to its last hidden states. */
export interface NativeFeaturesRequest extends NativeScheduling {
  kind: "features";
  pixels: Float32Array;
}

/** VAE: tokens [rows * columns, channels] of latents to pixels. */
export interface NativeDecodeRequest extends NativeScheduling {
  kind: "decode";
  latents: Float32Array;
  /** Tokens across and down. */
  columns: number;
  rows: number;
}

export type NativeRequest =
  | NativeTextRequest
  | NativeScoreRequest
  | NativeDrawRequest
  | NativeEncodeRequest
  | NativeFeaturesRequest
  | NativeDecodeRequest;

export type NativeEvent =
  | { id: number; type: "token"; token: number }
  /** Image token number `position` (from 0) was drawn at `cell`; `values` [token channels]. */
  | { id: number; type: "cell"; position: number; cell: number; values: Float32Array }
  | {
      id: number;
      type: "done";
      /** text: the new tokens without the stop token. */
      tokens?: Int32Array;
      /** text: whether a stop token ended it, rather than the limit. */
      stopped?: boolean;
      /** score: [rows, vocab]. */
      logits?: Float32Array;
      /** draw, encode: [cells, token channels], cells in raster order. */
      latents?: Float32Array;
      /** features: [rows, hidden size]. */
      features?: Float32Array;
      /** draw with `decode`, decode: RGB bytes, [height, width, 3]. */
      pixels?: Uint8Array;
      width?: number;
      height?: number;
    }
  | { id: number; type: "error"; code: string; message: string };

export interface NativeStats {
  /** Requests admitted and not finished. */
  running: number;
  /** Requests not yet admitted. */
  waiting: number;
  /** Bytes of running sequences: caches, latents and, on the CPU, logits. */
  sequenceBytes: number;
  /** Bytes of activations, kept between steps. */
  workspaceBytes: number;
  /**
   * Bytes the model has allocated: repacked weights, activations and sequences; on a GPU all that `maxMemory` limits,
   * including staging and scratch memory of operations.
   */
  allocatedBytes: number;
  /** Bytes that can still be allocated, of `maxMemory` or what the system has free. */
  availableBytes: number;
  /** Engine steps and decoder rows so far. */
  steps: number;
  rows: number;
  /**
   * Kernel lists run so far on a GPU: replayed as CUDA graphs, and launched kernel by kernel. An engine step is one
   * list, or several if results are read midway. 0 on the CPU.
   */
  graphsReplayed: number;
  listsLaunched: number;
  /** Requests ended since the model was loaded: with a result, with an error, or cancelled. */
  completed: number;
  failed: number;
  cancelled: number;
  /** Requests refused because `maxQueue` others were waiting. */
  refused: number;
}

export interface NativeModel {
  /** One line: device, instruction set, threads. */
  description(): string;
  /** Queues a request; its events carry the id returned. Throws where the request does not fit the model. */
  submit(request: NativeRequest): number;
  /** Frees the sequence at the next step; no event follows. Unknown ids are ignored. */
  cancel(id: number): void;
  stats(): NativeStats;
  /** Ends the engine; running requests get an error event with code DISPOSED first. */
  dispose(): Promise<void>;
}

export interface NativeInstructionSet {
  name: string;
  /** This processor has it. */
  supported: boolean;
  /** It multiplies pairs of bfloat16, which `NativeLoadOptions.bfloat16` is for. */
  bfloat16: boolean;
}

/** One sequence to train on (spec section 5): image features, source latents, tokens, then what is learned. */
export interface NativeTrainingSequence {
  /** Losses are also told by this name. */
  task: string;
  /** As in `NativePrefix`. */
  visionPixels?: Float32Array;
  /** [cells, token channels], of an edit's source image. */
  sourceLatents?: Float32Array;
  /** The prefix, `<bos>` included. */
  tokens: Int32Array;
  /** The text to write, `<eos>` included; this or `targetLatents`. */
  targetTokens?: Int32Array;
  /** The image to draw, [cells, token channels]. */
  targetLatents?: Float32Array;
  /** [cells]. Absent, like the two below: drawn from the seed, the step and the sequence's place in it. */
  order?: Int32Array;
  /** [cells, multiplier], those of the token drawn at each place of the order. */
  timesteps?: Float32Array;
  /** [cells, multiplier, token channels] */
  noise?: Float32Array;
}

export interface NativeVaeExample {
  /** RGB in [-1, 1], [3, S, S]. */
  pixels: Float32Array;
  /** [latent channels, S / factor, S / factor]; absent: drawn. */
  noise?: Float32Array;
}

export interface NativeUnifiedOptions {
  /** Compute the layers' activations again on the way back instead of keeping them. */
  recompute: boolean;
  /** The factor of the text loss: lambda. */
  textWeight: number;
  /** Timesteps at which each image token is trained: diffusion_batch_mul. */
  batchMultiplier: number;
  /** "ddpm": the largest weight of a timestep's square error; 1: the published loss. */
  noiseWeightCap: number;
  /** Standard deviation up to which image tokens that others follow are read with noise; 0: none. */
  contextNoise: number;
  order: "random" | "raster";
}

export interface NativeVaeOptions {
  klWeight: number;
  /** Standard deviation up to which latents of spread 1 are decoded with noise; 0: none. */
  latentNoise: number;
}

/** Of AdamW. */
export interface NativeOptimizerOptions {
  beta1: number;
  beta2: number;
  epsilon: number;
  /** Of matrices; vectors have none. */
  weightDecay: number;
  /** Bound of the gradient's norm; 0: none. */
  clipNorm: number;
  /** The moving average keeps min(emaDecay, step / (step + 10)); 0: no average. */
  emaDecay: number;
}

export interface NativeTrainerOptions {
  threads: number;
  /** Name of an instruction set; absent: the best that this processor has. */
  isa?: string;
  /** Bytes that weights, moments and activations may take together; 0: what the system has free. */
  maxMemory: number;
  /** With dtype "float32", which training computes in. */
  cuda?: NativeCuda;
  /** Operands of matrix products: float32, or rounded to bfloat16. */
  compute: NativeComputeType;
  seed: bigint;
  /** Canonical names of tensors that are not trained. */
  frozen: string[];
  /** One of these two, which says what is trained: the model on sequences, or its autoencoder on pictures. */
  unified?: NativeUnifiedOptions;
  vae?: NativeVaeOptions;
  /** Absent: `evaluate` alone, in the memory of the weights: no gradients, no moments. */
  optimizer?: NativeOptimizerOptions;
}

export interface NativeLossSum {
  /** A mean over `tokens`. */
  loss: number;
  /** Text tokens, or image tokens times the multiplier. */
  tokens: number;
  /** `evaluate`: text tokens that the model held for the likeliest. */
  right: number;
}

export interface NativeStepResult {
  /** Whether all losses and the gradient were finite. If not, the weights are unchanged. */
  finite: boolean;
  /** Means over the step's image tokens and text tokens; NaN where it has none. */
  imageLoss: number;
  textLoss: number;
  byTask: Record<string, NativeLossSum>;
  /** Before clipping. */
  gradientNorm: number;
  /** Rows that went through the decoder. */
  rows: number;
  /** Of an autoencoder. */
  vae?: { loss: number; absolute: number; square: number; kl: number };
}

/** "updates": one number, how often a tensor was updated. */
export type NativeTrainerState = "weights" | "ema" | "first" | "second" | "updates";

/** One call at a time: a second is refused with INVALID_ARGUMENT. */
export interface NativeTrainer {
  /** One line: device, instruction set, threads. */
  description(): string;
  /** One update from batches whose gradients add up. `step` counts from 1. */
  step(
    batches: NativeTrainingSequence[][] | NativeVaeExample[][],
    at: { step: number; learningRate: number },
  ): Promise<NativeStepResult>;
  /** Losses alone, of the weights or of their moving average. */
  evaluate(
    batches: NativeTrainingSequence[][] | NativeVaeExample[][],
    at: { step: number; ema: boolean },
  ): Promise<NativeStepResult>;
  /** One tensor's bytes in the checkpoint's layout. */
  read(name: string, what: NativeTrainerState, type: "F32" | "BF16"): Uint8Array;
  /** Float32 bytes in the checkpoint's layout. */
  write(name: string, what: NativeTrainerState, bytes: Uint8Array): void;
  /** Frees the memory, at once or when the call at work has ended. */
  dispose(): void;
}

/** Bytes of a GPU. */
export interface NativeCudaMemory {
  free: number;
  /** Of the free ones, those that a model takes at most; the rest is left to the driver. */
  usable: number;
  /** What every model takes beside its weights, caches and activations. */
  overhead: number;
}

export interface NativeAddon {
  version: string;
  /** From the plainest to the best. */
  instructionSets(): NativeInstructionSet[];
  /** `onEvents` gets the events of one engine step together, on JavaScript's thread. */
  loadModel(
    spec: NativeModelSpec,
    options: NativeLoadOptions,
    onEvents: (events: NativeEvent[]) => void,
  ): Promise<NativeModel>;
  /** Loads all weights as float32, with room for gradients and moments. */
  createTrainer(spec: NativeModelSpec, options: NativeTrainerOptions): Promise<NativeTrainer>;
  /** The first NaN or infinite weight in file order, or null. */
  findNonFinite(
    spec: NativeModelSpec,
  ): Promise<{ name: string; index: number; value: number } | null>;
  /**
   * Antialiased resampling of RGB bytes as Pillow does it, off the main thread. They are read in place: nobody may
   * transfer or change them meanwhile.
   */
  resizeImage(
    pixels: Uint8Array,
    width: number,
    height: number,
    toWidth: number,
    toHeight: number,
    filter: "nearest" | "bilinear" | "bicubic" | "lanczos",
  ): Promise<Uint8Array>;
  /** Bytes of memory the system can still give, cgroup limits included. */
  availableMemory(): number;
  /** Whether NVIDIA's driver library is there. */
  cudaDriverPresent(): boolean;
  /** The GPUs that the CUDA library at this path can use, by index. */
  cudaDevices(library: string): Promise<NativeCudaDevice[]>;
  /** The memory of one of them; opens a context on it, which takes some hundred MiB. */
  cudaMemory(library: string, device: number): Promise<NativeCudaMemory>;
}
