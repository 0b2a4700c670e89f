/** What `unifluid doctor --json` says: names that stay, numbers in bytes, null for what there is none of. */

import { availableParallelism, totalmem } from "node:os";
import sharp from "sharp";
import { type LoadedAddon, packageVersion } from "../addon.js";
import { shippedModels } from "../checkpoint/locate.js";
import { surveyDevices } from "../device.js";
import { DeviceError } from "../errors.js";
import type { NativeAddon } from "../native.js";
import { reportGpus } from "./devices.js";

type InstructionSets = ReturnType<NativeAddon["instructionSets"]>;

/** Where the addon is from. */
export function originOf({ path }: LoadedAddon): "environment" | "package" | "compiled" {
  if (process.env.UNIFLUID_NATIVE) return "environment";
  return /[\\/]prebuilds[\\/]/.test(path) ? "package" : "compiled";
}

export const knownSets = (sets: InstructionSets): string =>
  sets
    .map(({ name, supported, bfloat16 }) => {
      if (!supported) return `${name} (not this processor)`;
      return bfloat16 ? `${name} (multiplies bfloat16)` : name;
    })
    .join(", ");

/** The instruction set that loading a model would choose. Throws `DEVICE_UNAVAILABLE` for one that cannot be. */
export function chosenInstructionSet(addon: NativeAddon): {
  name: string;
  /** By UNIFLUID_ISA. */
  forced: boolean;
  sets: InstructionSets;
} {
  const sets = addon.instructionSets();
  const usable = sets.filter(({ supported }) => supported).map(({ name }) => name);
  const forced = process.env.UNIFLUID_ISA;
  if (!forced) return { name: usable.at(-1)!, forced: false, sets };
  if (!usable.includes(forced)) {
    throw new DeviceError(
      "DEVICE_UNAVAILABLE",
      `UNIFLUID_ISA asks for ${JSON.stringify(forced)}, which cannot be used: of ${knownSets(sets)}`,
    );
  }
  return { name: forced, forced: true, sets };
}

/** The document; without an addon, what can be told without one. */
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

function reportInstructionSet(addon: NativeAddon) {
  const { name, forced, sets } = chosenInstructionSet(addon);
  const known = sets.map((set) => ({
    name: set.name,
    supported: set.supported,
    /** What `dtype: "bfloat16"` is faster with. */
    bfloat16: set.supported && set.bfloat16,
  }));
  return { name, forced, known };
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
