import { Fields } from "../../lib/checkpoint/fields";
import {
  DEFAULT_GENERATION,
  type ImageSettings,
  imageSettings,
  mostSteps,
  parseGenerationConfig,
  type TextSettings,
  textSettings,
} from "../../lib/generation-config";
import { type LoadOptions, parseLoadOptions } from "../../lib/load-options";
import { parseSeed, seedOfItem } from "../../lib/seed";

const invalid = (message: string | RegExp) => ({
  code: "INVALID_OPTION",
  message: typeof message === "string" ? message : expect.stringMatching(message),
});

describe("image settings", () => {
  const of = (options: Record<string, unknown>) =>
    imageSettings(DEFAULT_GENERATION.image, options as Partial<ImageSettings>, 1000);

  test("what is not set stays as it was", () => {
    expect(of({})).toEqual(DEFAULT_GENERATION.image);
    expect(of({ steps: 1000, order: undefined })).toEqual({
      ...DEFAULT_GENERATION.image,
      steps: 1000,
    });
    expect(of({ x0Limit: 2, guidance: 0, temperature: 0 })).toMatchObject({
      x0Limit: 2,
      guidance: 0,
    });
    expect(of({ x0Limit: 0, guidance: -2 })).toMatchObject({ x0Limit: 0, guidance: -2 });
  });

  test.each<[Record<string, unknown>, string]>([
    [{ steps: 0 }, "expected an integer from 1 to 1000 for steps but received 0"],
    [{ steps: 1001 }, "expected an integer from 1 to 1000 for steps but received 1001"],
    [{ steps: 2.5 }, "expected an integer from 1 to 1000 for steps but received 2.5"],
    [{ steps: "8" }, 'expected an integer from 1 to 1000 for steps but received "8"'],
    [{ steps: null }, "expected an integer from 1 to 1000 for steps but received null"],
    [
      { guidance: -1e5 },
      "expected a number from -10000 to 10000 for guidance but received -100000",
    ],
    [
      { guidance: Number.NaN },
      "expected a number from -10000 to 10000 for guidance but received NaN",
    ],
    [
      { guidance: Infinity },
      "expected a number from -10000 to 10000 for guidance but received Infinity",
    ],
    [{ temperature: -1 }, "expected a number from 0 to 10000 for temperature but received -1"],
    [
      { temperature: Number.NaN },
      "expected a number from 0 to 10000 for temperature but received NaN",
    ],
    [{ order: "spiral" }, 'expected "random" or "raster" for order but received "spiral"'],
    [
      { guidanceSchedule: "cosine" },
      'expected "constant" or "linear" for guidanceSchedule but received "cosine"',
    ],
    [{ x0Limit: -1 }, "expected a number from 0 to 1e+30 for x0Limit but received -1"],
  ])("%j is refused", (options, message) => {
    expect(() => of(options)).toThrow(expect.objectContaining(invalid(message)));
  });
});

test("steps are a choice of the timesteps, but not a rectified flow's", () => {
  expect(mostSteps({ timesteps: 1000, flow: false })).toBe(1000);
  expect(mostSteps({ timesteps: 1000, flow: true })).toBe(10_000);
});

describe("text settings", () => {
  const of = (options: Record<string, unknown>) =>
    textSettings(DEFAULT_GENERATION.text, options as Partial<TextSettings>);

  test.each<[Record<string, unknown>, RegExp]>([
    [{ maxNewTokens: 0 }, /integer from 1 to \d+ for maxNewTokens but received 0/],
    [{ maxNewTokens: 1.5 }, /maxNewTokens but received 1.5/],
    [{ temperature: -0.1 }, /temperature but received -0.1/],
    [{ temperature: "hot" }, /temperature but received "hot"/],
  ])("%j is refused", (options, message) => {
    expect(() => of(options)).toThrow(expect.objectContaining(invalid(message)));
  });
});

describe("generation_config.json", () => {
  const parse = (json: object, timesteps = 1000) =>
    parseGenerationConfig(
      new Fields(json as Record<string, unknown>, "generation_config.json"),
      timesteps,
    );

  test("defaults, also where another library wrote the file", () => {
    expect(parse({})).toEqual(DEFAULT_GENERATION);
    expect(parse({ bos_token_id: 2, cache_implementation: "hybrid" })).toEqual(DEFAULT_GENERATION);
    expect(parse({}, 20).image.steps).toBe(20);
  });

  test("its own values", () => {
    const image = {
      steps: 8,
      guidance: 1,
      guidance_schedule: "constant",
      temperature: 0.9,
      order: "raster",
      x0_limit: 4,
    };
    expect(parse({ image, text: { max_new_tokens: 12, temperature: 0.5 } })).toEqual({
      image: {
        steps: 8,
        guidance: 1,
        guidanceSchedule: "constant",
        temperature: 0.9,
        order: "raster",
        x0Limit: 4,
      },
      text: { maxNewTokens: 12, temperature: 0.5 },
    });
  });

  test.each([
    [{ image: { order: 3 } }],
    [{ image: { x0_limit: -1 } }],
    [{ image: [] }],
    [{ text: { max_new_tokens: -1 } }],
  ])("%j is refused", (json) => {
    expect(() => parse(json)).toThrow(expect.objectContaining({ code: "INVALID_CONFIG" }));
  });
});

describe("seeds", () => {
  test("numbers and bigints up to 2^64 - 1", () => {
    expect(parseSeed(0)).toBe(0n);
    expect(parseSeed(2 ** 53 - 1)).toBe(9007199254740991n);
    expect(parseSeed((1n << 64n) - 1n)).toBe(18446744073709551615n);
  });

  test("without one, another each time, which a number holds", () => {
    const seeds = new Set(Array.from({ length: 20 }, () => parseSeed(undefined)));
    expect(seeds.size).toBe(20);
    for (const seed of seeds) expect(Number.isSafeInteger(Number(seed))).toBe(true);
  });

  test("a batch counts on, round the end", () => {
    expect(seedOfItem(7n, 3)).toBe(10n);
    expect(seedOfItem((1n << 64n) - 1n, 2)).toBe(1n);
  });

  test.each([[-1], [0.5], [2 ** 53], [Number.NaN], ["7"], [null], [-1n], [1n << 64n]])(
    "%p is refused",
    (seed) => {
      expect(() => parseSeed(seed)).toThrow(
        expect.objectContaining(invalid(/2\^64 - 1 .* for seed/)),
      );
    },
  );
});

describe("options of load", () => {
  const addon = {
    instructionSets: () => [
      { name: "baseline", supported: true, bfloat16: false },
      { name: "avx9", supported: false, bfloat16: false },
    ],
  };
  const parse = (options?: unknown) => parseLoadOptions(options as LoadOptions | undefined, addon);

  afterEach(() => {
    delete process.env.UNIFLUID_ISA;
  });

  test("defaults, and the environment's instruction set", () => {
    delete process.env.UNIFLUID_ISA;
    expect(parse().native).toMatchObject({ maxMemory: 0, maxSequences: 16, isa: undefined });
    expect(parse().native.threads).toBeGreaterThan(0);
    process.env.UNIFLUID_ISA = "baseline";
    expect(parse().native.isa).toBe("baseline");
    expect(parse()).toMatchObject({ device: { kind: "auto" }, native: { bfloat16: false } });
    const paired = { device: "cpu", dtype: "bfloat16" };
    expect(parse(paired)).toMatchObject({ dtype: "bfloat16", native: { bfloat16: true } });
    expect(parse({ device: "cuda:2", dtype: "float32" })).toMatchObject({
      device: { kind: "cuda", index: 2 },
      dtype: "float32",
    });
  });

  test("what the environment says is told by the variable's name", () => {
    process.env.UNIFLUID_ISA = "sse";
    expect(() => parse()).toThrow(/"baseline" or "avx9" for UNIFLUID_ISA but received "sse"/);
    expect(parse({ isa: "baseline" }).native.isa).toBe("baseline");
    process.env.UNIFLUID_ISA = "avx9";
    expect(() => parse()).toThrow(/no avx9 instructions, which UNIFLUID_ISA asks for/);
  });

  test.each<[unknown, object]>([
    [{ threads: 0 }, invalid("expected an integer from 1 to 1024 for threads but received 0")],
    [{ device: "tpu" }, invalid(/"auto", "cpu", "cuda" or "cuda:" .* for device .* "tpu"/)],
    [{ dtype: "int8" }, invalid(/"auto" or "float32" or "bfloat16" for dtype .* "int8"/)],
    [{ device: null }, invalid(/for device but received null/)],
    [{ dtype: null }, invalid(/for dtype but received null/)],
    [{ isa: null }, invalid(/"baseline" or "avx9" for isa but received null/)],
    [
      { isa: "avx9" },
      {
        code: "DEVICE_UNAVAILABLE",
        message: "this processor has no avx9 instructions, which isa asks for: it has baseline",
      },
    ],
    [{ isa: "sse" }, invalid(/"baseline" or "avx9" for isa but received "sse"/)],
    [{ maxMemory: -1 }, invalid(/maxMemory/)],
    [{ maxSequences: 0 }, invalid(/maxSequences/)],
    [{ signal: 3 }, invalid(/an AbortSignal for signal/)],
    [{ thread: 3 }, invalid(/expected only the options .* but received "thread"/)],
    ["fast", invalid(/an object for options but received "fast"/)],
  ])("%j is refused", (options, expected) => {
    expect(() => parse(options)).toThrow(expect.objectContaining(expected));
  });
});
