/** Loads a checkpoint into the engine, on the device that was asked for. */

import { activationBytes } from "./activation-memory.js";
import type { LoadedAddon } from "./addon.js";
import type { Checkpoint } from "./checkpoint/checkpoint.js";
import { type ChosenDevice, chooseDevice, type DeviceNeed, gpusOf, nativeCuda } from "./device.js";
import { fromNative } from "./errors.js";
import type { ParsedLoadOptions } from "./load-options.js";
import { checkMemory, estimateMemory, formatMebibytes } from "./memory.js";
import type { NativeModel } from "./native.js";
import { Requests } from "./requests.js";

export interface LoadedModel {
  native: NativeModel;
  requests: Requests;
  /** Where it computes. */
  chosen: ChosenDevice;
}

/** What loading a checkpoint so needs of a GPU. */
export const deviceNeed = (
  checkpoint: Checkpoint,
  { native: { maxMemory }, dtype, cpuReason }: ParsedLoadOptions,
): DeviceNeed => ({
  name: checkpoint.directory,
  dtype,
  bytes: estimateMemory(checkpoint, dtype).onDevice,
  maxMemory,
  cpuReason,
});

/**
 * With device "auto" also where the GPU's memory proves too small while the weights are loaded, as others take some of
 * it at the same time: on the next GPU then, or on the CPU. Throws what `chooseDevice` does, and `InsufficientMemoryError`.
 */
export async function loadModel(
  checkpoint: Checkpoint,
  { addon, path }: LoadedAddon,
  parsed: ParsedLoadOptions,
): Promise<LoadedModel> {
  const { native: options, device } = parsed;
  const load = async (chosen: ChosenDevice): Promise<LoadedModel> => {
    if (chosen.kind === "cpu")
      checkMemory(checkpoint, options.maxMemory || addon.availableMemory());
    const requests = new Requests();
    const activations = activationBytes(checkpoint);
    const native = await addon
      .loadModel(
        checkpoint.spec,
        { ...options, activations, ...nativeCuda(chosen) },
        requests.onEvents,
      )
      .catch((failure) => {
        throw fromNative(failure);
      });
    requests.attach(native);
    return { native, requests, chosen };
  };
  const need = deviceNeed(checkpoint, parsed);
  const gpus = gpusOf(addon, path);
  let reason: string | undefined;
  for (let from = 0; ; ) {
    const chosen = await chooseDevice(device, need, gpus, from);
    try {
      return await load(chosen.kind === "cpu" && reason ? { kind: "cpu", reason } : chosen);
    } catch (error) {
      const { code, message } = error as { code?: unknown; message: string };
      if (chosen.kind === "cpu" || device.kind !== "auto" || code !== "INSUFFICIENT_MEMORY")
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
