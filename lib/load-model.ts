/** Loads a checkpoint into the engine, on the device that was asked for. */

import { activationBytes } from "./activation-memory.js";
import type { LoadedAddon } from "./addon.js";
import type { Checkpoint } from "./checkpoint/checkpoint.js";
import {
  type ChosenDevice,
  type DeviceNeed,
  gpusOf,
  nativeCuda,
  onChosenDevice,
} from "./device.js";
import { fromNative } from "./errors.js";
import type { ParsedLoadOptions } from "./load-options.js";
import { checkMemory, estimateMemory, weightsOnDevice } from "./memory.js";
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

/** Throws what `onChosenDevice` does, and `InsufficientMemoryError`. */
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
        {
          ...options,
          activations,
          ...nativeCuda(chosen, weightsOnDevice(checkpoint, parsed.dtype)),
        },
        requests.onEvents,
      )
      .catch((failure) => {
        throw fromNative(failure);
      });
    requests.attach(native);
    return { native, requests, chosen };
  };
  return onChosenDevice(device, deviceNeed(checkpoint, parsed), gpusOf(addon, path), load);
}
