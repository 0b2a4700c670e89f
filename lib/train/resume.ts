/** Where a run goes on after a stop: the last checkpoint that is whole. */
import { type Checkpoint, readCheckpoint } from "../checkpoint/checkpoint.js";
import { locateCheckpoint } from "../checkpoint/locate.js";
import {
  CheckpointNotFoundError,
  InvalidCheckpointError,
  InvalidSafetensorsError,
} from "../errors.js";
import type { NativeTensor, NativeTrainer } from "../native.js";
import type { DataState, RunFolder } from "./run-folder.js";

export interface Restored {
  step: number;
  data: DataState;
}

/** Whether a checkpoint is to blame: a file of it is cut off, empty, missing or not to be read. */
const isDamage = (error: unknown) =>
  error instanceof InvalidSafetensorsError ||
  error instanceof InvalidCheckpointError ||
  error instanceof CheckpointNotFoundError ||
  (error as NodeJS.ErrnoException).code === "EIO";

/**
 * The model that a run begins with. Where it is gone, a run that goes on takes the last of its own checkpoints that
 * `fits`, which has all but the weights as they were, and tells `onNote`.
 */
export async function startingCheckpoint(
  model: string,
  folder: RunFolder,
  fits: (own: Checkpoint) => boolean,
  onNote: (message: string) => void,
): Promise<Checkpoint> {
  try {
    return await readCheckpoint(await locateCheckpoint(model));
  } catch (error) {
    if (!(error instanceof CheckpointNotFoundError)) throw error;
    for (const step of (await folder.steps()).reverse()) {
      const own = await readCheckpoint(folder.checkpoint(step)).catch(() => undefined);
      if (!own || !fits(own)) continue;
      onNote(`${error.message}; the run goes on with what ${own.directory} has`);
      return own;
    }
    throw error;
  }
}

/**
 * Puts the state of the last whole checkpoint into a trainer; undefined: the run has none yet. Damaged ones behind it
 * are told to `onNote` and set aside. `average`: as `RunFolder.restore` has it. Throws what is wrong with the last one
 * where all are damaged; then none is touched.
 */
export async function restoreLast(
  folder: RunFolder,
  trainer: NativeTrainer,
  tensors: readonly NativeTensor[],
  average: boolean,
  onNote: (message: string) => void,
): Promise<Restored | undefined> {
  const damaged: { step: number; error: Error }[] = [];
  for (const step of (await folder.steps()).reverse()) {
    try {
      const data = await folder.dataState(step);
      await folder.restore(step, trainer, tensors, average);
      for (const { step: bad, error } of damaged)
        onNote(
          `${folder.checkpoint(bad)} is damaged and set aside: ${error.message}; the run goes on from step ${step}`,
        );
      if (damaged.length > 0) await folder.setAside(step + 1, "damaged");
      return { step, data };
    } catch (error) {
      if (!isDamage(error)) throw error;
      damaged.push({ step, error: error as Error });
    }
  }
  if (damaged.length > 0) throw (damaged[0] as { error: Error }).error;
  return undefined;
}
