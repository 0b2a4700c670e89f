/** Options of `UniFluid.load`, checked and completed. */

import { availableParallelism } from "node:os";
import { type Device, type ParsedDevice, parseDevice } from "./device.js";
import { DeviceError } from "./errors.js";
import type { NativeAddon, NativeComputeType, NativeLoadOptions } from "./native.js";
import {
  choiceOption,
  integerOption,
  invalidOption,
  optionsObject,
  signalOption,
} from "./options.js";

export interface LoadOptions {
  /**
   * "cpu", "cuda" (the first GPU), "cuda:1" and so on; "auto", the default: the first usable GPU with room for the
   * model, otherwise the CPU. `info.device` says which.
   */
  device?: Device;
  /**
   * Type of multiplied values; sums are always float32. A GPU keeps activations, caches and matrices in bfloat16 by
   * default; "float32" is slow and meant for comparisons. The CPU computes in float32 by default; with "bfloat16" it
   * rounds what it multiplies with weights stored in bfloat16, which is faster on processors with AVX512-BF16 (on
   * others nothing changes). `info.device` says what is used.
   */
  dtype?: "auto" | "bfloat16" | "float32";
  /** Threads to compute with; default: the cores this process may use. */
  threads?: number;
  /**
   * Instruction set, as named by `unifluid doctor`; default: UNIFLUID_ISA in the environment, or the best. If one is
   * set, device "auto" means the CPU.
   */
  isa?: string;
  /**
   * Limit in bytes on caches, activations and repacked weights; mapped weights do not count. On a GPU the weights and
   * the scratch memory of operations also count, but not what the driver itself takes. Default: what the system or the
   * GPU has free.
   */
  maxMemory?: number;
  /** Requests that may run at once; more wait. Default 16. */
  maxSequences?: number;
  /**
   * Requests that may wait beside those; one more is refused with code `QUEUE_FULL` before any work. 0: none waits for
   * a place, but those that have one may wait for memory. Default: no limit.
   */
  maxQueue?: number;
  /** Cancels loading. */
  signal?: AbortSignal;
}

const NAMES = [
  "device",
  "dtype",
  "threads",
  "isa",
  "maxMemory",
  "maxSequences",
  "maxQueue",
  "signal",
] as const;
const MOST_THREADS = 1024;

export interface ParsedLoadOptions {
  native: Omit<NativeLoadOptions, "activations" | "cuda">;
  device: ParsedDevice;
  /** What a GPU would compute in. */
  dtype: NativeComputeType;
  /** Why "auto" must mean the CPU. */
  cpuReason?: string;
  signal?: AbortSignal;
}

export function parseLoadOptions(
  given: LoadOptions | undefined,
  addon: Pick<NativeAddon, "instructionSets">,
): ParsedLoadOptions {
  const options = optionsObject(given, NAMES);
  const { dtype: type = "auto", threads, maxMemory, maxSequences = 16, maxQueue } = options;
  const device = parseDevice(options.device === undefined ? "auto" : options.device);
  const dtype = choiceOption("dtype", type, ["auto", "float32", "bfloat16"]);
  if (options.isa !== undefined && device.kind === "cuda") {
    throw invalidOption('no value with device "cuda"', "isa", options.isa);
  }
  const isa = parseIsa("isa", options.isa, addon) ?? environmentIsa(addon);
  return {
    device,
    dtype: dtype === "auto" ? "bfloat16" : dtype,
    ...(isa !== undefined && {
      cpuReason: `the instruction set ${isa} was asked for, which is the CPU's`,
    }),
    native: {
      threads:
        threads === undefined
          ? defaultThreads()
          : integerOption("threads", threads, { min: 1, max: MOST_THREADS }),
      isa,
      bfloat16: dtype === "bfloat16",
      maxMemory:
        maxMemory === undefined
          ? 0
          : integerOption("maxMemory", maxMemory, { min: 1, max: Number.MAX_SAFE_INTEGER }),
      maxSequences: integerOption("maxSequences", maxSequences, { min: 1, max: 4096 }),
      ...(maxQueue === undefined
        ? {}
        : { maxQueue: integerOption("maxQueue", maxQueue, { min: 0, max: 1e9 }) }),
    },
    signal: signalOption(options.signal),
  };
}

/** The instruction set that UNIFLUID_ISA asks for, if it does. Throws as `isa` of a load. */
export function environmentIsa(addon: Pick<NativeAddon, "instructionSets">): string | undefined {
  return parseIsa("UNIFLUID_ISA", process.env.UNIFLUID_ISA || undefined, addon);
}

/** @param option Where the name comes from. */
function parseIsa(
  option: string,
  name: string | undefined,
  addon: Pick<NativeAddon, "instructionSets">,
): string | undefined {
  if (name === undefined) return undefined;
  const sets = addon.instructionSets();
  const set = sets.find((candidate) => candidate.name === name);
  if (!set) throw invalidOption(sets.map((s) => `"${s.name}"`).join(" or "), option, name);
  if (!set.supported) {
    const usable = sets.filter(({ supported }) => supported).map((s) => s.name);
    throw new DeviceError(
      "DEVICE_UNAVAILABLE",
      `this processor has no ${name} instructions, which ${option} asks for: it has ${usable.join(", ")}`,
    );
  }
  return name;
}

/** All cores that this process may use. */
export function defaultThreads(): number {
  return Math.min(availableParallelism(), MOST_THREADS);
}
