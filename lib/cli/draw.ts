/** What `generate` and `edit` share: several drawings together, written as each is done. */

import { contactSheet } from "../contact-sheet.js";
import type { DrawingProgress } from "../drawing-stream.js";
import { type Image, type ImageFormat, imageFormatOf } from "../image.js";
import type { DrawOptions, UniFluid } from "../model.js";
import { parseSeed, seedOfItem } from "../seed.js";
import { type Context, note, type OutputFlags, runCommand } from "./context.js";
import { DRAW_FLAGS, drawOptions, type Flag, MODEL_FLAGS, OUTPUT_FLAGS } from "./flags.js";
import { type ModelFlags, withModel } from "./load.js";
import {
  checkImageOutput,
  numberedName,
  STANDARD,
  write,
  writeImage,
  writeJson,
} from "./output.js";
import { startProgress } from "./progress.js";

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

/** One image to draw. */
export interface Drawing {
  /** Prompt or instruction: the label on a contact sheet. */
  label: string;
  /** What its JSON document says besides the seed, the size and the file. */
  describe: Record<string, unknown>;
  start(model: UniFluid, options: DrawOptions): AsyncIterable<DrawingProgress>;
}

/** Runs a drawing command: `drawings` reads what is to be drawn. */
export function runDrawings(
  flags: DrawFlags,
  drawings: (context: Context) => Promise<Drawing[]>,
): Promise<void> {
  return runCommand(flags, async (context) => {
    if (flags.out !== STANDARD) imageFormatOf(flags.out);
    if (flags.grid !== undefined) imageFormatOf(flags.grid);
    const once = await drawings(context);
    const all = once.flatMap((drawing) => Array<Drawing>(flags.n).fill(drawing));
    checkImageOutput(flags.out, all.length, context.json);
    await withModel(flags, context.signal, (model) => drawAll(model, all, flags, context));
  });
}

async function drawAll(
  model: UniFluid,
  drawings: readonly Drawing[],
  flags: DrawFlags,
  context: Context,
): Promise<void> {
  const started = performance.now();
  const options = drawOptions(flags, context.signal);
  const seed = parseSeed(options.seed);
  const progress = startProgress(context, drawings.length * (model.info.image?.grid ?? 0) ** 2);
  const draw = async (drawing: Drawing, index: number): Promise<Image> => {
    const steps = drawing.start(model, { ...options, seed: seedOfItem(seed, index) });
    let image: Image | undefined;
    for await (const step of steps) {
      progress.advance();
      image = step.image;
    }
    await writeImage(image!, numberedName(flags.out, index, drawings.length), flags.format);
    return image!;
  };
  // The engine works on all of them together; what it cannot hold at once waits its turn.
  const images = await Promise.all(drawings.map(draw)).finally(() => progress.stop());

  for (const [index, image] of images.entries()) {
    const file = numberedName(flags.out, index, images.length);
    const { width, height } = image;
    if (context.json) {
      await writeJson({ ...drawings[index]!.describe, seed: image.seed, width, height, file });
    } else if (file !== STANDARD) {
      await write(`${file}\n`);
    }
  }
  if (flags.grid !== undefined) {
    const labelled = images.map((image, i) => ({
      image,
      label: `${drawings[i]!.label} (${image.seed})`,
    }));
    await writeImage(await contactSheet(labelled), flags.grid, imageFormatOf(flags.grid));
    if (context.json) await writeJson({ grid: flags.grid });
    else await write(`${flags.grid}\n`);
  }
  const seconds = ((performance.now() - started) / 1000).toFixed(1);
  const what = images.length === 1 ? `seed ${seed}` : `${images.length} images from seed ${seed}`;
  note(context, `${what}, ${seconds} s`);
}
