/** The native trainer on the device that was asked for, with errors as TypeScript has them. */
import { findAddon } from "../addon.js";
import {
  type ChosenDevice,
  type Device,
  gpusOf,
  nativeCuda,
  onChosenDevice,
  parseDevice,
} from "../device.js";
import { fromNative } from "../errors.js";
import { checkTrainingMemory, trainingBytes } from "../memory.js";
import type {
  NativeModelSpec,
  NativeStepResult,
  NativeTrainer,
  NativeTrainerOptions,
  NativeTrainerState,
} from "../native.js";

/**
 * Loads the weights into a trainer. `name`: what messages call it. `activations`: bytes that a step takes at least
 * beside the trainer's tensors, where they are known. Throws `INSUFFICIENT_MEMORY` where there is less.
 */
export async function createTrainer(
  name: string,
  spec: NativeModelSpec,
  wanted: Device,
  options: NativeTrainerOptions,
  activations = 0,
): Promise<NativeTrainer> {
  const { addon, path } = findAddon();
  const { maxMemory } = options;
  const { onHost, onDevice } = trainingBytes(spec.tensors, options);
  const need = { name, dtype: "float32", bytes: onDevice + activations, maxMemory } as const;
  const open = async (chosen: ChosenDevice): Promise<NativeTrainer> => {
    // Each allocation is checked as well; this says beforehand what they come to.
    if (chosen.kind === "cpu" && activations > 0)
      checkTrainingMemory(name, onHost + activations, maxMemory || addon.availableMemory());
    const native = await eventually(() =>
      addon.createTrainer(spec, { ...options, ...nativeCuda(chosen) }),
    );
    return new TrainerWithErrors(native);
  };
  return onChosenDevice(parseDevice(wanted), need, gpusOf(addon, path), open);
}

class TrainerWithErrors implements NativeTrainer {
  constructor(private readonly native: NativeTrainer) {}

  description(): string {
    return this.native.description();
  }
  step(...args: Parameters<NativeTrainer["step"]>): Promise<NativeStepResult> {
    return eventually(() => this.native.step(...args));
  }
  evaluate(...args: Parameters<NativeTrainer["evaluate"]>): Promise<NativeStepResult> {
    return eventually(() => this.native.evaluate(...args));
  }
  read(name: string, what: NativeTrainerState, type: "F32" | "BF16"): Uint8Array {
    return atOnce(() => this.native.read(name, what, type));
  }
  write(name: string, what: NativeTrainerState, bytes: Uint8Array): void {
    atOnce(() => this.native.write(name, what, bytes));
  }
  dispose(): void {
    this.native.dispose();
  }
}

function atOnce<T>(call: () => T): T {
  try {
    return call();
  } catch (error) {
    throw fromNative(error);
  }
}

async function eventually<T>(call: () => Promise<T>): Promise<T> {
  return atOnce(call).catch((error) => {
    throw fromNative(error);
  });
}
