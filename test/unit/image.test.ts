/** `Image`: what it holds, and the files it writes. */

import { mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import sharp from "sharp";
import { Image, type ImageFormat } from "../../lib/image.js";
import { decodeImage } from "../../lib/image-input.js";

const pixels = Uint8Array.from({ length: 8 * 4 * 3 }, (_, i) => i * 2);
const image = Image.fromPixels(pixels, 8, 4, { seed: 7 });

let folder: string;
beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), "unifluid-image-"));
});
afterEach(() => rmSync(folder, { recursive: true, force: true }));

test.each<[string, ImageFormat]>([
  ["a.png", "png"],
  ["a.webp", "webp"],
  ["a.jpg", "jpeg"],
  ["a.b.JPEG", "jpeg"],
])("saves %s as %s and leaves nothing beside it", async (name, format) => {
  const path = join(folder, name);
  await image.save(path);
  expect(readdirSync(folder)).toEqual([name]);
  const written = readFileSync(path);
  expect((await sharp(written).metadata()).format).toBe(format);
  expect(written.equals(await image.toBuffer(format))).toBe(true);
  const decoded = await decodeImage(written);
  expect([decoded.width, decoded.height]).toEqual([8, 4]);
  const worst = Math.max(...decoded.pixels.map((value, i) => Math.abs(value - pixels[i]!)));
  expect(worst).toBeLessThanOrEqual(format === "png" ? 0 : 24);
});

test("the default format is PNG, without loss", async () => {
  const decoded = await decodeImage(await image.toBuffer());
  expect(decoded.pixels).toEqual(pixels);
});

test("an existing file is replaced", async () => {
  const path = join(folder, "a.png");
  writeFileSync(path, "old");
  await image.save(path);
  expect((await decodeImage(path)).pixels).toEqual(pixels);
});

test.each(["a.bmp", "a", "png", "a.png.txt", ".png"])("refuses the file name %s", async (name) => {
  await expect(image.save(join(folder, name))).rejects.toMatchObject({
    code: "INVALID_OPTION",
    message: expect.stringContaining(".webp"),
  });
  expect(readdirSync(folder)).toEqual([]);
});

test("refuses an unknown format", async () => {
  await expect(image.toBuffer("bmp" as never)).rejects.toMatchObject({ code: "INVALID_OPTION" });
});

test("a failed write leaves nothing behind", async () => {
  await expect(image.save(join(folder, "missing", "a.png"))).rejects.toMatchObject({
    code: "ENOENT",
  });
  // A folder is in the way.
  await expect(
    image.save(join(folder, "..", `${folder.split("/").pop()}/x.png/`)),
  ).rejects.toThrow();
  expect(readdirSync(folder)).toEqual([]);
});

test("seeds are numbers where that is exact", () => {
  const seeded = (seed?: number | bigint) => Image.fromPixels(pixels, 8, 4, { seed }).seed;
  expect(seeded(7n)).toBe(7);
  expect(seeded(7)).toBe(7);
  expect(seeded(2n ** 63n)).toBe(2n ** 63n);
  expect(seeded()).toBeUndefined();
});

test.each([
  [8, 5],
  [0, 4],
  [-8, -4],
  [1.5, 64 / 3],
])("refuses pixels that are not %p x %p", (width, height) => {
  expect(() => Image.fromPixels(pixels, width, height)).toThrow(
    expect.objectContaining({ code: "IMAGE_UNSUPPORTED_INPUT" }),
  );
});
