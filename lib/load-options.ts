/** Options of `UniFluid.load`, checked and completed. */

import { availableParallelism } from "node:os";
import { DeviceError } from "./errors.js";
import type { NativeAddon, NativeLoadOptions } from "./native.js";
import {
  choiceOption,
  integerOption,
  invalidOption,
  optionsObject,
  signalOption,
} from "./options.js";

export interface LoadOptions {
  /** "auto": the best that is there. This build computes on the CPU. */
  device?: "auto" | "cpu" | "cuda";
  /** Threads to compute with; default: the machine's cores. */
  threads?: number;
  /** Instruction set, by its name in `unifluid doctor`; default: the environment's UNIFLUID_ISA, or the best. */
  isa?: string;
  /**
   * Bytes that may be allocated beside the mapped weights, for caches, activations and repacked weights;
   * default: what the system has free.
   */
  maxMemory?: number;
  /** Requests that may run at once; more wait their turn. Default 16. */
  maxSequences?: number;
  /**
   * Requests that may wait for their turn; one more is refused with code `QUEUE_FULL` before any work. 0: only
   * what can run at once is taken. Default: any number.
   */
  maxQueue?: number;
  /** Gives up loading. */
  signal?: AbortSignal;
}

const NAMES = [
  "device",
  "threads",
  "isa",
  "maxMemory",
  "maxSequences",
  "maxQueue",
  "signal",
] as const;
const MOST_THREADS = 1024;

export interface ParsedLoadOptions {
  native: Omit<NativeLoadOptions, "activations">;
  signal?: AbortSignal;
}

export function parseLoadOptions(
  given: LoadOptions | undefined,
  addon: Pick<NativeAddon, "instructionSets">,
): ParsedLoadOptions {
  const options = optionsObject(given, NAMES);
  const { threads, maxMemory, maxSequences = 16, maxQueue } = options;
  const device = choiceOption("device", options.device ?? "auto", ["auto", "cpu", "cuda"]);
  if (device === "cuda") {
    throw new DeviceError(
      "DEVICE_UNAVAILABLE",
      'device "cuda" is not available: this build has no CUDA library; use "cpu" or "auto"',
    );
  }
  return {
    native: {
      threads:
        threads === undefined
          ? defaultThreads()
          : integerOption("threads", threads, { min: 1, max: MOST_THREADS }),
      isa: parseIsa(options.isa ?? (process.env.UNIFLUID_ISA || undefined), addon),
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

function parseIsa(
  name: string | undefined,
  addon: Pick<NativeAddon, "instructionSets">,
): string | undefined {
  if (name === undefined) return undefined;
  const sets = addon.instructionSets();
  const set = sets.find((candidate) => candidate.name === name);
  if (!set) throw invalidOption(sets.map((s) => `"${s.name}"`).join(" or "), "isa", name);
  if (!set.supported) {
    throw new DeviceError("DEVICE_UNAVAILABLE", `this processor has no ${name} instructions`);
  }
  return name;
}

/** All cores that this process may use. */
export function defaultThreads(): number {
  return Math.min(availableParallelism(), MOST_THREADS);
}
