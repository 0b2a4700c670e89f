/** GPUs for people: what `doctor` and `info` say of them. */

import { findAddon, type LoadedAddon } from "../addon.js";
import { type DeviceSurvey, describeGpu, type Gpu, gpusOf } from "../device.js";
import { NativeLoadError } from "../errors.js";
import type { NativeCudaMemory } from "../native.js";
import { formatBytes } from "./tables.js";

/** The addon, or why there is none. */
export function tryAddon(): { addon?: LoadedAddon; failure?: NativeLoadError } {
  try {
    return { addon: findAddon() };
  } catch (failure) {
    if (failure instanceof NativeLoadError) return { failure };
    throw failure;
  }
}

/** A GPU of this machine. */
export interface GpuReport extends Omit<Gpu, "freeMemory"> {
  /** Bytes; absent where they cannot be told. */
  freeMemory?: number;
  /** Why not. */
  problem?: string;
  memory?: NativeCudaMemory;
}

/** Looks at each GPU; opens a context on each. */
export async function reportGpus(
  { addon, path }: LoadedAddon,
  { library, devices }: DeviceSurvey,
): Promise<GpuReport[]> {
  const gpus = gpusOf(addon, path);
  return Promise.all(
    devices.map(async (device, index) => {
      try {
        const memory = await gpus.memory(library!, index);
        return { ...describeGpu(device, memory), memory };
      } catch (error) {
        const { name, capability, driver, runtime, totalMemory } = device;
        const problem = (error as Error).message;
        return { name, capability, driver, runtime, totalMemory, problem };
      }
    }),
  );
}

/** One line. */
export function gpuLine(gpu: GpuReport): string {
  const free =
    gpu.freeMemory === undefined
      ? `free memory unknown (${gpu.problem})`
      : `${formatBytes(gpu.freeMemory)} free`;
  return (
    `${gpu.name}, compute capability ${gpu.capability}, ${free} of ` +
    `${formatBytes(gpu.totalMemory)}, driver for CUDA ${gpu.driver}, library for ${gpu.runtime}`
  );
}
