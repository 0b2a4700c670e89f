/**
 * The operations of `core/backend.h` as the tests call them: the typed surface of the test addon
 * (`test/addon`), and the backends that every table of cases runs on.
 */
import { existsSync } from "node:fs";
import { createRequire } from "node:module";
import { dirname, resolve } from "node:path";
import type { NativeEvent, NativeModelSpec, NativeRequest } from "../../lib/native";

export type StoredType = "f32" | "f16" | "bf16";
export type Activation = "none" | "silu" | "gelu_tanh" | "gelu_erf";

/** Activations, row-major; `stride` elements from one row to the next, where that is more than `cols`. */
export interface Matrix {
  data: Float32Array;
  rows: number;
  cols: number;
  stride?: number;
}

/** A weight as a checkpoint stores it. `data` may be the bytes at any address, an odd one included. */
export interface Weight {
  data: Float32Array | Uint16Array | Uint8Array;
  type: StoredType;
  rows: number;
  cols: number;
}

/**
 * Results are all of the output, gaps between rows included: [rows, outStride], or [rows, cols] without it.
 * What an operation did not write is NaN.
 */
export interface Strided {
  outStride?: number;
}

export interface Layer {
  weight: Weight;
  bias: Float32Array;
}

export interface Head {
  channels: number;
  condition: number;
  width: number;
  depth: number;
  flow: boolean;
  inputProj: Layer;
  condEmbed: Layer;
  timeMlp0: Layer;
  timeMlp2: Layer;
  blocks: {
    normWeight: Float32Array;
    normBias: Float32Array;
    mlp0: Layer;
    mlp2: Layer;
    modulation: Layer;
  }[];
  finalModulation: Layer;
  finalLinear: Layer;
}

export interface DiffusionStep {
  time: number;
  recip: number;
  recipm1: number;
  coefX0: number;
  coefX: number;
  logBeta: number;
  logTilde: number;
  tau: number;
  noise: boolean;
}

export interface DiffusionToken {
  z: number;
  /** -1: no guidance. */
  zEmpty: number;
  guidance: number;
  temperature: number;
  x0Limit: number;
  seed: bigint;
  cell: number;
}

export interface AttentionSpan {
  firstRow: number;
  rows: number;
  index: number;
  prefixEnd: number;
  /** From `createCache`. */
  cache?: number;
}

export interface DecoderLayer {
  inputNorm: Float32Array;
  postAttentionNorm: Float32Array;
  preMlpNorm: Float32Array;
  postMlpNorm: Float32Array;
  q: Weight;
  k: Weight;
  v: Weight;
  o: Weight;
  gate: Weight;
  up: Weight;
  down: Weight;
  window: number;
}

/** What a decoder has once. */
export interface DecoderSizes {
  eps: number;
  activation: Activation;
  heads: number;
  kvHeads: number;
  headDim: number;
  scale: number;
  softCap: number;
  ropeTheta: number;
  firstPosition: number;
}

export interface Backend {
  description(): string;
  /** Bytes that can still be allocated. */
  available(): number;
  /** Allocates pieces of these sizes, releases them all, and returns their addresses modulo 64. */
  allocateAndRelease(bytes: number[]): number[];
  /** Makes scratch so large, and returns what it takes. */
  resizeScratch(bytes: number): number;
  /**
   * Bytes of a workspace that has given two tensors of `pieces` floats, and those after it was tidied. `between` them it
   * hears of the bytes that the backend has allocated.
   */
  workspace(args: { pieces: [number, number]; between: (allocated: number) => void }): {
    grown: number;
    tidied: number;
  };
  createCache(kvHeads: number, capacity: number, headDim: number): number;
  /** Each [kvHeads, capacity, headDim]; rows that were never appended are NaN. */
  readCache(cache: number): { keys: Float32Array; values: Float32Array };
  /** Four RMS norms of `x` in place, `steps` times, on CUDA; `graphs`: steps that ran as a CUDA graph. */
  repeat(
    args: { x: Matrix; weight: Float32Array },
    steps: number,
  ): { out: Float32Array; graphs: number };
  /** How many lists of launches ran as CUDA graphs. */
  graphs(): number;
  /** How often some launches of a list ran beside others of it, on CUDA. */
  forks(): number;
  /** Seconds a call of each round, on random inputs of these sizes (test/addon/timing.cpp). */
  time(
    args: { repeats: number; rounds: number } & (
      | { operation: "copy"; rows: number; cols: number }
      | { operation: "linear"; m: number; k: number; n: number }
      | {
          operation: "attention";
          rows: number;
          heads: number;
          kvHeads: number;
          headDim: number;
          softCap?: number;
        }
      | {
          operation: "head";
          channels: number;
          condition: number;
          width: number;
          depth: number;
          steps: number;
          tokens: number;
        }
    ),
  ): number[];
  close(): void;

  /** `inPlace`: the output is `residual`'s memory. */
  linear(
    args: Strided & {
      x: Matrix;
      weight: Weight;
      bias?: Float32Array;
      activation?: Activation;
      residual?: Matrix;
      inPlace?: true;
    },
  ): Float32Array;
  /** A result for each product. */
  groupedLinear(
    args: Strided & {
      x: Matrix;
      products: {
        weight: Weight;
        bias?: Float32Array;
        activation?: Activation;
        residual?: Matrix;
      }[];
    },
  ): Float32Array[];
  gatedLinear(
    args: Strided & { x: Matrix; gate: Weight; up: Weight; activation?: Activation },
  ): Float32Array;
  rmsNorm(
    args: Strided & {
      x: Matrix;
      weight: Float32Array;
      eps: number;
      residual?: Matrix;
      inPlace?: "x" | "residual";
    },
  ): Float32Array;
  /** The result, in `residual`'s memory, and its own norm. */
  rmsNorms(
    args: Strided & {
      x: Matrix;
      weight: Float32Array;
      eps: number;
      residual: Matrix;
      nextWeight: Float32Array;
    },
  ): { out: Float32Array; next: Float32Array };
  layerNorm(
    args: Strided & {
      x: Matrix;
      weight?: Float32Array;
      bias?: Float32Array;
      eps: number;
      inPlace?: true;
    },
  ): Float32Array;
  groupNorm(
    args: Strided & {
      x: Matrix;
      groups: number;
      weight: Float32Array;
      bias: Float32Array;
      eps: number;
      silu?: boolean;
      inPlace?: true;
    },
  ): Float32Array;
  /** `weight` as stored: [out, in * kernel * kernel] in the order in, row, column. */
  convolution(
    args: Strided & {
      x: Matrix;
      height: number;
      width: number;
      upsample?: number;
      kernel: number;
      stride: number;
      padBefore: number;
      padAfter: number;
      weight: Weight;
      bias: Float32Array;
      residual?: Matrix;
      inPlace?: true;
    },
  ): Float32Array;
  /** Clipped to [-1, 1], which becomes 0 to 255, packed; null where an element is not finite. */
  readPixels(args: { x: Matrix }): Uint8Array | null;
  /** `sampled`: the ids lie in the backend's memory, where `sampleText` leaves them. */
  embedTokens(
    args: Strided & { ids: Int32Array; sampled?: true; table: Weight; scale: number },
  ): Float32Array;
  imageEmbed(
    args: Strided & {
      rows: { token?: Float32Array; cell: number; next: number }[];
      weight: Weight;
      bias: Float32Array;
      position: Weight;
      nextPosition: Weight;
      begin: Float32Array;
    },
  ): Float32Array;
  addRows(args: { table: Weight; x: Matrix }): Float32Array;
  softCap(args: { x: Matrix; cap: number }): Float32Array;
  sampleText(args: {
    logits: Matrix;
    temperature: Float32Array;
    uniform: Float64Array;
  }): Int32Array;
  attention(
    args: Strided & {
      q: Matrix;
      k: Matrix;
      v: Matrix;
      heads: number;
      kvHeads: number;
      headDim: number;
      scale: number;
      softCap?: number;
      window?: number;
      ropeTheta?: number;
      firstPosition?: number;
      spans: AttentionSpan[];
    },
  ): Float32Array;
  /**
   * `steps` steps of a decoder, each of which takes the rows again, behind those of the one before. `whole`: all at once where
   * the backend does that, else operation by operation; the result tells. `graphs`: steps that ran as a CUDA graph.
   */
  decoderStep(
    args: DecoderSizes & {
      x: Matrix;
      layers: DecoderLayer[];
      finalNorm: Float32Array;
      spans: (Omit<AttentionSpan, "cache"> & {
        capacity: number;
        /** [layers, keys and values, kvHeads, capacity, headDim] */
        cache: Matrix;
      })[];
      steps: number;
      whole: boolean;
    },
  ): { out: Float32Array; caches: Float32Array[]; whole: boolean; graphs: number };
  diffusionHead(
    args: Strided & { head: Head; x: Matrix; time: Float32Array; z: Matrix },
  ): Float32Array;
  /** -> [times, tokens, channels]; `times`, of lists of launches that are the same: default 1 */
  diffusionSample(args: {
    head: Head;
    z: Matrix;
    steps: DiffusionStep[];
    tokens: DiffusionToken[];
    times?: number;
  }): Float32Array;
  /**
   * An operation of `core/training_backend.h` by its name (`test/addon/training_ops.cpp`), with its arguments as
   * fields; results by name.
   */
  training(args: { name: string; [argument: string]: unknown }): Record<string, Float32Array>;
}

export interface CpuOptions {
  isa?: string;
  threads: number;
  /** How it multiplies with weights stored in bfloat16; default: float32. */
  compute?: "f32" | "bf16";
  /** Bytes; absent: what the system has. */
  maxMemory?: number;
}

export interface CudaOptions {
  /** The file of a CUDA library: the real one or the simulated one. */
  library: string;
  compute: "f32" | "bf16";
  /** Bytes; absent: what the device has. */
  maxMemory?: number;
}

export type BackendOptions = CpuOptions | CudaOptions;

export interface TestAddon {
  TestBackend: new (options: BackendOptions) => Backend;
  /** From the plainest to the best. */
  instructionSets(): { name: string; supported: boolean; bfloat16: boolean }[];
  /** Kernels that are wrong on purpose (test/simt/defects.h). */
  simulationDefects(): string[];
  /** Runs one, or its right form. `error`: what the simulation found; `right`: the results are. */
  runDefect(name: string, wrong: boolean, seed: number): { error: string; right: boolean };
  /** Sets what a simulated library simulates (test/simt/runtime.cpp); jest's environment is not the process's. */
  simulate(library: string, name: string, value: number): void;
  /** How often the host has waited for all that a simulated stream had to do. */
  simulationWaits(library: string): number;
  /** How often it has captured a list of launches. */
  simulationCaptures(library: string): number;
  /**
   * All events of some requests to one engine, whose first `failures` attempts to tell them find no memory. `stop`: it
   * is ended as soon as they are submitted.
   */
  engineEvents(args: {
    spec: NativeModelSpec;
    requests: NativeRequest[];
    failures: number;
    stop?: boolean;
  }): NativeEvent[];
  /** In how many places of making a pool of threads memory may lack: each of them is tried once. */
  threadPoolFailures(threads: number): number;
  /** A callback that throws what is not JavaScript's. */
  lackMemory(): void;
  philox(seed: bigint, c0: number, c1: number, c2: number, c3: number): Uint32Array;
  randomOrder(seed: bigint, n: number): Int32Array;
  textUniform(seed: bigint, index: number): number;
  /** Without a step: the starting noise. */
  noise(seed: bigint, cell: number, channels: number, step?: number): Float32Array;
  ddpmSteps(total: number, steps: number): DiffusionStep[];
  flowSteps(timesteps: number, steps: number): DiffusionStep[];
}

// A sanitizer build, say, lies elsewhere.
const path =
  process.env.UNIFLUID_TEST_ADDON ?? resolve(__dirname, "../../build/Release/unifluid_test.node");
if (!existsSync(path))
  throw new Error(
    `${path} is missing: "npm run build:native" makes it, unless UNIFLUID_TESTS is OFF`,
  );
export const addon: TestAddon = createRequire(__filename)(path);

export const instructionSets = addon
  .instructionSets()
  .filter((set) => set.supported)
  .map((set) => set.name);

/** The CUDA library on a simulation of CUDA (test/simt). */
export const simulatedLibrary = resolve(dirname(path), "unifluid_cuda_simulated.so");

const FAILURES = ["nothing", "launches", "captures", "graphs", "waits", "code"] as const;

/**
 * What the simulated device is like: number of devices, bytes of memory and how many of them others took since free
 * memory was told, whether others take all there is where some is freed, every how manieth launch finds no memory (0: none), what fails (launches, as by a fault; launches into a capture; memory for graphs; waits, which tell of
 * a fault of a kernel before; code for this device, which the library lacks), 10 times its compute capability, whether its warpgroups round otherwise than its warps, how many
 * multiprocessors it has.
 */
export function simulate({
  devices = 1,
  memory = 2 ** 31,
  taken = 0,
  greed = false,
  shortage = 0,
  fail = "nothing" as (typeof FAILURES)[number],
  capability = 86,
  rounding = false,
  processors = 4,
} = {}): void {
  addon.simulate(simulatedLibrary, "UNIFLUID_SIMT_DEVICES", devices);
  addon.simulate(simulatedLibrary, "UNIFLUID_SIMT_MEMORY", memory);
  addon.simulate(simulatedLibrary, "UNIFLUID_SIMT_TAKEN", taken);
  addon.simulate(simulatedLibrary, "UNIFLUID_SIMT_GREED", greed ? 1 : 0);
  addon.simulate(simulatedLibrary, "UNIFLUID_SIMT_SHORTAGE", shortage);
  addon.simulate(simulatedLibrary, "UNIFLUID_SIMT_FAIL", FAILURES.indexOf(fail));
  addon.simulate(simulatedLibrary, "UNIFLUID_SIMT_CAPABILITY", capability);
  addon.simulate(simulatedLibrary, "UNIFLUID_SIMT_ROUNDING", rounding ? 1 : 0);
  addon.simulate(simulatedLibrary, "UNIFLUID_SIMT_PROCESSORS", processors);
}

export interface BackendCase {
  name: string;
  options: BackendOptions;
}

/** What computes in float32: every instruction set of this processor, with one thread and with two, and CUDA. */
export const backendCases: BackendCase[] = [
  ...instructionSets.flatMap((isa) => [
    { name: `${isa}, 1 thread`, options: { isa, threads: 1 } },
    { name: `${isa}, 2 threads`, options: { isa, threads: 2 } },
  ]),
  { name: "cuda-simulated", options: { library: simulatedLibrary, compute: "f32" } },
];

type BackendTests = (backend: () => Backend, at: BackendCase) => void;

/** A describe block for each backend; `body` gets a function that returns the open backend within tests. */
export function describeBackends(name: string, body: BackendTests): void {
  describe.each(backendCases)(`${name}: $name`, (at) => {
    let backend: Backend;
    beforeAll(() => {
      backend = new addon.TestBackend(at.options);
    });
    afterAll(() => backend.close());
    body(() => backend, at);
  });
}

/** Runs `body` on a backend that is closed afterwards. */
export function withBackend<T>(options: BackendOptions, body: (backend: Backend) => T): T {
  const backend = new addon.TestBackend(options);
  try {
    return body(backend);
  } finally {
    backend.close();
  }
}

/**
 * One result on every backend. Those of one instruction set must have the same bits with any number of
 * threads; across instruction sets they must agree within `tolerance` of the largest magnitude.
 */
export function expectSameEverywhere(
  compute: (backend: Backend) => Float32Array,
  tolerance: number,
): void {
  let reference: Float32Array | undefined;
  for (const isa of instructionSets) {
    const one = withBackend({ isa, threads: 1 }, compute);
    // More threads than processors, and a number that divides little evenly.
    for (const threads of [2, 5])
      expectSameBits(withBackend({ isa, threads }, compute), one, `${isa}, ${threads} threads`);
    reference ??= one;
    let scale = 0;
    for (const value of reference) scale = Math.max(scale, Math.abs(value));
    for (let i = 0; i < one.length; i++) {
      const gap = Math.abs(one[i]! - reference[i]!);
      if (!(gap <= tolerance * scale))
        throw new Error(
          `${isa} differs from ${instructionSets[0]} at ${i}: ${one[i]} and ${reference[i]}, more than ${tolerance} of ${scale}`,
        );
    }
  }
}

/** Bit for bit, NaN equal to itself. */
export function expectSameBits(actual: Float32Array, expected: Float32Array, what = ""): void {
  expect(actual.length).toBe(expected.length);
  const a = new Uint32Array(actual.buffer, actual.byteOffset, actual.length);
  const b = new Uint32Array(expected.buffer, expected.byteOffset, expected.length);
  for (let i = 0; i < a.length; i++)
    if (a[i] !== b[i])
      throw new Error(
        `${what}: element ${i} is ${actual[i]} and should have the bits of ${expected[i]}`,
      );
}
