/** What `generate` and `edit` share: several drawings together, each written and named as soon as it is done. */

import { resolve } from "node:path";
import { runAll } from "../bulk.js";
import type { DrawOptions } from "../call-options.js";
import { checkContactSheet, contactSheet } from "../contact-sheet.js";
import type { DrawingProgress } from "../drawing-stream.js";
import { type Image, type ImageFormat, imageFormatOf } from "../image.js";
import type { UniFluid } from "../model.js";
import { parseSeed, seedOfItem } from "../seed.js";
import { type Context, note, type OutputFlags, runCommand } from "./context.js";
import { UsageError } from "./exit-codes.js";
import { DRAW_FLAGS, drawOptions, type Flag, MODEL_FLAGS, OUTPUT_FLAGS } from "./flags.js";
import { type ModelFlags, withModel } from "./load.js";
import {
  checkFilesOutput,
  checkImageOutput,
  numberedName,
  STANDARD,
  write,
  writeFileOutput,
  writeJson,
} from "./output.js";
import { startDrawing } from "./progress.js";
import { type NamedInput, Outcomes } from "./several.js";

export interface DrawFlags extends ModelFlags, OutputFlags, DrawOptions {
  out: string;
  format: ImageFormat;
  n: number;
  grid?: string;
}

export const DRAW_COMMAND_FLAGS: readonly Flag[] = [
  ...DRAW_FLAGS,
  "n",
  "format",
  "grid",
  ...MODEL_FLAGS,
  ...OUTPUT_FLAGS,
];

/** Drawings under way at once: as many as the engine runs, and as many that are ready to join. */
const TOGETHER = 32;

/** What is to be drawn. Its label is that on a contact sheet too. */
export interface Drawing extends NamedInput {
  start(model: UniFluid, options: DrawOptions): AsyncIterable<DrawingProgress>;
}

/** Runs a drawing command: `read` tells what is to be drawn. */
export function runDrawings(
  flags: DrawFlags,
  read: (context: Context) => Promise<Drawing[]>,
): Promise<void> {
  return runCommand(flags, async (context) => {
    const { out, grid } = flags;
    if (out !== STANDARD) imageFormatOf(out);
    if (grid !== undefined) imageFormatOf(grid);
    const drawings = await read(context);
    const count = drawings.length * flags.n;
    checkImageOutput(out, count, context.json);
    const names = Array.from({ length: count }, (_, i) => numberedName(out, i, count));
    if (out !== STANDARD) await checkFilesOutput(names);
    if (grid !== undefined) {
      const taken = names.find((name) => resolve(name) === resolve(grid));
      if (taken !== undefined) throw new UsageError(`--grid would overwrite the image ${taken}`);
      await checkFilesOutput([grid]);
    }
    await withModel(flags, context.signal, (model) => drawAll(model, drawings, flags, context));
  });
}

async function drawAll(
  model: UniFluid,
  drawings: readonly Drawing[],
  flags: DrawFlags,
  context: Context,
): Promise<void> {
  const started = performance.now();
  const { out, n, grid } = flags;
  const { signal } = context;
  const options = drawOptions(flags, signal);
  const seed = parseSeed(options.seed);
  const count = drawings.length * n;
  const format = out === STANDARD ? flags.format : imageFormatOf(out);
  const labelOf = (drawing: Drawing, index: number) =>
    `${drawing.label} (${seedOfItem(seed, index)})`;
  if (grid !== undefined) checkContactSheet([...each()].map(labelOf), imageFormatOf(grid));
  const progress = startDrawing(context, count * (model.info.image?.grid ?? 0) ** 2);
  const draw = async (drawing: Drawing, index: number, ends: AbortSignal) => {
    const own = { ...options, seed: seedOfItem(seed, index), signal: ends };
    let image: Image | undefined;
    for await (const step of drawing.start(model, own)) {
      progress.step();
      image = step.image;
    }
    return { image: image!, bytes: await image!.toBuffer(format) };
  };
  function* each() {
    for (const drawing of drawings) for (let i = 0; i < n; i++) yield drawing;
  }
  const outcomes = new Outcomes(context, drawings.length);
  const sheet: { image: Image; label: string }[] = [];
  const settings = { concurrency: TOGETHER, ordered: true, stopOnError: false, signal };
  try {
    for await (const result of runAll(each(), draw, settings)) {
      const { index, item: drawing, value, error } = result;
      if (error) {
        progress.clear();
        outcomes.fail(error, drawing);
        continue;
      }
      // Written when its turn comes, and named at once: whatever ends the command, what is there was told.
      const { image, bytes } = value;
      const { width, height } = image;
      const file = numberedName(out, index, count);
      await writeFileOutput(file, bytes);
      outcomes.done++;
      progress.clear();
      if (context.json) {
        await writeJson({ ...drawing.describe, seed: image.seed, width, height, file });
      } else if (file !== STANDARD) {
        await write(`${file}\n`);
      }
      if (grid !== undefined) sheet.push({ image, label: labelOf(drawing, index) });
    }
  } finally {
    progress.stop();
  }
  if (grid !== undefined && sheet.length > 0) {
    const bytes = await (await contactSheet(sheet)).toBuffer(imageFormatOf(grid));
    await writeFileOutput(grid, bytes);
    if (context.json) await writeJson({ grid });
    // Standard output is the image, where that goes there.
    else if (out !== STANDARD) await write(`${grid}\n`);
  }
  const seconds = ((performance.now() - started) / 1000).toFixed(1);
  const failed = outcomes.failed > 0 ? `, ${outcomes.failed} failed` : "";
  const what = count === 1 ? `seed ${seed}` : `${outcomes.done} images from seed ${seed}${failed}`;
  note(context, `${what}, ${seconds} s`);
  outcomes.end();
}
