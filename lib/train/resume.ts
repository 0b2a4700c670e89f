/** Where a run goes on after a stop: the last checkpoint that is whole. */
import { type Checkpoint, readCheckpoint } from "../checkpoint/checkpoint.js";
import { locateCheckpoint } from "../checkpoint/locate.js";
import {
  CheckpointNotFoundError,
  InvalidCheckpointError,
  InvalidConfigError,
  InvalidSafetensorsError,
  MissingTensorError,
  TensorShapeError,
  TokenizerMismatchError,
  UnexpectedTensorError,
} from "../errors.js";
import { systemCode } from "../system-code.js";
import type { DataState, RunFolder } from "./run-folder.js";
import type { Subject } from "./subject.js";

export interface Restored {
  step: number;
  data: DataState;
}

const DAMAGES = [
  InvalidSafetensorsError,
  InvalidCheckpointError,
  CheckpointNotFoundError,
  InvalidConfigError,
  TokenizerMismatchError,
  MissingTensorError,
  UnexpectedTensorError,
  TensorShapeError,
];
/** What the system says of files that are not there, or not there any more. */
const LOST = new Set(["ENOENT", "ENOTDIR", "EISDIR", "EIO"]);

/**
 * Whether a checkpoint is to blame: a file of it is cut off, empty, missing or not to be read. Where the system could
 * not read one for another reason, such as too many open files, it is not.
 */
function isDamage(error: unknown): boolean {
  const code = systemCode(error) ?? systemCode((error as Error).cause);
  if (code !== undefined) return LOST.has(code);
  return DAMAGES.some((damage) => error instanceof damage);
}

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
      onNote(`${error.message}; the run continues with ${own.directory}`);
      return own;
    }
    throw error;
  }
}

/**
 * Puts the state of the last whole checkpoint into a subject's trainer; undefined: the run has none yet. Damaged ones
 * behind it are told to `onNote` and set aside. `average`: as `RunFolder.restore` has it. Throws what is wrong with the
 * last one where all are damaged; then none is touched.
 */
export async function restoreLast(
  folder: RunFolder,
  subject: Subject,
  average: boolean,
  onNote: (message: string) => void,
): Promise<Restored | undefined> {
  const damaged: { step: number; error: Error }[] = [];
  for (const step of (await folder.steps()).reverse()) {
    try {
      const data = await folder.dataState(step);
      await subject.check(folder.checkpoint(step));
      await folder.restore(step, subject, average);
      for (const { step: bad, error } of damaged)
        onNote(
          `${folder.checkpoint(bad)} is damaged and set aside: ${error.message}; the run resumes from step ${step}`,
        );
      if (damaged.length > 0) await folder.setAside(step + 1, "damaged");
      if (!data.positions)
        onNote(
          `${folder.checkpoint(step)} is of an earlier version, which did not store positions in the data: manifests are ` +
            "read on from the position that the steps imply",
        );
      return { step, data };
    } catch (error) {
      if (!isDamage(error)) throw error;
      damaged.push({ step, error: error as Error });
    }
  }
  if (damaged.length > 0) throw (damaged[0] as { error: Error }).error;
  return undefined;
}
