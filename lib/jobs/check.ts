/** What can be told of a record without a model's weights: whether it would fail. */

import type { Checkpoint } from "../checkpoint/checkpoint.js";
import { UniFluidError } from "../errors.js";
import { imageSettings, mostSteps, textSettings } from "../generation-config.js";
import { checkImage } from "../image-input.js";
import { checkLength, prefixRows } from "../prefixes.js";
import { parseSeed } from "../seed.js";
import { requireAbility } from "../tasks.js";
import type { RawRecord } from "./reader.js";
import { imagePath, type Job, type JobDefaults, jobOf } from "./record.js";

export interface CheckOptions {
  defaults: JobDefaults;
  /** Folder that relative image paths start from. */
  images: string;
  signal?: AbortSignal;
}

/** Checks records against a checkpoint. */
export class JobChecker {
  constructor(private readonly checkpoint: Checkpoint) {}

  /**
   * The error that doing a record would end with, as far as its fields, its options, the length of its text and the
   * header of its image tell. Throws what is no fault of the record, and the signal's reason.
   */
  async check(record: RawRecord, options: CheckOptions): Promise<UniFluidError | undefined> {
    const { defaults, images, signal } = options;
    try {
      if ("error" in record) throw record.error;
      const job = jobOf(record.value, record.index, defaults, record.line);
      requireAbility(this.checkpoint, job.task);
      this.checkOptions(job);
      if (job.image !== undefined) await checkImage(imagePath(job.image, images), { signal });
      return undefined;
    } catch (error) {
      if (error instanceof UniFluidError) return error;
      throw error;
    }
  }

  private checkOptions({ task, text, options }: Job): void {
    const { spec, generation } = this.checkpoint;
    const { seed, ...settings } = options;
    parseSeed(seed);
    const rows = prefixRows(this.checkpoint, task, text);
    if (task === "generate" || task === "edit") {
      imageSettings(generation.image, settings, mostSteps(spec.image!));
      checkLength(this.checkpoint, rows, spec.image!.grid ** 2);
    } else {
      const { maxNewTokens } = textSettings(generation.text, settings);
      // A limit that was asked for must fit; the default one gives way to the prompt.
      checkLength(this.checkpoint, rows, settings.maxNewTokens === undefined ? 1 : maxNewTokens);
    }
  }
}
