/** What `unifluid doctor --json` says: names that stay, numbers in bytes, null for what there is none of. */

import { availableParallelism, totalmem } from "node:os";
import sharp from "sharp";
import { type LoadedAddon, packageVersion } from "../addon.js";
import { shippedModels } from "../checkpoint/locate.js";
import { surveyDevices } from "../device.js";
import { environmentIsa } from "../load-options.js";
import type { NativeAddon } from "../native.js";
import { reportGpus } from "./devices.js";

export type MachineReport = Awaited<ReturnType<typeof reportMachine>>;

/** The document; without an addon, what can be told without one. Throws where UNIFLUID_ISA cannot be followed. */
export async function reportMachine(loaded: LoadedAddon | undefined) {
  return {
    version: packageVersion(),
    node: process.versions.node,
    platform: process.platform,
    arch: process.arch,
    threads: availableParallelism(),
    memory: { total: totalmem(), available: loaded?.addon.availableMemory() ?? null },
    binary: loaded ? { path: loaded.path, origin: originOf(loaded) } : null,
    instructionSet: loaded ? reportInstructionSet(loaded.addon) : null,
    device: loaded ? await reportDevice(loaded) : null,
    sharp: sharp.versions.sharp ?? null,
    libvips: sharp.versions.vips,
    models: await shippedModels(),
  };
}

/** Where the addon is from. */
function originOf({ path }: LoadedAddon): "environment" | "package" | "compiled" {
  if (process.env.UNIFLUID_NATIVE) return "environment";
  return /[\\/]prebuilds[\\/]/.test(path) ? "package" : "compiled";
}

/** The instruction set that loading a model would choose; `forced`: by UNIFLUID_ISA. */
function reportInstructionSet(addon: NativeAddon) {
  const forced = environmentIsa(addon);
  const known = addon.instructionSets().map(({ name, supported, bfloat16 }) => ({
    name,
    supported,
    /** What `dtype: "bfloat16"` is faster with. */
    bfloat16: supported && bfloat16,
  }));
  const best = known.filter(({ supported }) => supported).at(-1)!.name;
  return { name: forced ?? best, forced: forced !== undefined, known };
}

/** What `device: "auto"` means here: `kind` "cuda" where a model fits the GPU's memory. */
async function reportDevice(loaded: LoadedAddon) {
  const survey = await surveyDevices(loaded.addon, loaded.path);
  const { library, reason } = survey;
  const gpus = await reportGpus(loaded, survey);
  return {
    kind: reason ? "cpu" : "cuda",
    reason: reason ?? null,
    cudaLibrary: library ?? null,
    // In the engine's terms; not for scripts.
    gpus: gpus.map(({ memory: _, ...gpu }) => gpu),
  };
}
