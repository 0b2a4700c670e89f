/** The API on real weights: seeds, batches, streams, signals, disposal, refusals. */

import { getEventListeners } from "node:events";
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { pathToFileURL } from "node:url";
import { loadAddon } from "../../lib/addon";
import { decodeImage } from "../../lib/image-input";
import {
  type DrawingProgress,
  estimateMemory,
  Image,
  type LoadOptions,
  type LogitsOptions,
  readCheckpoint,
  UniFluid,
} from "../../lib/index";
import { FIXTURES } from "../support/fixtures";
import { relativeError } from "../support/parity";

const fixture = (name: string) => join(FIXTURES, name);
const open: UniFluid[] = [];

async function load(name: string, options?: LoadOptions): Promise<UniFluid> {
  const model = await UniFluid.load(fixture(name), { threads: 2, ...options });
  open.push(model);
  return model;
}

let uni: UniFluid;
let pali: UniFluid;
let gemma: UniFluid;
let vae: UniFluid;
beforeAll(async () => {
  [uni, pali, gemma, vae] = await Promise.all([
    load("unifluid-tiny"),
    load("paligemma-tiny"),
    load("gemma2-tiny"),
    load("vae-tiny"),
  ]);
});
afterAll(() => Promise.all(open.map((model) => model.dispose())));

const picture = join(FIXTURES, "unifluid-tiny/edit0.png");
function transferred(): Int32Array {
  const ids = new Int32Array(2);
  structuredClone(ids, { transfer: [ids.buffer] });
  return ids;
}
const pretended = (): Int32Array => Object.create(Int32Array.prototype);
const same = (a: Image, b: Image) => Buffer.from(a.pixels).equals(Buffer.from(b.pixels));

test("an image that several texts are about is prepared once", async () => {
  const large = { pixels: new Uint8Array(90 * 70 * 3).fill(99), width: 90, height: 70 };
  const resizes = jest.spyOn(loadAddon(), "resizeImage");
  try {
    const [a, b] = await uni.edit(large, ["make it blue", "make it blue"], { seed: 5, steps: 1 });
    // Once for the tower, once for the autoencoder.
    expect(resizes).toHaveBeenCalledTimes(2);
    resizes.mockClear();
    await uni.answer(large, ["how many?", "which?", "where?"], { maxNewTokens: 1 });
    expect(resizes).toHaveBeenCalledTimes(1);
    expect(same(a!, await uni.edit(large, "make it blue", { seed: 5, steps: 1 }))).toBe(true);
    expect(same(b!, await uni.edit(large, "make it blue", { seed: 6, steps: 1 }))).toBe(true);
  } finally {
    resizes.mockRestore();
  }
});

describe("one seed, one image", () => {
  const prompts = ["a red circle", "two green stars", "", "a blue heart on a pink background"];

  test("alone and in a batch of eight beside running texts, bit for bit", async () => {
    const alone = await uni.generateLatents("a red circle", { seed: 5 });
    const batch = [...prompts, ...prompts].map((prompt, i) =>
      uni.generateLatents(prompt, { seed: i === 4 ? 5 : 100 + i }),
    );
    const texts = [uni.caption(picture), uni.answer(picture, "how many?")];
    expect((await Promise.all(batch))[4]).toEqual(alone);
    await Promise.all(texts);
  });

  test("with one thread and with two, bit for bit", async () => {
    const single = await load("unifluid-tiny", { threads: 1 });
    for (const seed of [0, 2n ** 64n - 1n]) {
      const one = await single.generateLatents("two green stars", { seed });
      expect(one).toEqual(await uni.generateLatents("two green stars", { seed }));
      const edited = await single.editLatents(picture, "make it blue", { seed });
      expect(edited).toEqual(await uni.editLatents(picture, "make it blue", { seed }));
    }
  });

  test("on every instruction set, within 1e-4", async () => {
    const latents = await uni.generateLatents("a red circle", { seed: 5 });
    for (const { name, supported } of loadAddon().instructionSets()) {
      if (!supported) continue;
      const model = await load("unifluid-tiny", { isa: name });
      expect(model.info.device).toContain(name);
      const other = await model.generateLatents("a red circle", { seed: 5 });
      expect(relativeError(other, latents)).toBeLessThan(1e-4);
    }
  });

  test("image i of a list has seed + i", async () => {
    const images = await uni.generate(["a red circle", "a red circle"], { seed: 7 });
    expect(images.map((image) => image.seed)).toEqual([7, 8]);
    expect(same(images[0]!, images[1]!)).toBe(false);
    expect(same(images[1]!, await uni.generate("a red circle", { seed: 8 }))).toBe(true);
    expect(await uni.generate([])).toEqual([]);
    const last = await uni.generate(["", ""], { seed: 2n ** 64n - 1n });
    expect(last.map((image) => image.seed)).toEqual([2n ** 64n - 1n, 0]);
  });

  test("without a seed another one each time, and the image tells it", async () => {
    const [a, b] = [await uni.generate("a star"), await uni.generate("a star")];
    expect(a.seed).not.toBe(b.seed);
    expect(same(a, await uni.generate("a star", { seed: a.seed }))).toBe(true);
  });
});

describe("settings", () => {
  test("each changes the image, and the defaults are generation_config.json's", async () => {
    const plain = await uni.generateLatents("a red circle", { seed: 1 });
    expect(uni.info.generation.image.steps).toBe(8);
    const explicit = {
      steps: 8,
      guidance: 3,
      temperature: 1,
      order: "random",
      x0Limit: 4,
    } as const;
    expect(await uni.generateLatents("a red circle", { seed: 1, ...explicit })).toEqual(plain);
    for (const change of [
      { steps: 9 },
      { guidance: 1 },
      { guidance: 2 },
      { guidanceSchedule: "constant" },
      { temperature: 0.5 },
      { order: "raster" },
      { x0Limit: 0.5 },
    ] as const) {
      const other = await uni.generateLatents("a red circle", { seed: 1, ...change });
      expect({ change, differs: relativeError(other, plain) > 1e-3 }).toEqual({
        change,
        differs: true,
      });
      expect(other.every(Number.isFinite)).toBe(true);
    }
  });

  test("sampled text is decided by its seed", async () => {
    const sample = (seed: number) =>
      gemma.complete("a", { temperature: 1, seed, maxNewTokens: 16 });
    expect(await sample(3)).toBe(await sample(3));
    const texts = new Set(await Promise.all([1, 2, 3, 4].map(sample)));
    expect(texts.size).toBeGreaterThan(1);
    const [first, second] = await gemma.complete(["a", "a"], {
      temperature: 1,
      seed: 3,
      maxNewTokens: 16,
    });
    expect([first, second]).toEqual([await sample(3), await sample(4)]);
  });
});

describe("drawing step by step", () => {
  test("tells every cell once, previews, and ends with the image", async () => {
    const steps: DrawingProgress[] = [];
    for await (const step of uni.generateStream("a red circle", { seed: 5 })) steps.push(step);
    expect(steps.map(({ done }) => done)).toEqual(Array.from({ length: 16 }, (_, i) => i + 1));
    expect(steps.every(({ total }) => total === 16)).toBe(true);
    const last = steps.at(-1)!;
    expect([...last.cells].sort((a, b) => a - b)).toEqual(Array.from({ length: 16 }, (_, i) => i));
    expect(steps[3]!.cells).toEqual(last.cells.slice(0, 4));
    expect(steps[3]!.cell).toBe(last.cells[3]);
    expect(last.latents).toEqual(await uni.generateLatents("a red circle", { seed: 5 }));
    expect(steps[3]!.latents.filter((v) => v !== 0)).toHaveLength(4 * 16);

    const image = await uni.generate("a red circle", { seed: 5 });
    expect(last.image?.seed).toBe(5);
    expect(same(last.image!, image)).toBe(true);
    expect(await last.preview()).toBe(last.image);
    const early = await steps[3]!.preview();
    expect([early.width, early.height]).toEqual([32, 32]);
    expect(steps[3]!.image).toBeUndefined();
    expect(same(early, image)).toBe(false);
  });

  test("an edit too", async () => {
    let last: DrawingProgress | undefined;
    for await (const step of uni.editStream(picture, "make it blue", { seed: 3 })) last = step;
    expect(same(last!.image!, await uni.edit(picture, "make it blue", { seed: 3 }))).toBe(true);
  });

  test("leaving the loop frees the sequence", async () => {
    for await (const step of uni.generateStream("a star", { steps: 1000 })) {
      expect(step.done).toBe(1);
      break;
    }
    await until(() => uni.stats().running === 0);
  });
});

/** Waits for what the engine does at its next step. */
async function until(holds: () => boolean): Promise<void> {
  while (!holds()) await new Promise((resolve) => setTimeout(resolve, 1));
}

describe("reading", () => {
  test("every kind of input is the same image", async () => {
    const bytes = readFileSync(picture);
    const decoded = await decodeImage(bytes);
    const expected = await uni.caption(picture);
    const inputs = [
      pathToFileURL(picture),
      pathToFileURL(picture).href,
      bytes,
      new Uint8Array(bytes),
      `data:image/png;base64,${bytes.toString("base64")}`,
      { pixels: decoded.pixels, width: decoded.width, height: decoded.height },
      Image.fromPixels(decoded.pixels, decoded.width, decoded.height),
    ];
    expect(await uni.caption(inputs)).toEqual(inputs.map(() => expected));
  });

  test("streams join to the text", async () => {
    const join = async (pieces: AsyncIterable<string>) => {
      let text = "";
      for await (const piece of pieces) text += piece;
      return text;
    };
    expect(await join(pali.captionStream(picture))).toBe(await pali.caption(picture));
    expect(await join(pali.answerStream(picture, "why?"))).toBe(await pali.answer(picture, "why?"));
    expect(await join(gemma.completeStream("a red"))).toBe(await gemma.complete("a red"));
  });

  test("lists are answered pair by pair, one side alone with all of the other", async () => {
    const other = join(FIXTURES, "unifluid-tiny/caption0.png");
    const questions = ["how many?", "what color?"];
    const single = await Promise.all(
      [picture, other].flatMap((image) => questions.map((q) => uni.answer(image, q))),
    );
    expect(await uni.answer(picture, questions)).toEqual(single.slice(0, 2));
    expect(await uni.answer([picture, other], "how many?")).toEqual([single[0], single[2]]);
    expect(await uni.answer([picture, other], questions)).toEqual([single[0], single[3]]);
    await expect(uni.answer([picture], questions)).rejects.toMatchObject({
      code: "INVALID_OPTION",
    });
    const edits = await uni.edit([picture, other], "make it red", { seed: 4 });
    expect(same(edits[1]!, await uni.edit(other, "make it red", { seed: 5 }))).toBe(true);
  });
});

describe("latents", () => {
  test("go there and back", async () => {
    const latents = await uni.generateLatents("a red circle", { seed: 5 });
    const image = await uni.decodeLatents(latents);
    expect(same(image, await uni.generate("a red circle", { seed: 5 }))).toBe(true);
    expect(await uni.decodeLatents(Array.from(latents) as never)).toMatchObject({ width: 32 });
    const shared = new Float32Array(new SharedArrayBuffer(4 * latents.length + 8), 8);
    shared.set(latents);
    expect(same(await uni.decodeLatents(shared), image)).toBe(true);
  });

  test("an autoencoder alone takes any size it can divide", async () => {
    const image = { pixels: new Uint8Array(20 * 12 * 3).fill(99), width: 20, height: 12 };
    const latents = await vae.encodeImage(image);
    expect(latents).toHaveLength(5 * 3 * 4);
    expect(await vae.decodeLatents(latents, { width: 20, height: 12 })).toMatchObject({
      width: 20,
      height: 12,
    });
    const odd = { pixels: new Uint8Array(6 * 4 * 3), width: 6, height: 4 };
    await expect(vae.encodeImage(odd)).rejects.toMatchObject({ code: "IMAGE_UNSUPPORTED_INPUT" });
  });

  test.each<[Float32Array | string, object | undefined]>([
    [new Float32Array(0), undefined],
    [new Float32Array(7), undefined],
    [new Float32Array(4 * 15), undefined],
    [new Float32Array(4 * 15), { width: 20 }],
    [new Float32Array(4 * 15), { width: 20, height: 16 }],
    [new Float32Array(4 * 15), { width: 21, height: 12 }],
    [new Float32Array(4).fill(Number.NaN), undefined],
    ["latents", undefined],
  ])("latents %# that fit nothing are refused", async (latents, options) => {
    await expect(vae.decodeLatents(latents as Float32Array, options)).rejects.toMatchObject({
      code: "INVALID_OPTION",
    });
  });
});

describe("a signal", () => {
  const long = { steps: 1000, seed: 1 };

  test("ends what runs with its reason", async () => {
    const controller = new AbortController();
    const { signal } = controller;
    const reason = new Error("changed my mind");
    const calls = [
      uni.generate("a star", { ...long, signal }),
      uni.generate(["a star", "a heart"], { ...long, signal }),
      uni.edit(picture, "x", { ...long, signal }),
    ];
    const settled = Promise.allSettled(calls);
    await until(() => uni.stats().running > 0);
    controller.abort(reason);
    for (const result of await settled) expect(result).toEqual({ status: "rejected", reason });
    await until(() => uni.stats().running + uni.stats().waiting === 0);
  });

  test("aborted beforehand lets nothing start", async () => {
    const signal = AbortSignal.abort();
    const name = "AbortError";
    await expect(uni.generate("a star", { signal })).rejects.toMatchObject({ name });
    await expect(uni.caption(picture, { signal })).rejects.toMatchObject({ name });
    await expect(gemma.complete("a", { signal })).rejects.toMatchObject({ name });
    await expect(uni.encodeImage(picture, { signal })).rejects.toMatchObject({ name });
    await expect(gemma.logits({ tokens: [2], signal })).rejects.toMatchObject({ name });
    await expect(uni.generateStream("a", { signal }).next()).rejects.toMatchObject({ name });
    await expect(UniFluid.load(fixture("gemma-tiny"), { signal })).rejects.toMatchObject({ name });
  });

  /** An image that never comes, as the answer of a host that sends no more. */
  const stalled = () => ({ arrayBuffer: () => new Promise<ArrayBuffer>(() => {}) });

  test("ends the wait for an image", async () => {
    const controller = new AbortController();
    const { signal } = controller;
    const reason = new Error("changed my mind");
    const calls = [
      uni.caption(stalled(), { signal }),
      uni.answerStream(stalled(), "how many?", { signal }).next(),
      uni.edit([picture, stalled()], "x", { signal }),
      uni.encodeImage(stalled(), { signal }),
      uni.imageFeatures(stalled(), { signal }),
      uni.logits({ image: stalled(), task: "caption", signal }),
      uni.captionAll([stalled()], { signal }).next(),
    ];
    const settled = Promise.allSettled(calls);
    await new Promise((resolve) => setTimeout(resolve, 20));
    controller.abort(reason);
    for (const result of await settled) expect(result).toEqual({ status: "rejected", reason });
    expect(getEventListeners(signal, "abort")).toHaveLength(0);
  });

  test("is not needed to leave a run whose next image never comes", async () => {
    for await (const { value } of uni.captionAll([picture, stalled()])) {
      expect(value).toEqual(expect.any(String));
      break;
    }
  });

  test("must be one", async () => {
    await expect(uni.generate("a", { signal: {} as AbortSignal })).rejects.toMatchObject({
      code: "INVALID_OPTION",
    });
  });
});

test("after dispose every call rejects with DISPOSED, and so does what was running", async () => {
  const model = await load("unifluid-tiny");
  const running = model.generate("a star", { steps: 1000 });
  const reading = model.caption({ arrayBuffer: () => new Promise<ArrayBuffer>(() => {}) });
  const stopped = Promise.all([
    expect(running).rejects.toMatchObject({ code: "DISPOSED" }),
    expect(reading).rejects.toMatchObject({ code: "DISPOSED" }),
  ]);
  await until(() => model.stats().running > 0);
  await Promise.all([model.dispose(), model[Symbol.asyncDispose]()]);
  await stopped;
  const calls: (() => unknown)[] = [
    () => model.generate("a"),
    () => model.generateStream("a").next(),
    () => model.generateLatents("a"),
    () => model.edit(picture, "a"),
    () => model.editStream(picture, "a").next(),
    () => model.editLatents(picture, "a"),
    () => model.caption(picture),
    () => model.captionStream(picture).next(),
    () => model.answer(picture, "a"),
    () => model.answerStream(picture, "a").next(),
    () => model.logits({ image: picture, task: "caption" }),
    () => model.encodeImage(picture),
    () => model.imageFeatures(picture),
    () => model.decodeLatents(new Float32Array(256)),
    () => model.tokenize("a"),
    () => model.detokenize([5]),
    () => model.stats(),
  ];
  for (const call of calls) {
    await expect((async () => call())()).rejects.toMatchObject({ code: "DISPOSED" });
  }
  await model.dispose();
});

describe("what cannot be done is refused", () => {
  test.each<[string, () => Promise<unknown>, RegExp]>([
    [
      "generate",
      () => pali.generate("a"),
      /paligemma.* cannot generate: it lacks a diffusion head.*can caption, answer/,
    ],
    ["generateStream", () => pali.generateStream("a").next(), /a diffusion head/],
    ["generateLatents", () => gemma.generateLatents("a"), /a diffusion head/],
    ["edit", () => pali.edit(picture, "a"), /a diffusion head/],
    ["editLatents", () => vae.editLatents(picture, "a"), /a decoder/],
    ["caption", () => gemma.caption(picture), /a vision tower/],
    ["answer", () => gemma.answer(picture, "a"), /a vision tower/],
    ["complete", () => pali.complete("a"), /a plain text model/],
    ["logits of tokens", () => pali.logits({ tokens: [2] }), /a plain text model/],
    ["imageFeatures", () => gemma.imageFeatures(picture), /a vision tower/],
    ["encode", () => pali.encodeImage(picture), /an autoencoder/],
    ["decode", () => gemma.decodeLatents(new Float32Array(4)), /an autoencoder/],
    ["tokenize", async () => vae.tokenize("a"), /a decoder/],
  ])("%s without the part it needs", async (_name, call, message) => {
    await expect(call()).rejects.toMatchObject({
      name: "UnsupportedTaskError",
      code: "UNSUPPORTED_TASK",
      message: expect.stringMatching(message),
    });
  });

  test("prompts beyond the model's length", async () => {
    const words = "stars ".repeat(300);
    const code = "PROMPT_TOO_LONG";
    await expect(uni.generate(words)).rejects.toMatchObject({
      code,
      name: "PromptTooLongError",
      message: expect.stringMatching(
        /takes \d+ rows and what follows it 16: \d+ together.*at most 256/,
      ),
    });
    await expect(uni.answer(picture, words)).rejects.toMatchObject({ code });
    await expect(uni.edit(picture, words)).rejects.toMatchObject({ code });
    await expect(gemma.complete(words)).rejects.toMatchObject({ code });
    // What cannot fit is not tokenized: a text of megabytes would hold up everything else for minutes.
    const book = "a ".repeat(200_000);
    const message = expect.stringMatching(
      /of 40\d+ characters takes at least \d+ rows.*at most 256/,
    );
    await expect(uni.generate(book)).rejects.toMatchObject({ code, message });
    await expect(gemma.complete(book)).rejects.toMatchObject({ code, message });
    await expect(gemma.complete("a", { maxNewTokens: 255 })).rejects.toMatchObject({ code });
    await expect(gemma.logits({ tokens: new Array(257).fill(5) })).rejects.toMatchObject({ code });
    // The default limit gives way to the prompt.
    const tokens = gemma.tokenize("stars ".repeat(300)).slice(0, 250);
    expect(typeof (await gemma.complete(gemma.detokenize(tokens).slice(0, 240)))).toBe("string");
  });

  test.each<[string, () => Promise<unknown>]>([
    ["a prompt that is no text", () => uni.generate(3 as never)],
    ["one of several", () => uni.generate(["a", null as never])],
    ["a list that lacks one in its middle", () => uni.generate(new Array(2))],
    ["texts of which there are none", () => uni.answer(picture, new Array(2))],
    ["a question that is no text", () => uni.answer(picture, undefined as never)],
    ["an instruction that is no text", () => uni.editLatents(picture, {} as never)],
    ["an unknown option", () => uni.generate("a", { step: 3 } as never)],
    ["options of another kind", () => uni.generate("a", 7 as never)],
    ["no steps", () => uni.generate("a", { steps: 0 })],
    ["a guidance beyond sense", () => uni.generate("a", { guidance: -1e5 })],
    ["a seed below 0", () => uni.generate("a", { seed: -1 })],
    ["a seed of 2^64", () => uni.generate("a", { seed: 2n ** 64n })],
    ["an infinite temperature", () => uni.generate("a", { temperature: Infinity })],
    ["no new tokens", () => uni.caption(picture, { maxNewTokens: 0 })],
    ["no tokens", () => gemma.logits({ tokens: [] })],
    ["tokens beyond the vocabulary", () => gemma.logits({ tokens: [352] })],
    ["tokens that are text", () => gemma.logits({ tokens: "abc" as never })],
    ["a task that is none", () => uni.logits({ image: picture, task: "draw" } as never)],
    ["logits of nothing", () => uni.logits({} as LogitsOptions)],
    ["an answer without a question", () => uni.logits({ image: picture, task: "answer" })],
    ["a text that is none", async () => gemma.tokenize(3 as never)],
    ["ids that are none", async () => gemma.detokenize([1.5])],
    ["ids that only look like an Int32Array", async () => gemma.detokenize(pretended())],
    ["bytes for many images", async () => uni.captionAll(new Uint8Array(4) as never).next()],
    ["ids that are bigints", async () => gemma.detokenize(new BigInt64Array(2) as never)],
    ["a typed array of what is no id", async () => gemma.detokenize(new Float32Array([1.5]))],
    ["tokens and an image", () => uni.logits({ tokens: [2], image: picture } as LogitsOptions)],
    ["tokens and a task", () => uni.logits({ tokens: [2], task: "caption" } as never)],
    ["tokens and a question", () => uni.logits({ tokens: [2], question: "who?" } as never)],
    ["ids whose buffer was transferred", async () => gemma.detokenize(transferred())],
    ["a suffix whose buffer was", () => gemma.logits({ tokens: [2], suffix: transferred() })],
  ])("%s", async (_name, call) => {
    await expect(call()).rejects.toMatchObject({
      name: "InvalidOptionError",
      code: "INVALID_OPTION",
    });
  });

  test.each<[string, unknown, string]>([
    ["nothing", undefined, "IMAGE_UNSUPPORTED_INPUT"],
    ["no bytes", new Uint8Array(0), "IMAGE_EMPTY"],
    ["bytes of something else", Buffer.from("hello"), "IMAGE_UNDECODABLE"],
    ["a file that is not there", "none.png", "IMAGE_NOT_FOUND"],
    ["missing in a list", new Array(1), "IMAGE_UNSUPPORTED_INPUT"],
  ])("an image that is %s", async (_name, image, code) => {
    await expect(uni.caption(image as never)).rejects.toMatchObject({ code });
    await expect(uni.edit(image as never, "a")).rejects.toMatchObject({ code });
    await expect(uni.encodeImage(image as never)).rejects.toMatchObject({ code });
  });

  test("an image that is too long for an autoencoder alone", async () => {
    const [width, height] = [40_000, 4];
    const long = { pixels: new Uint8Array(width * height * 3), width, height };
    await expect(vae.encodeImage(long)).rejects.toMatchObject({
      code: "IMAGE_TOO_LARGE",
      message: expect.stringContaining("40000 x 4 pixels"),
    });
  });

  test("an item of many that is a list itself", async () => {
    const codes: (string | undefined)[] = [];
    const run = async (results: AsyncIterable<{ error?: Error & { code?: string } }>) => {
      for await (const { error } of results) codes.push(error?.code);
    };
    await run(uni.generateAll([{ prompt: ["a", "b"] } as never]));
    await run(uni.editAll([{ image: [picture], instruction: "a" } as never]));
    await run(uni.captionAll([[picture] as never, { image: [picture] } as never]));
    await run(uni.answerAll([{ image: picture, question: ["a"] } as never]));
    expect(codes).toEqual(Array(5).fill("INVALID_OPTION"));
  });

  test("too little memory, for the model or for a sequence", async () => {
    const code = "INSUFFICIENT_MEMORY";
    await expect(load("unifluid-tiny", { maxMemory: 1000 })).rejects.toMatchObject({ code });
    const { minimum } = estimateMemory(await readCheckpoint(fixture("gemma2-tiny")));
    const tight = await load("gemma2-tiny", { maxMemory: minimum + 20_000 });
    await expect(tight.complete("stars ".repeat(30))).rejects.toMatchObject({ code });
  });

  test("logits beyond the memory, before any is computed", async () => {
    const { minimum } = estimateMemory(await readCheckpoint(fixture("gemma2-tiny")));
    const tight = await load("gemma2-tiny", { device: "cpu", maxMemory: minimum + 60_000 });
    const tokens = Array(32).fill(5);
    const refusal = await tight.logits({ tokens }).catch((error: unknown) => error);
    expect(refusal).toMatchObject({ code: "INSUFFICIENT_MEMORY" });
    const [, needed] = /the request needs (\d+) bytes/.exec((refusal as Error).message)!;
    expect(Number(needed)).toBeGreaterThan(tokens.length * tight.info.vocabSize! * 4);
    // What those of fewer tokens took is free again when they are handed over.
    for (let i = 0; i < 8; i++)
      expect(await tight.logits({ tokens: tokens.slice(0, 8) })).toHaveLength(
        8 * tight.info.vocabSize!,
      );
    expect(tight.stats().sequenceBytes).toBe(0);
  });
});

test("requests beyond maxSequences wait their turn", async () => {
  const model = await load("unifluid-tiny", { maxSequences: 2 });
  const prompts = ["a", "b", "c", "d", "e"];
  const images = await model.generate(prompts, { seed: 1 });
  for (const [i, prompt] of prompts.entries()) {
    expect(same(images[i]!, await uni.generate(prompt, { seed: 1 + i }))).toBe(true);
  }
});

test("ids in any typed array of numbers", async () => {
  const ids = gemma.tokenize("a b");
  const expected = await gemma.logits({ tokens: ids });
  for (const Type of [Int16Array, Int32Array, Uint16Array, Uint32Array, Float32Array]) {
    const tokens = Type.from(ids);
    expect(gemma.detokenize(tokens)).toBe(gemma.detokenize(ids));
    expect(await gemma.logits({ tokens })).toEqual(expected);
  }
});

test("numbers of a reading task", async () => {
  const suffix = uni.tokenize("two stars");
  const logits = await uni.logits({ image: picture, task: "caption", suffix });
  expect(logits).toHaveLength((suffix.length + 1) * uni.info.vocabSize!);
  // Those it had when the call was made.
  const changed = uni.logits({ image: picture, task: "caption", suffix });
  suffix.push(suffix[0]!);
  expect(await changed).toEqual(logits);
  suffix.pop();
  const first = await uni.logits({ image: picture, task: "caption" });
  expect(first).toEqual(logits.slice(0, uni.info.vocabSize));
  expect(uni.detokenize(suffix)).toBe("two stars");
});
