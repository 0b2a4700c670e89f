/** A drawing as events, for clients that asked for a stream: pictures of its middle, and its end. */

import type { DrawingProgress } from "../drawing-stream.js";
import { isUniFluidError } from "../errors.js";
import type { ImageFormat } from "../image.js";
import type { ServerEvent } from "./events.js";

/** What events call a drawing. */
export type DrawingKind = "image_generation" | "image_edit";

/** Seeds that a number would round are sent as text. */
export const seedText = (seed: number | bigint) => (typeof seed === "bigint" ? String(seed) : seed);

/** Pictures under way at once: the engine makes one in the step after that in which it was asked for. */
const AHEAD = 2;

/**
 * Events of a drawing: pictures of it at `partial` moments, evenly spread, then the image. Each also tells which cells
 * were drawn, so that a page can show the order. The drawing goes on while a picture is made, and does not wait for
 * it: the next one is of the drawing as it stands by then, and its end comes at once.
 */
export async function* drawingEvents(
  name: DrawingKind,
  steps: AsyncGenerator<DrawingProgress>,
  partial: number,
  format: ImageFormat,
  details: object,
): AsyncGenerator<ServerEvent> {
  const over = new AbortController();
  const momentOf = ({ done, total }: DrawingProgress) => Math.floor((done * (partial + 1)) / total);
  let sent = 0;
  let moment = 0;
  try {
    let next = watched(steps.next());
    const pictures: Promise<Preview>[] = [];
    let step: DrawingProgress | undefined;
    for (;;) {
      const arrived = await Promise.race([...pictures.slice(0, 1), next]);
      if ("base64" in arrived) {
        pictures.shift();
        if (arrived.base64 === undefined) {
          // Tried again with the next step.
          moment = Math.min(moment, momentOf(arrived.step) - 1);
          continue;
        }
        const type = `${name}.partial_image`;
        const unifluid = placeOf(arrived.step);
        const partial_image_index = sent++;
        const b64_json = arrived.base64;
        yield { event: type, data: { type, partial_image_index, b64_json, ...details, unifluid } };
      } else if (arrived.done) {
        return;
      } else {
        step = arrived.value;
        if (step.image) {
          over.abort();
          const type = `${name}.completed`;
          const b64_json = (await step.image.toBuffer(format)).toString("base64");
          const seed = seedText(step.image.seed!);
          const unifluid = placeOf(step);
          yield { event: type, data: { type, b64_json, ...details, seed, unifluid } };
          return;
        }
        next = watched(steps.next());
      }
      if (step && momentOf(step) > moment && pictures.length < AHEAD) {
        moment = momentOf(step);
        pictures.push(watched(preview(step, format, over.signal)));
      }
    }
  } finally {
    over.abort();
    await steps.return(undefined);
  }
}

/** What fails while nobody waits for it is told to who waits next, not to the process. */
function watched<T>(promise: Promise<T>): Promise<T> {
  promise.catch(() => {});
  return promise;
}

/** Where a drawing stands, as its events tell it. */
const placeOf = ({ cell, cells, done, total }: DrawingProgress) => ({
  cell,
  drawn: cells,
  position: done - 1,
  cells: total,
  grid: Math.sqrt(total),
});

interface Preview {
  step: DrawingProgress;
  /** The picture's file; none while the model has more important things to do. */
  base64: string | undefined;
}

async function preview(
  step: DrawingProgress,
  format: ImageFormat,
  signal: AbortSignal,
): Promise<Preview> {
  try {
    const picture = await step.preview({ signal });
    return { step, base64: (await picture.toBuffer(format)).toString("base64") };
  } catch (error) {
    if (isUniFluidError(error) && error.code === "QUEUE_FULL") return { step, base64: undefined };
    throw error;
  }
}
