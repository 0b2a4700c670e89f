/** What the native side itself checks of its arguments, and limits that lib/ knows as well. */
import { readFileSync } from "node:fs";
import { resolve } from "node:path";
import { findAddon } from "../../lib/addon";
import type { NativeTensor } from "../../lib/native";

const native = findAddon().addon;

const find = (tensor: Partial<NativeTensor>) =>
  native.findNonFinite({
    files: [],
    tensors: [{ name: "a", dtype: "F32", shape: [1], file: 0, offset: 0, ...tensor }],
  });

test("an array that grows while it is read is read as long as it was", async () => {
  const shape: unknown[] = [1];
  Object.defineProperty(shape, 0, {
    get() {
      shape.push("not a number");
      return 1;
    },
  });
  await expect(find({ shape: shape as number[] })).rejects.toMatchObject({
    code: "INVALID_CHECKPOINT",
    message: "tensor a names file 0 of 0",
  });
});

test("a number that may be 0 is not asked to be positive", () => {
  expect(() => find({ offset: -1 })).toThrow(
    expect.objectContaining({ message: "expected an integer that is not negative for offset" }),
  );
});

/** The number that a constant of a source stands for: `1 << 24`, `int64_t{1} << 24`, `2 ** 24` or digits. */
function limitIn(file: string, before: RegExp): number {
  const text = readFileSync(resolve(__dirname, "../..", file), "utf8");
  const number = /(?:int64_t\{(\d+)\}|(-?\d+))(?:\s*(<<|\*\*)\s*(\d+))?/;
  const found = new RegExp(before.source + number.source).exec(text);
  if (!found) throw new Error(`${file} has nothing like ${before}`);
  const [, wide, plain, operator, power] = found;
  const base = Number(wide ?? plain);
  if (power === undefined) return base;
  return operator === "<<" ? base * 2 ** Number(power) : base ** Number(power);
}

test.each([
  [
    2 ** 24,
    "new tokens",
    ["lib/generation-config.ts", /NEW_TOKENS = \{ min: 1, max: /],
    ["core/request.cpp", /kMostRows = /],
  ],
  [
    2 ** 15,
    "sides that are encoded",
    ["lib/latent-grid.ts", /MOST_ENCODED = /],
    ["core/request.cpp", /kLargestSide = /],
  ],
  [
    2 ** 20,
    "sides that are resized",
    ["lib/image-input.ts", /MAX_SIDE = /],
    ["core/image_resize.h", /kMaxResizeSide = /],
  ],
  [
    1024,
    "threads",
    ["lib/load-options.ts", /MOST_THREADS = /],
    ["cpu/backend.cpp", /kMostThreads = /],
    ["binding/convert.cpp", /threads > /],
  ],
  [
    1000,
    "the highest priority",
    ["lib/options.ts", /"priority", value, \{ min: -1000, max: /],
    ["core/request_queue.h", /kMaxPriority = /],
  ],
] as [number, string, ...[string, RegExp][]][])(
  "both sides allow up to %d: %s",
  (limit, _, ...places) => {
    for (const [file, before] of places)
      expect([file, limitIn(file, before)]).toEqual([file, limit]);
  },
);
