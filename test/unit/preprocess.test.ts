/** What SigLIP and the autoencoder are given. Resampling itself: image-resize.test.ts. */

import { InsufficientMemoryError } from "../../lib/errors.js";
import {
  type PreprocessorConfig,
  parsePreprocessorConfig,
  type Resizer,
  toVaePixels,
  toVisionPixels,
} from "../../lib/preprocess.js";
import { turnsDuring } from "../support/turns";

const bytes = Uint8Array.from({ length: 256 * 3 }, (_, i) => i % 256);
const image = { pixels: bytes, width: 16, height: 16 };

/** Stands in for the addon: it notes what it is asked for and returns the source's first bytes. */
function recorder() {
  const calls: unknown[][] = [];
  const resizer: Resizer = {
    async resizeImage(pixels, ...rest) {
      calls.push(rest);
      const [, , toWidth, toHeight] = rest;
      return pixels.subarray(0, toWidth * toHeight * 3);
    },
  };
  return { calls, resizer };
}

const siglip = {
  size: { height: 16, width: 16 },
  image_mean: [0.5, 0.5, 0.5],
  image_std: [0.5, 0.5, 0.5],
};

describe("preprocessor_config.json", () => {
  test("an empty one has the defaults of SiglipImageProcessor", () => {
    expect(parsePreprocessorConfig({})).toEqual<PreprocessorConfig>({
      resize: true,
      width: 224,
      height: 224,
      filter: "bicubic",
      rescaleFactor: 1 / 255,
      mean: [0.5, 0.5, 0.5],
      std: [0.5, 0.5, 0.5],
    });
  });

  test("every field is read", () => {
    const json = {
      do_resize: false,
      size: { height: 3, width: 5 },
      resample: 2,
      do_rescale: true,
      rescale_factor: 0.01,
      image_mean: [0.1, 0.2, 0.3],
      image_std: 0.25,
    };
    expect(parsePreprocessorConfig(json)).toEqual<PreprocessorConfig>({
      resize: false,
      width: 5,
      height: 3,
      filter: "bilinear",
      rescaleFactor: 0.01,
      mean: [0.1, 0.2, 0.3],
      std: [0.25, 0.25, 0.25],
    });
  });

  test("steps that are turned off", () => {
    const config = parsePreprocessorConfig({
      ...siglip,
      do_rescale: false,
      do_normalize: false,
      size: 32,
    });
    expect(config).toMatchObject({
      rescaleFactor: 1,
      mean: [0, 0, 0],
      std: [1, 1, 1],
      width: 32,
      height: 32,
    });
  });

  test.each<[string, unknown]>([
    ["resample", 4],
    ["resample", "bicubic"],
    ["resample", -1],
    ["size", { shortest_edge: 224 }],
    ["size", { height: 0, width: 5 }],
    ["size", { height: 5, width: 1e9 }],
    ["size", "224"],
    ["rescale_factor", 0],
    ["rescale_factor", "x"],
    ["do_resize", 1],
    ["rescale_factor", 1e39],
    ["rescale_factor", 1e-50],
    ["image_mean", 1e300],
    ["image_std", 1e-320],
    ["image_std", [0.5, 1e39, 0.5]],
    ["image_mean", [0.5, 0.5]],
    ["image_mean", [0.5, 0.5, "0.5"]],
    ["image_std", [0.5, 0, 0.5]],
    ["image_std", {}],
  ])("refuses %s: %p", (name, value) => {
    const parse = () => parsePreprocessorConfig({ ...siglip, [name]: value }, "some/file.json");
    expect(parse).toThrow(
      expect.objectContaining({
        code: "INVALID_CONFIG",
        message: expect.stringContaining("some/file.json"),
      }),
    );
  });

  test("what makes no float32 number of a byte is refused", () => {
    for (const [fields, found] of [
      [{ rescale_factor: 1e38 }, /1e\+38, 0\.5 and 0\.5, which make -1 to Infinity/],
      [{ image_mean: [0, 0, 1e38], image_std: 1e-5 }, /1e\+38 and 0\.00001, which make -Infinity/],
    ] as const) {
      const parse = () => parsePreprocessorConfig({ ...siglip, ...fields }, "some/file.json");
      expect(parse).toThrow(expect.objectContaining({ code: "INVALID_CONFIG" }));
      expect(parse).toThrow(found);
    }
  });

  test("a message shows a value as the file has it", () => {
    expect(() => parsePreprocessorConfig({ ...siglip, image_std: [0, 1, 1] })).toThrow(
      /three positive float32 numbers for image_std but found \[0,1,1\]$/,
    );
  });

  test.each([null, [], "text", 7])("refuses %p as a whole", (json) => {
    expect(() => parsePreprocessorConfig(json)).toThrow(
      expect.objectContaining({ code: "INVALID_CONFIG" }),
    );
  });
});

describe("SigLIP's input", () => {
  test("is planar and normalized in float32", async () => {
    const { calls, resizer } = recorder();
    const config = parsePreprocessorConfig({
      ...siglip,
      image_mean: [0.5, 0.4, 0],
      image_std: [0.5, 0.3, 2],
    });
    const planes = await toVisionPixels(image, config, resizer, 16);
    expect(calls).toEqual([]);
    expect(planes.length).toBe(3 * 256);
    for (const place of [0, 1, 17, 255]) {
      for (let c = 0; c < 3; c++) {
        const value = (bytes[place * 3 + c]! / 255 - config.mean[c]!) / config.std[c]!;
        expect(planes[c * 256 + place]).toBeCloseTo(value, 6);
      }
    }
    expect(planes[0]).toBe(-1);
  });

  test("asks for the model's size and the configured filter", async () => {
    const { calls, resizer } = recorder();
    const planes = await toVisionPixels(
      image,
      parsePreprocessorConfig({ resample: 1 }),
      resizer,
      8,
    );
    expect(calls).toEqual([[16, 16, 8, 8, "lanczos"]]);
    expect(planes.length).toBe(3 * 64);
  });

  test("without do_resize only the model's size passes", async () => {
    const { calls, resizer } = recorder();
    const config = parsePreprocessorConfig({ ...siglip, do_resize: false });
    await expect(toVisionPixels(image, config, resizer, 16)).resolves.toBeDefined();
    await expect(toVisionPixels(image, config, resizer, 8)).rejects.toMatchObject({
      code: "IMAGE_UNSUPPORTED_INPUT",
      message: expect.stringContaining("16 x 16"),
    });
    expect(calls).toEqual([]);
  });
});

test("what the addon refuses becomes an error of this package", async () => {
  const resizer: Resizer = {
    resizeImage: () => Promise.reject({ code: "INSUFFICIENT_MEMORY", message: "no more" }),
  };
  await expect(toVaePixels(image, 8, 8, resizer)).rejects.toBeInstanceOf(InsufficientMemoryError);
});

describe("the autoencoder's input", () => {
  test("is v / 127.5 - 1", async () => {
    const planes = await toVaePixels(image, 16, 16, recorder().resizer);
    for (const place of [0, 1, 85, 255]) {
      for (let c = 0; c < 3; c++) {
        expect(planes[c * 256 + place]).toBeCloseTo(bytes[place * 3 + c]! / 127.5 - 1, 6);
      }
    }
    expect(Math.min(...planes)).toBe(-1);
    expect(Math.max(...planes)).toBe(1);
  });

  test("of a large image is made bit by bit, and other work comes between", async () => {
    const side = 1000;
    const pixels = new Uint8Array(side * side * 3).map((_, i) => (i * 31) >> 3);
    const large = { pixels, width: side, height: side };
    const { resizer } = recorder();
    const { result: planes, turns } = await turnsDuring(() =>
      toVaePixels(large, side, side, resizer),
    );
    expect(turns).toBeGreaterThan(8);
    const expected = new Float32Array(planes.length);
    for (let c = 0, to = 0; c < 3; c++)
      for (let i = 0; i < side * side; i++)
        expected[to++] = Math.fround(pixels[3 * i + c]! / 127.5) - 1;
    expect(Buffer.from(planes.buffer).equals(Buffer.from(expected.buffer))).toBe(true);
  });

  test("asks for the size wanted, bicubic", async () => {
    const { calls, resizer } = recorder();
    await toVaePixels(image, 8, 4, resizer);
    expect(calls).toEqual([[16, 16, 8, 4, "bicubic"]]);
  });
});
