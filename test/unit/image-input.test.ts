/** Every way to give an image, and every way to give none. */

import { execFileSync } from "node:child_process";
import { getEventListeners } from "node:events";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { open } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { pathToFileURL } from "node:url";
import sharp, { type Sharp } from "sharp";
import { InvalidImageError } from "../../lib/errors.js";
import { Image } from "../../lib/image.js";
import { checkImage, decodeImage, type ImageInput } from "../../lib/image-input.js";
import { turnsDuring } from "../support/turns";

/** A smooth picture, so that lossy formats stay close to it. */
const width = 24;
const height = 16;
const pixels = new Uint8Array(width * height * 3);
for (let y = 0; y < height; y++) {
  for (let x = 0; x < width; x++) pixels.set([x * 10, y * 15, 128], (y * width + x) * 3);
}
const picture = (): Sharp => sharp(Buffer.from(pixels), { raw: { width, height, channels: 3 } });

/** An image of whatever content. */
const BLANK = { width: 1, height: 1, channels: 3, background: "red" } as const;

const folder = mkdtempSync(join(tmpdir(), "unifluid-image-"));
afterAll(() => rmSync(folder, { recursive: true, force: true }));

function file(name: string, bytes: Uint8Array | string): string {
  const path = join(folder, name);
  writeFileSync(path, bytes);
  return path;
}

/** The code of the error that decoding ends with, and its message. */
async function failure(input: ImageInput, maxPixels?: number): Promise<[string, string]> {
  const error = await decodeImage(input, { maxPixels }).then(
    () => undefined,
    (e: unknown) => e,
  );
  if (!(error instanceof InvalidImageError)) throw new Error(`no InvalidImageError but ${error}`);
  return [error.code, error.message];
}

function largestDifference(a: Uint8Array, b: Uint8Array): number {
  expect(a.length).toBe(b.length);
  return a.reduce((most, value, i) => Math.max(most, Math.abs(value - b[i]!)), 0);
}

describe("inputs", () => {
  const same = { pixels, width, height };
  let png: Buffer;
  let path: string;
  beforeAll(async () => {
    png = await picture().png().toBuffer();
    path = file("with space #1.png", png);
  });

  test.each<[string, () => ImageInput]>([
    ["a path", () => path],
    ["a file URL", () => pathToFileURL(path)],
    ["a file URL as a string", () => pathToFileURL(path).href],
    ["bytes", () => new Uint8Array(png)],
    ["a Buffer", () => png],
    [
      "a DataView within a larger buffer",
      () => {
        const buffer = new ArrayBuffer(png.length + 7);
        new Uint8Array(buffer).set(png, 5);
        return new DataView(buffer, 5, png.length);
      },
    ],
    ["an ArrayBuffer", () => new Uint8Array(png).buffer],
    ["a data URI", () => `data:image/png;base64,${png.toString("base64")}`],
    [
      "a percent-encoded data URI",
      () => `data:image/png,${[...png].map((b) => `%${b.toString(16).padStart(2, "0")}`).join("")}`,
    ],
    ["a Blob", () => new Blob([new Uint8Array(png)])],
    ["a Response", () => new Response(new Uint8Array(png))],
    ["pixels", () => same],
    ["clamped pixels", () => ({ ...same, pixels: new Uint8ClampedArray(pixels) })],
    ["an Image", () => Image.fromPixels(pixels, width, height)],
  ])("%s", async (_, input) => {
    expect(await decodeImage(input())).toEqual(same);
  });

  test("a data URI with characters beyond ASCII, which are UTF-8", async () => {
    const svg =
      '<svg xmlns="http://www.w3.org/2000/svg" width="8" height="4"><title>é 日本 😀</title>' +
      '<rect width="8" height="4" fill="red"/></svg>';
    const expected = await decodeImage(Buffer.from(svg));
    expect(await decodeImage(`data:image/svg+xml,${svg}`)).toEqual(expected);
    expect(await decodeImage(`data:image/svg+xml,${encodeURIComponent(svg)}`)).toEqual(expected);
  });

  test("transparent pixels are laid on white", async () => {
    const rgba = Uint8Array.of(10, 20, 30, 255, 10, 20, 30, 0, 0, 100, 200, 51);
    const expected = Uint8Array.of(10, 20, 30, 255, 255, 255, 204, 224, 244);
    const direct = await decodeImage({ pixels: rgba, width: 3, height: 1 });
    expect(direct.pixels).toEqual(expected);
    const raw = { width: 3, height: 1, channels: 4 } as const;
    for (const format of ["png", "webp", "tiff"] as const) {
      const image = sharp(Buffer.from(rgba), { raw });
      const encoded =
        format === "webp"
          ? image.webp({ lossless: true, exact: true })
          : image[format]({ compression: "none" } as never);
      const decoded = await decodeImage(await encoded.toBuffer());
      expect(largestDifference(decoded.pixels, expected)).toBeLessThanOrEqual(1);
    }
  });
});

describe("blobs", () => {
  test("one that cannot be read, is empty or too large", async () => {
    const gone = { arrayBuffer: () => Promise.reject(new Error("the file changed")) };
    expect(await failure(gone)).toEqual([
      "IMAGE_NOT_FOUND",
      "cannot read the image: the file changed",
    ]);
    expect((await failure(new Blob([])))[0]).toBe("IMAGE_EMPTY");
    const large = { size: 2 ** 40, arrayBuffer: () => Promise.reject(new Error("was read")) };
    expect((await failure(large))[0]).toBe("IMAGE_TOO_LARGE");
  });

  test("one that gives its bytes at once, or as a view", async () => {
    const png = await picture().png().toBuffer();
    const atOnce = { arrayBuffer: () => png } as unknown as ImageInput;
    expect(await decodeImage(atOnce)).toEqual({ pixels, width, height });
    const none = { arrayBuffer: () => 5 } as unknown as ImageInput;
    expect((await failure(none))[0]).toBe("IMAGE_UNSUPPORTED_INPUT");
  });

  test.each([["enough"], [undefined], [null], [{ message: 5 }]])(
    "one that fails for the reason %j, which is no error",
    async (reason) => {
      const gone = { arrayBuffer: () => Promise.reject(reason) };
      const thrown = {
        arrayBuffer: () => {
          throw reason;
        },
      };
      for (const blob of [gone, thrown]) {
        expect(await failure(blob)).toEqual([
          "IMAGE_NOT_FOUND",
          `cannot read the image: ${reason}`,
        ]);
      }
    },
  );
});

test("bytes that were transferred", async () => {
  const bytes = new Uint8Array(8);
  structuredClone(bytes, { transfer: [bytes.buffer] });
  for (const gone of [bytes, bytes.buffer, { arrayBuffer: async () => bytes.buffer }]) {
    const [code, message] = await failure(gone);
    expect([code, message]).toEqual([
      "IMAGE_UNSUPPORTED_INPUT",
      expect.stringMatching(/transferred/),
    ]);
  }
});

describe("bytes whose buffer is taken away while the call runs", () => {
  /** What happens between two steps of the call. */
  const turns = async (count: number) => {
    for (let i = 0; i < count; i++) await Promise.resolve();
  };

  test("are refused when they were transferred before the decoder has them", async () => {
    const png = await picture().png().toBuffer();
    const message = "the bytes of the image are no longer available: their buffer was transferred";
    for (const read of [decodeImage, checkImage]) {
      for (let count = 0; count < 5; count++) {
        const bytes = new Uint8Array(png);
        const reading = read(bytes).catch((error) => error);
        await turns(count);
        structuredClone(bytes, { transfer: [bytes.buffer] });
        const error = await reading;
        // Later on the decoder has read them.
        if (error instanceof Error || count === 0)
          expect(error).toMatchObject({ code: "IMAGE_UNSUPPORTED_INPUT", message });
      }
    }
  });

  test("are refused when they were transferred between the header and the pixels", async () => {
    const bytes = new Uint8Array(await picture().png().toBuffer());
    const prototype = Object.getPrototypeOf(sharp({ create: BLANK }));
    const { metadata } = prototype;
    const spy = jest.spyOn(prototype, "metadata").mockImplementation(async function (this: Sharp) {
      const header = await metadata.call(this);
      structuredClone(bytes, { transfer: [bytes.buffer] });
      return header;
    });
    try {
      expect(await failure(bytes)).toEqual([
        "IMAGE_UNSUPPORTED_INPUT",
        expect.stringMatching(/transferred/),
      ]);
    } finally {
      spy.mockRestore();
    }
  });

  test("are copied if they may shrink", async () => {
    const png = await picture().png().toBuffer();
    // Not among the types of this JavaScript.
    const Resizable = ArrayBuffer as unknown as new (
      length: number,
      options: { maxByteLength: number },
    ) => ArrayBuffer & { resize(length: number): void };
    const buffer = new Resizable(png.length, { maxByteLength: png.length });
    new Uint8Array(buffer).set(png);
    const reading = decodeImage(buffer);
    buffer.resize(0);
    expect(await reading).toEqual({ pixels, width, height });
  });
});

test("pixels that were transferred, also while they are converted", async () => {
  const gone = new Uint8Array(width * height * 3);
  structuredClone(gone, { transfer: [gone.buffer] });
  const side = 1024;
  const going = new Uint8Array(side * side * 4);
  const reading = failure({ pixels: going, width: side, height: side });
  setImmediate(() => structuredClone(going, { transfer: [going.buffer] }));
  const message = "the pixels of the image are no longer available: their buffer was transferred";
  expect(await failure({ pixels: gone, width, height })).toEqual([
    "IMAGE_UNSUPPORTED_INPUT",
    message,
  ]);
  expect(await reading).toEqual(["IMAGE_UNSUPPORTED_INPUT", message]);
});

describe("large pixels", () => {
  const side = 1000;
  const large = new Uint8Array(side * side * 4).map((_, i) => (i * 31) >> 3);

  test.each([3, 4])(
    "of %d channels are converted bit by bit, and other work comes between",
    async (channels) => {
      const given = large.subarray(0, side * side * channels);
      const image = { pixels: given, width: side, height: side };
      const { result: decoded, turns } = await turnsDuring(() => decodeImage(image));
      expect(turns).toBeGreaterThan(8);
      const expected = new Uint8Array(side * side * 3).map((_, i) => {
        const [at, c] = [Math.floor(i / 3) * channels, i % 3];
        const alpha = channels === 4 ? given[at + 3]! : 255;
        return Math.round((given[at + c]! * alpha + 255 * (255 - alpha)) / 255);
      });
      expect(Buffer.from(decoded.pixels).equals(expected)).toBe(true);
    },
  );

  test("are the caller's own, whose changes come too late once they are decoded", async () => {
    const own = new Uint8Array(pixels);
    const decoded = await decodeImage({ pixels: own, width, height });
    own.fill(0);
    expect(decoded.pixels).toEqual(pixels);
  });

  test("are given up when a signal aborts", async () => {
    const controller = new AbortController();
    const { signal } = controller;
    const reading = decodeImage({ pixels: large, width: side, height: side }, { signal });
    setImmediate(() => controller.abort(new Error("enough")));
    await expect(reading).rejects.toThrow("enough");
  });
});

describe("what has no size", () => {
  test("is read to its end", async () => {
    const path = join(folder, "picture.fifo");
    execFileSync("mkfifo", [path]);
    const reading = decodeImage(path);
    // Its writer comes later, and takes its time.
    const png = await picture().png().toBuffer();
    const writer = await open(path, "w");
    await writer.write(png.subarray(0, 20));
    await writer.write(png.subarray(20));
    await writer.close();
    expect(await reading).toEqual({ pixels, width, height });
  });

  test("is given up at the limit of a file", async () => {
    const [code, message] = await failure("/dev/zero");
    expect([code, message]).toEqual([
      "IMAGE_TOO_LARGE",
      "/dev/zero has more than 536870912 bytes, which are read at most",
    ]);
    expect((await failure("/dev/null"))[0]).toBe("IMAGE_EMPTY");
  });
});

describe("a signal ends the reading", () => {
  const never = { arrayBuffer: () => new Promise<ArrayBuffer>(() => {}) };
  const fifo = () => {
    const path = join(folder, `silent-${Math.random()}.fifo`);
    execFileSync("mkfifo", [path]);
    return path;
  };

  test.each<[string, () => ImageInput]>([
    ["a blob", () => never],
    ["a pipe that nobody writes to", fifo],
  ])("of %s, and keeps no listener", async (_, input) => {
    for (const read of [decodeImage, checkImage]) {
      const controller = new AbortController();
      const { signal } = controller;
      const reading = read(input(), { signal });
      await new Promise((resolve) => setTimeout(resolve, 20));
      controller.abort(new Error("enough"));
      await expect(reading).rejects.toThrow("enough");
      await new Promise((resolve) => setTimeout(resolve, 20));
      expect(getEventListeners(signal, "abort")).toHaveLength(0);
    }
  });

  test("and what is read to its end leaves none either", async () => {
    const { signal } = new AbortController();
    const path = file("signal.png", await picture().png().toBuffer());
    await decodeImage(path, { signal });
    await decodeImage(new Blob([new Uint8Array(await picture().png().toBuffer())]), { signal });
    expect((await decodeImage("/dev/null", { signal }).catch((e) => e)).code).toBe("IMAGE_EMPTY");
    expect(getEventListeners(signal, "abort")).toHaveLength(0);
  });
});

test.each(["metadata", "toBuffer"])("a signal ends the call while %s is at work", async (step) => {
  const png = await picture().png().toBuffer();
  const prototype = Object.getPrototypeOf(sharp({ create: BLANK }));
  let fail = (_: Error) => {};
  const spy = jest.spyOn(prototype, step).mockImplementation(
    () =>
      new Promise((_, reject) => {
        fail = reject;
      }),
  );
  try {
    for (const read of step === "metadata" ? [decodeImage, checkImage] : [decodeImage]) {
      const controller = new AbortController();
      const { signal } = controller;
      const reading = read(png, { signal });
      await new Promise((resolve) => setTimeout(resolve, 20));
      controller.abort(new Error("enough"));
      await expect(reading).rejects.toThrow("enough");
      expect(getEventListeners(signal, "abort")).toHaveLength(0);
      // Nobody hears of what becomes of it.
      fail(new Error("late"));
    }
  } finally {
    spy.mockRestore();
  }
});

describe("HEIC", () => {
  /** A box `ftyp`, and the begin of what follows it. */
  const ftyp = (...brands: string[]) => {
    const [major, ...compatible] = brands;
    const box = Buffer.concat([
      Buffer.from(`\0\0\0\0ftyp${major}\0\0\0\0${compatible.join("")}`, "latin1"),
    ]);
    box.writeUInt32BE(box.length, 0);
    return Buffer.concat([box, Buffer.from("\0\0\0\x08meta", "latin1")]);
  };

  test.each([[["heic", "mif1"]], [["mif1", "mif1", "heix"]], [["msf1", "hevc"]]])(
    "of the brands %j is named, with what to do",
    async (brands) => {
      const path = file("photo.heic", ftyp(...brands));
      const [code, message] = await failure(path);
      expect(code).toBe("IMAGE_UNDECODABLE");
      expect(message).toBe(
        `${path} is a HEIC image, which is not read here: convert it to JPEG or PNG first`,
      );
    },
  );

  test("other files of the family are left to the decoder", async () => {
    for (const brands of [["avif", "mif1", "heic"], ["isom", "mp42"], ["mif1"]]) {
      const [code, message] = await failure(ftyp(...brands));
      expect([code, message]).toEqual(["IMAGE_UNDECODABLE", expect.not.stringContaining("HEIC")]);
    }
  });
});

test("a header alone is checked without decoding", async () => {
  const png = await picture().png().toBuffer();
  // Cut short behind its header: the decoder would refuse it.
  await checkImage(png.subarray(0, png.length - 30));
  await checkImage({ pixels, width, height });
  await expect(checkImage(png, { maxPixels: 10 })).rejects.toMatchObject({
    code: "IMAGE_TOO_LARGE",
  });
  await expect(checkImage(join(folder, "none.png"))).rejects.toMatchObject({
    code: "IMAGE_NOT_FOUND",
  });
  await expect(checkImage(Buffer.from("text"))).rejects.toMatchObject({
    code: "IMAGE_UNDECODABLE",
  });
});

test("sizes that are no numbers are shown as what they are", async () => {
  const [, message] = await failure({ pixels, width: "24" as unknown as number, height });
  expect(message).toContain('received "24", 16');
});

describe("formats", () => {
  test.each<[string, number, (p: Sharp) => Sharp]>([
    ["jpeg", 6, (p) => p.jpeg({ quality: 98, chromaSubsampling: "4:4:4" })],
    [
      "progressive jpeg",
      6,
      (p) => p.jpeg({ quality: 98, chromaSubsampling: "4:4:4", progressive: true }),
    ],
    ["interlaced png", 0, (p) => p.png({ progressive: true })],
    ["lossless webp", 0, (p) => p.webp({ lossless: true })],
    ["tiff with lzw", 0, (p) => p.tiff({ compression: "lzw" })],
    ["tiff with jpeg", 12, (p) => p.tiff({ compression: "jpeg", quality: 98 })],
    ["lossless avif", 3, (p) => p.avif({ lossless: true })],
    ["gif", 24, (p) => p.gif({ dither: 0 })],
    ["palette png", 24, (p) => p.png({ palette: true, dither: 0 })],
    ["16-bit png", 1, (p) => p.toColourspace("rgb16").png()],
    ["png with an alpha channel", 0, (p) => p.ensureAlpha().png()],
    ["16-bit png with an alpha channel", 1, (p) => p.ensureAlpha().toColourspace("rgb16").png()],
  ])("%s", async (_, tolerance, encode) => {
    const decoded = await decodeImage(await encode(picture()).toBuffer());
    expect([decoded.width, decoded.height]).toEqual([width, height]);
    expect(largestDifference(decoded.pixels, pixels)).toBeLessThanOrEqual(tolerance);
  });

  test("grayscale becomes three equal channels", async () => {
    const gray = await picture().toColourspace("b-w").png().toBuffer();
    expect((await sharp(gray).metadata()).channels).toBe(1);
    const decoded = await decodeImage(gray);
    expect(decoded.pixels.length).toBe(pixels.length);
    for (let i = 0; i < decoded.pixels.length; i += 3) {
      expect(decoded.pixels[i]).toBe(decoded.pixels[i + 1]);
      expect(decoded.pixels[i]).toBe(decoded.pixels[i + 2]);
    }
  });

  test("CMYK becomes RGB", async () => {
    const red = sharp({ create: { width: 8, height: 8, channels: 3, background: "#ff0000" } });
    const cmyk = await red.toColourspace("cmyk").jpeg().toBuffer();
    expect((await sharp(cmyk).metadata()).space).toBe("cmyk");
    const [r, g, b] = (await decodeImage(cmyk)).pixels;
    expect(r).toBeGreaterThan(200);
    expect(Math.max(g!, b!)).toBeLessThan(60);
  });

  test("of an animation the first frame", async () => {
    const frames = Buffer.concat([Buffer.alloc(4 * 4 * 3, 200), Buffer.alloc(4 * 4 * 3, 20)]);
    const raw = { width: 4, height: 8, channels: 3, pageHeight: 4 } as const;
    const gif = await sharp(frames, { raw }).gif().toBuffer();
    expect((await sharp(gif).metadata()).pages).toBe(2);
    const decoded = await decodeImage(gif);
    expect([decoded.width, decoded.height]).toEqual([4, 4]);
    expect(decoded.pixels[0]).toBeGreaterThan(150);
  });

  test.each([1, 2, 3, 4, 5, 6, 7, 8])("EXIF orientation %i", async (orientation) => {
    const image = picture().withMetadata({ orientation });
    const tiff = await image.png().toBuffer();
    const decoded = await decodeImage(tiff);
    const turned = orientation >= 5;
    expect([decoded.width, decoded.height]).toEqual(turned ? [height, width] : [width, height]);
    // Where each corner of the upright picture lies in the stored one (EXIF 2.3, 4.6.4 A).
    const at = (x: number, y: number) => [
      ...decoded.pixels.subarray((y * decoded.width + x) * 3).subarray(0, 3),
    ];
    const stored = (x: number, y: number) => [
      ...pixels.subarray((y * width + x) * 3).subarray(0, 3),
    ];
    const right = width - 1;
    const bottom = height - 1;
    const topLeft = [
      [0, 0],
      [right, 0],
      [right, bottom],
      [0, bottom],
      [0, 0],
      [0, bottom],
      [right, bottom],
      [right, 0],
    ][orientation - 1]!;
    const topRight = [
      [right, 0],
      [0, 0],
      [0, bottom],
      [right, bottom],
      [0, bottom],
      [0, 0],
      [right, 0],
      [right, bottom],
    ][orientation - 1]!;
    expect(at(0, 0)).toEqual(stored(topLeft[0]!, topLeft[1]!));
    expect(at(decoded.width - 1, 0)).toEqual(stored(topRight[0]!, topRight[1]!));
  });
});

describe("what is no image", () => {
  test("no bytes", async () => {
    const path = file("empty.png", "");
    const [code, message] = await failure(path);
    expect(code).toBe("IMAGE_EMPTY");
    expect(message).toContain(path);
    for (const input of [
      new Uint8Array(0),
      new ArrayBuffer(0),
      "data:image/png;base64,",
      { pixels: new Uint8Array(0), width: 0, height: 0 },
    ]) {
      expect((await failure(input))[0]).toBe("IMAGE_EMPTY");
    }
  });

  test("no file", async () => {
    for (const missing of [join(folder, "none.png"), folder, "a\0b.png"]) {
      const [code, message] = await failure(missing);
      expect(code).toBe("IMAGE_NOT_FOUND");
      expect(message).toContain(missing);
    }
    expect((await failure(pathToFileURL(join(folder, "none.png"))))[0]).toBe("IMAGE_NOT_FOUND");
  });

  test("a text file, garbage, and JSON", async () => {
    for (const content of ["just text\n", '{"a": 1}', "<html></html>", Buffer.alloc(999, 0xa5)]) {
      const path = file("not-an-image.png", content);
      const [code, message] = await failure(path);
      expect(code).toBe("IMAGE_UNDECODABLE");
      expect(message).toContain(path);
      expect(message).not.toContain("\n");
    }
  });

  test.each(["jpeg", "png", "webp", "gif", "tiff", "avif"] as const)(
    "half of a %s",
    async (format) => {
      const whole = await sharp(Buffer.alloc(64 * 64 * 3, "abcdefg"), {
        raw: { width: 64, height: 64, channels: 3 },
      })
        [format]()
        .toBuffer();
      await expect(decodeImage(whole)).resolves.toMatchObject({ width: 64, height: 64 });
      expect((await failure(whole.subarray(0, whole.length >> 1)))[0]).toBe("IMAGE_UNDECODABLE");
    },
  );

  test("a data URI that is damaged", async () => {
    for (const uri of [
      "data:image/png;base64",
      "data:image/png;base64,@@@@",
      "data:,%zz",
      "data:;base64,%zz",
    ]) {
      expect((await failure(uri))[0]).toBe("IMAGE_UNDECODABLE");
    }
  });

  test("addresses in the network", async () => {
    for (const url of [
      "https://example.com/a.png",
      new URL("http://example.com/a.png"),
      "ftp://example.com/a.png",
    ]) {
      const [code, message] = await failure(url);
      expect(code).toBe("IMAGE_UNSUPPORTED_INPUT");
      expect(message).toContain("not fetched");
    }
    expect((await failure("file://other-host/a.png"))[0]).toBe("IMAGE_UNSUPPORTED_INPUT");
  });

  test("values of other kinds", async () => {
    for (const input of [undefined, null, 7, "", true, {}, [], Symbol("x"), () => 1]) {
      expect((await failure(input as never))[0]).toBe("IMAGE_UNSUPPORTED_INPUT");
    }
  });

  test("pixels that do not fit", async () => {
    const bytes = new Uint8Array(12);
    const cases = [
      { pixels: bytes, width: 2, height: 3 },
      { pixels: bytes, width: 1.5, height: 2 },
      { pixels: bytes, width: -2, height: -2 },
      { pixels: bytes, width: Number.NaN, height: 2 },
      { pixels: new Float32Array(12), width: 2, height: 2 },
      { pixels: [1, 2, 3], width: 1, height: 1 },
      { pixels: bytes },
    ];
    for (const input of cases) {
      expect((await failure(input as never))[0]).toBe("IMAGE_UNSUPPORTED_INPUT");
    }
  });
});

describe("too large", () => {
  test("a hundred megapixels are refused from the header alone", async () => {
    // A PNG of 10000 x 10000 pixels whose pixel data is missing.
    const png = await sharp({ create: { width: 1, height: 1, channels: 3, background: "red" } })
      .png()
      .toBuffer();
    const header = Buffer.from(png);
    header.writeUInt32BE(10_000, 16);
    header.writeUInt32BE(10_000, 20);
    header.writeUInt32BE(crc32(header.subarray(12, 29)), 29);
    const [code, message] = await failure(header);
    expect(code).toBe("IMAGE_TOO_LARGE");
    expect(message).toContain("10000 x 10000");
  });

  test("the limit is inclusive", async () => {
    const png = await picture().png().toBuffer();
    await expect(decodeImage(png, { maxPixels: width * height })).resolves.toBeDefined();
    expect((await failure(png, width * height - 1))[0]).toBe("IMAGE_TOO_LARGE");
    expect((await failure({ pixels, width, height }, width * height - 1))[0]).toBe(
      "IMAGE_TOO_LARGE",
    );
  });

  test("a side beyond what can be resized is refused, however few pixels there are", async () => {
    const side = 2 ** 20;
    const line = { pixels: new Uint8Array(3 * (side + 1)), width: side + 1, height: 1 };
    const png = sharp(line.pixels, { raw: { width: side + 1, height: 1, channels: 3 } }).png();
    for (const input of [line, { ...line, width: 1, height: side + 1 }, await png.toBuffer()]) {
      const [code, message] = await failure(input);
      expect(code).toBe("IMAGE_TOO_LARGE");
      expect(message).toContain("sides may have at most 1048576");
    }
    await expect(
      decodeImage({ pixels: line.pixels.subarray(3), width: side, height: 1 }),
    ).resolves.toBeDefined();
  });
});

test("a signal ends decoding with its reason", async () => {
  const png = await picture().png().toBuffer();
  const reason = new Error("enough");
  await expect(decodeImage(png, { signal: AbortSignal.abort(reason) })).rejects.toBe(reason);
  const controller = new AbortController();
  const running = decodeImage(file("abort.png", png), { signal: controller.signal });
  controller.abort(reason);
  await expect(running).rejects.toBe(reason);
});

function crc32(bytes: Uint8Array): number {
  let crc = -1;
  for (const byte of bytes) {
    crc ^= byte;
    for (let i = 0; i < 8; i++) crc = (crc >>> 1) ^ (crc & 1 ? 0xedb88320 : 0);
  }
  return ~crc >>> 0;
}
