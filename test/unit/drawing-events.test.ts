/** A drawing as events: the pictures of its middle, and its end, which waits for none of them. */

import { leavable } from "../../lib/abort";
import type { DrawingProgress } from "../../lib/drawing-stream";
import { QueueFullError } from "../../lib/errors";
import { drawingEvents } from "../../lib/server/drawing-events";
import type { ServerEvent } from "../../lib/server/events";

const TOTAL = 8;
const file = (text: string) => ({ toBuffer: async () => Buffer.from(text) });
type Preview = (options: { signal: AbortSignal }) => Promise<unknown>;

/** A drawing whose steps the test makes. */
function drawing(preview: Preview[]) {
  let wake = () => {};
  let done = 0;
  let left = false;
  const asked: number[] = [];
  const waiting: unknown[] = [];
  async function* made(signal: AbortSignal) {
    signal.addEventListener("abort", () => wake());
    try {
      while (!signal.aborted) {
        while (waiting.length > 0) yield waiting.shift() as DrawingProgress;
        await new Promise<void>((resolve) => {
          wake = resolve;
        });
      }
    } finally {
      left = true;
    }
  }
  const steps = () => leavable((work) => made(work.signal));
  const draw = (count = 1) => {
    for (let i = 0; i < count; i++) {
      const now = ++done;
      waiting.push({
        done: now,
        total: TOTAL,
        cell: now - 1,
        cells: Array.from({ length: now }, (_, cell) => cell),
        image: now === TOTAL ? { ...file("whole"), seed: 7n } : undefined,
        preview: (options: { signal: AbortSignal }) => {
          asked.push(now);
          return preview.shift()!(options);
        },
      });
    }
    wake();
  };
  return { steps, draw, asked, left: () => left };
}

const events = (steps: AsyncGenerator<DrawingProgress>, partial: number) =>
  drawingEvents("image_generation", steps, partial, "png", {});

/** What an event says: its kind, its picture and how many cells were drawn. */
function told({ value }: IteratorResult<ServerEvent>) {
  const { type, b64_json, unifluid, partial_image_index } = value.data;
  const picture = Buffer.from(b64_json, "base64").toString();
  return [type.split(".")[1], picture, unifluid.drawn.length, partial_image_index];
}

const ready =
  (text: string): Preview =>
  async () =>
    file(text);
const turn = () => new Promise((resolve) => setImmediate(resolve));

test("a picture that has to wait does not hold up the end, and is given up", async () => {
  let aborted = false;
  const never: Preview = ({ signal }) =>
    new Promise((_, reject) => {
      signal.addEventListener("abort", () => {
        aborted = true;
        reject(signal.reason);
      });
    });
  const { steps, draw, left } = drawing([never]);
  const stream = events(steps(), 1);
  const first = stream.next();
  draw(TOTAL);
  expect(told(await first)).toEqual(["completed", "whole", TOTAL, undefined]);
  expect(aborted).toBe(true);
  expect(await stream.next()).toEqual({ done: true, value: undefined });
  expect(left()).toBe(true);
});

test("pictures come at their moments, or of the drawing as it stands when others were waited for", async () => {
  const finish: ((picture: unknown) => void)[] = [];
  const slow: Preview = () => new Promise((resolve) => finish.push(resolve));
  const { steps, draw, asked } = drawing([ready("a"), slow, slow, ready("d")]);
  const stream = events(steps(), TOTAL - 1);
  draw();
  expect(told(await stream.next())).toEqual(["partial_image", "a", 1, 0]);
  const second = stream.next();
  for (const count of [1, 1, 3]) {
    draw(count);
    await turn();
  }
  finish[1]!(file("c"));
  finish[0]!(file("b"));
  expect(told(await second)).toEqual(["partial_image", "b", 2, 1]);
  expect(told(await stream.next())).toEqual(["partial_image", "c", 3, 2]);
  expect(told(await stream.next())).toEqual(["partial_image", "d", 6, 3]);
  expect(asked).toEqual([1, 2, 3, 6]);
  await stream.return(undefined);
});

test("one for which there is no place is tried again at the next step", async () => {
  const full: Preview = async () => {
    throw new QueueFullError("full");
  };
  const { steps, draw, asked } = drawing([full, ready("a")]);
  const stream = events(steps(), 1);
  const first = stream.next();
  draw(TOTAL / 2);
  await turn();
  draw();
  expect(told(await first)).toEqual(["partial_image", "a", TOTAL / 2 + 1, 0]);
  expect(asked).toEqual([TOTAL / 2, TOTAL / 2 + 1]);
  draw(3);
  expect(told(await stream.next())[0]).toBe("completed");
});

test("what fails is thrown, of a picture and of the drawing", async () => {
  const { steps, draw } = drawing([() => Promise.reject(new Error("broken"))]);
  const stream = events(steps(), TOTAL - 1);
  draw(2);
  await expect(stream.next()).rejects.toThrow("broken");
  async function* failing(): AsyncGenerator<DrawingProgress> {
    yield* [];
    throw new Error("gone");
  }
  await expect(events(failing(), 3).next()).rejects.toThrow("gone");
});
