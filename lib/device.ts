/** Which device a model computes on, and why. */

import { existsSync } from "node:fs";
import { createRequire } from "node:module";
import { dirname, join, resolve } from "node:path";
import { DeviceError, fromNative, InsufficientMemoryError } from "./errors.js";
import { formatMebibytes, wholeMebibytes } from "./memory.js";
import type {
  NativeAddon,
  NativeComputeType,
  NativeCuda,
  NativeCudaDevice,
  NativeCudaMemory,
} from "./native.js";
import { invalidOption } from "./options.js";

/** "auto": the first usable GPU with room, otherwise the CPU. */
export type Device = "auto" | "cpu" | "cuda" | `cuda:${number}`;

/** A device as it was asked for. */
export type ParsedDevice = { kind: "auto" | "cpu" } | { kind: "cuda"; index: number };

/** What GPUs there are. */
export interface DeviceSurvey {
  /** The CUDA library that would be used. */
  library?: string;
  devices: readonly NativeCudaDevice[];
  /** Why no GPU can be used. */
  reason?: string;
}

/** Where a model will compute. */
export type ChosenDevice =
  | { kind: "cpu" /** Why not on a GPU, where that was possible to want. */; reason?: string }
  | {
      kind: "cuda";
      library: string;
      index: number;
      dtype: NativeComputeType;
      gpu: Gpu;
      /** Why "auto" did not take an earlier one. */
      passedOver?: string;
    };

/** A GPU at the time it was queried; memory in bytes. */
export interface Gpu {
  name: string;
  /** Compute capability: "9.0". */
  capability: string;
  /** Latest CUDA version its driver supports. */
  driver: string;
  /** CUDA version the library was built with. */
  runtime: string;
  totalMemory: number;
  freeMemory: number;
}

/** What a device is chosen for. */
export interface DeviceNeed {
  /** What messages call it: a checkpoint's directory. */
  name: string;
  /** What a GPU would compute in, and the bytes that it takes there at least. */
  dtype: NativeComputeType;
  bytes: number;
  /** Bytes that may be taken; 0: what the GPU has free. */
  maxMemory: number;
  /** Why "auto" must mean the CPU. */
  cpuReason?: string;
}

/** Where to look for GPUs. */
export interface Gpus {
  survey(): Promise<DeviceSurvey>;
  /** Asked of the GPU that is chosen and those that were passed over alone, since it opens a context there. */
  memory(library: string, index: number): Promise<NativeCudaMemory>;
}

/** The GPUs of this machine. */
export const gpusOf = (addon: NativeAddon, addonPath: string): Gpus => ({
  survey: () => surveyDevices(addon, addonPath),
  memory: (library, index) =>
    addon.cudaMemory(library, index).catch((failure) => {
      throw fromNative(failure);
    }),
});

/** The CUDA library's file: beside the addon, where `unifluid build --cuda` puts it, or in a package of its own. */
export const CUDA_LIBRARY = "unifluid_cuda.so";

/** Brings the library compiled. Large, and of use to few: whoever wants it installs it. */
const CUDA_PACKAGE = "@unifluid/cuda-linux-x64";

/** Compute capability that the kernels need: bfloat16 tensor cores and asynchronous copies. */
const LEAST_CAPABILITY = 8;

const DEVICE = /^(auto|cpu|cuda|cuda:\d{1,3})$/;

export const isDevice = (value: unknown): value is Device =>
  typeof value === "string" && DEVICE.test(value);

export function parseDevice(value: unknown): ParsedDevice {
  if (!isDevice(value))
    throw invalidOption('"auto", "cpu", "cuda" or "cuda:" and an index', "device", value);
  if (value === "auto" || value === "cpu") return { kind: value };
  return { kind: "cuda", index: Number(value.split(":")[1] ?? 0) };
}

/** The CUDA library: what UNIFLUID_CUDA_LIBRARY names, or the one beside the addon, or that of its package. */
function findLibrary(addonPath: string): { path?: string; explicit?: string } {
  const explicit = process.env.UNIFLUID_CUDA_LIBRARY;
  if (explicit) {
    const path = resolve(explicit);
    return existsSync(path) ? { path, explicit: path } : { explicit: path };
  }
  const beside = join(dirname(addonPath), CUDA_LIBRARY);
  if (existsSync(beside)) return { path: beside };
  // From the addon, which stays where node_modules is when a bundler moves the rest, and from this package, for an addon
  // that UNIFLUID_NATIVE names may lie anywhere.
  for (const from of [addonPath, __filename]) {
    try {
      return { path: createRequire(from).resolve(`${CUDA_PACKAGE}/${CUDA_LIBRARY}`) };
    } catch {}
  }
  return {};
}

/** How to come by a library here. */
const advice = (): string => {
  const compile = '"npx unifluid build --cuda" compiles it';
  const packaged = process.platform === "linux" && process.arch === "x64";
  return packaged ? `"npm install ${CUDA_PACKAGE}" brings it, ${compile}` : compile;
};

/** Looks for GPUs. Never throws: what stands in the way is the reason. */
export async function surveyDevices(
  addon: Pick<NativeAddon, "cudaDriverPresent" | "cudaDevices">,
  addonPath: string,
): Promise<DeviceSurvey> {
  const { path, explicit } = findLibrary(addonPath);
  // A library that was named may be one that needs no driver.
  if (!explicit && !addon.cudaDriverPresent())
    return { devices: [], reason: "no NVIDIA driver is here (libcuda.so.1)" };
  if (!path) {
    const reason = explicit
      ? `UNIFLUID_CUDA_LIBRARY names ${explicit}, which is not there`
      : `an NVIDIA driver is here, but no CUDA library (${CUDA_LIBRARY}): ${advice()}`;
    return { devices: [], reason };
  }
  try {
    const devices = await addon.cudaDevices(path);
    const usable = devices.some((device) => capable(device));
    if (devices.length === 0) return { library: path, devices, reason: "the driver finds no GPU" };
    return usable
      ? { library: path, devices }
      : { library: path, devices, reason: old(devices[0]!) };
  } catch (failure) {
    return { library: path, devices: [], reason: fromNative(failure).message };
  }
}

const capable = ({ capability }: NativeCudaDevice): boolean =>
  Number.parseInt(capability, 10) >= LEAST_CAPABILITY;

const old = ({ name, capability }: NativeCudaDevice): string =>
  `${name} has compute capability ${capability}, and ${LEAST_CAPABILITY}.0 is needed`;

/**
 * Chooses a device. Throws `DeviceError` where a GPU was asked for and cannot be used, and
 * `InsufficientMemoryError` where it has too little memory; "auto" takes the next GPU instead, and the CPU where none is
 * left. `from`: the index of the first GPU that "auto" may take.
 */
export async function chooseDevice(
  wanted: ParsedDevice,
  need: DeviceNeed,
  gpus: Gpus,
  from = 0,
): Promise<ChosenDevice> {
  if (wanted.kind === "cpu") return { kind: "cpu" };
  if (wanted.kind === "auto" && need.cpuReason) return { kind: "cpu", reason: need.cpuReason };
  const { library, devices, reason } = await gpus.survey();
  const here = `the GPUs here are ${listed(devices)}`;
  if (wanted.kind !== "cuda") {
    let first: string | undefined;
    for (const [index, device] of devices.entries()) {
      if (!library || index < from || !capable(device)) continue;
      const { chosen, why } = await lookAt(device, index, library, need, gpus);
      if (chosen) return { ...chosen, ...(first && { passedOver: first }) };
      first ??= why;
    }
    return { kind: "cpu", reason: first ?? reason ?? here };
  }
  const { index } = wanted;
  const device = devices[index];
  if (!library || !device || !capable(device)) {
    const why = reason ?? (device ? old(device) : here);
    throw new DeviceError("DEVICE_UNAVAILABLE", `device "cuda:${index}" is not available: ${why}`);
  }
  const { chosen, error } = await lookAt(device, index, library, need, gpus);
  if (!chosen) throw error;
  return chosen;
}

/**
 * Does `work` on the device that `chooseDevice` chooses. With "auto" also where a GPU's memory proves too small during
 * it, as others take some of it at the same time: then on the next GPU, or on the CPU. Throws what both do.
 */
export async function onChosenDevice<T>(
  wanted: ParsedDevice,
  need: DeviceNeed,
  gpus: Gpus,
  work: (chosen: ChosenDevice) => Promise<T>,
): Promise<T> {
  let reason: string | undefined;
  for (let from = 0; ; ) {
    const chosen = await chooseDevice(wanted, need, gpus, from);
    try {
      return await work(chosen.kind === "cpu" && reason ? { kind: "cpu", reason } : chosen);
    } catch (error) {
      const { code, message } = error as { code?: unknown; message: string };
      if (chosen.kind === "cpu" || wanted.kind !== "auto" || code !== "INSUFFICIENT_MEMORY")
        throw error;
      // What is told is what the first GPU lacked.
      reason ??=
        chosen.passedOver ??
        `${need.name} takes at least ${formatMebibytes(need.bytes)} on a GPU, and could not be loaded on ` +
          `${chosen.gpu.name}, of whose memory ${formatMebibytes(chosen.gpu.freeMemory)} seemed free: ${message}`;
      from = chosen.index + 1;
    }
  }
}

type LookedAt =
  | { chosen: ChosenDevice & { kind: "cuda" }; why?: undefined; error?: undefined }
  | { chosen?: undefined; why: string; error: unknown };

/** Whether a GPU has room. */
async function lookAt(
  device: NativeCudaDevice,
  index: number,
  library: string,
  need: DeviceNeed,
  gpus: Gpus,
): Promise<LookedAt> {
  let memory: NativeCudaMemory;
  try {
    memory = await gpus.memory(library, index);
  } catch (error) {
    return { why: `${device.name}: ${(error as Error).message}`, error };
  }
  const why = shortage(need, device.name, memory);
  if (why) return { why, error: new InsufficientMemoryError(why) };
  const gpu = describeGpu(device, memory);
  return { chosen: { kind: "cuda", library, index, dtype: need.dtype, gpu } };
}

/** What is told of a GPU. */
export const describeGpu = (
  { name, capability, driver, runtime, totalMemory }: NativeCudaDevice,
  { free }: NativeCudaMemory,
): Gpu => ({ name, capability, driver, runtime, totalMemory, freeMemory: free });

/** Why a GPU does not hold what is needed; undefined where it does. */
export function shortage(
  need: Pick<DeviceNeed, "name" | "bytes" | "maxMemory">,
  gpu: string,
  { free, usable, overhead }: NativeCudaMemory,
): string | undefined {
  const needed = need.bytes + overhead;
  const available = need.maxMemory ? Math.min(need.maxMemory, usable) : usable;
  if (needed <= available) return undefined;
  const bound = available < usable ? "by maxMemory, with" : "of";
  return (
    `${need.name} takes at least ${formatMebibytes(needed)} on a GPU, but ${wholeMebibytes(available)} are available ` +
    `on ${gpu}, ${bound} ${wholeMebibytes(free)} free`
  );
}

/** What the native side gets of the choice. `weights`: bytes that a model's will take. */
export const nativeCuda = (chosen: ChosenDevice, weights = 0): { cuda?: NativeCuda } =>
  chosen.kind === "cpu"
    ? {}
    : { cuda: { library: chosen.library, device: chosen.index, dtype: chosen.dtype, weights } };

const listed = (devices: readonly NativeCudaDevice[]): string =>
  devices.map(({ name }, i) => `cuda:${i} (${name})`).join(", ") || "none";
