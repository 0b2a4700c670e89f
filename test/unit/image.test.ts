/** `Image`: what it holds, and the files it writes. */

import {
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  realpathSync,
  rmSync,
  writeFileSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { pathToFileURL } from "node:url";
import { inspect } from "node:util";
import sharp from "sharp";
import { locateCheckpoint } from "../../lib/checkpoint/locate.js";
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

test("a relative path is of the folder that the process is in at the call", async () => {
  const home = process.cwd();
  const elsewhere = join(folder, "elsewhere");
  mkdirSync(elsewhere);
  try {
    process.chdir(folder);
    const saved = image.save("a.png");
    const refused = image.save("none/a.png");
    process.chdir(elsewhere);
    await saved;
    // Its name stays as it was given.
    await expect(refused).rejects.toMatchObject({ code: "ENOENT", path: "none/a.png" });
    expect(readdirSync(folder).sort()).toEqual(["a.png", "elsewhere"]);

    process.chdir(folder);
    const read = decodeImage("a.png");
    process.chdir(elsewhere);
    expect(await read).toMatchObject({ width: 8, height: 4 });
    await expect(decodeImage("a.png")).rejects.toThrow("there is no file a.png");

    process.chdir(folder);
    const located = locateCheckpoint("elsewhere");
    process.chdir(elsewhere);
    expect(await located).toBe(join(realpathSync(folder), "elsewhere"));
  } finally {
    process.chdir(home);
  }
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

test("an error of the file system is about the file that was asked for", async () => {
  mkdirSync(join(folder, "folder.png"));
  for (const [path, code] of [
    [join(folder, "missing", "a.png"), "ENOENT"],
    [join(folder, "folder.png"), "EISDIR"],
  ] as const) {
    const error = await image.save(path).catch((e: NodeJS.ErrnoException) => e);
    expect(error).toMatchObject({ code, path, errno: expect.any(Number) });
    expect((error as Error).message).toMatch(new RegExp(`^${code}: .+, write '${path}'$`));
  }
  expect(readdirSync(folder)).toEqual(["folder.png"]);
});

test("saves to a file URL, and refuses what names no file", async () => {
  const path = join(folder, "a #1.png");
  await image.save(pathToFileURL(path));
  expect((await decodeImage(path)).pixels).toEqual(pixels);
  for (const wrong of [new URL("https://example.org/a.png"), 5, undefined, {}, "\0.png"]) {
    await expect(image.save(wrong as string)).rejects.toMatchObject({ code: "INVALID_OPTION" });
  }
});

test("jpg is jpeg", async () => {
  expect(await image.toBuffer("jpg")).toEqual(await image.toBuffer("jpeg"));
});

test("what is shown and what JSON says of it are not its pixels", () => {
  expect(JSON.stringify({ image })).toBe('{"image":{"width":8,"height":4,"seed":7}}');
  const large = Image.fromPixels(pixels, 8, 4, { seed: 2n ** 64n - 1n });
  expect(JSON.stringify(large)).toBe('{"width":8,"height":4,"seed":"18446744073709551615"}');
  expect(inspect(image)).toBe("Image { width: 8, height: 4, seed: 7 }");
  expect(inspect(Image.fromPixels(pixels, 8, 4))).toBe("Image { width: 8, height: 4 }");
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

test.each([undefined, null, [1, 2, 3], new Float32Array(96), { length: 96 }])(
  "refuses %p for pixels",
  (wrong) => {
    expect(() => Image.fromPixels(wrong as never, 8, 4)).toThrow(
      expect.objectContaining({ code: "IMAGE_UNSUPPORTED_INPUT" }),
    );
  },
);

test("refuses options that are none", () => {
  for (const wrong of [null, 7, { sead: 7 }])
    expect(() => Image.fromPixels(pixels, 8, 4, wrong as never)).toThrow(
      expect.objectContaining({ code: "INVALID_OPTION" }),
    );
});

test("says so where its pixels were transferred", async () => {
  const gone = Image.fromPixels(Uint8Array.from(pixels), 8, 4);
  structuredClone(gone.pixels, { transfer: [gone.pixels.buffer] });
  await expect(gone.toBuffer()).rejects.toMatchObject({ code: "IMAGE_UNSUPPORTED_INPUT" });
});

test.each<[ImageFormat, number]>([
  ["webp", 16_383],
  ["jpeg", 65_500],
])("%s has sides of at most %p", async (format, most) => {
  const of = (width: number) => Image.fromPixels(new Uint8Array(width * 3), width, 1);
  expect((await sharp(await of(most).toBuffer(format)).metadata()).width).toBe(most);
  await expect(of(most + 1).toBuffer(format)).rejects.toMatchObject({ code: "IMAGE_TOO_LARGE" });
  expect((await sharp(await of(most + 1).toBuffer("png")).metadata()).width).toBe(most + 1);
});
