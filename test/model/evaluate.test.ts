/** The suite on models: what it reports, and that it can tell. */
import { execFile } from "node:child_process";
import { mkdtemp, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join, resolve } from "node:path";
import { promisify } from "node:util";
import { stringify } from "yaml";
import { UniFluid } from "../../lib";
import { SUITE_PARTS } from "../../lib/evaluate/parts";
import {
  drawingNumber,
  evaluateScenes,
  itemsOf,
  type SuiteOptions,
} from "../../lib/evaluate/scenes-suite";
import { initCheckpoint } from "../../lib/init/init";
import { FIXTURES } from "../support/fixtures";
import { TINY_MODEL } from "../support/training";

const main = resolve(__dirname, "../../dist/cli/main.js");

let model: UniFluid;
beforeAll(async () => {
  model = await UniFluid.load("shapes-64", { threads: 2 });
});
afterAll(() => model.dispose());

test("every part is measured, on as many cases as were asked for, the same again", async () => {
  let items = 0;
  const options = { scenes: 4, seed: 1n, steps: 2 };
  const report = await evaluateScenes(model, { ...options, onItem: () => items++ });
  expect(items).toBe(itemsOf(options));
  expect(Object.keys(report.generation!.tasks)).toHaveLength(6);
  const rates = [
    ...Object.values(report.generation!.tasks),
    report.heldOut!.heldOut,
    report.captions!.exact,
    report.answers!.all,
    report.edits!.all,
    report.vae!.parsed,
  ];
  for (const { rate, n } of rates) {
    expect(n).toBe(4);
    expect(rate).toBeGreaterThanOrEqual(0);
    expect(rate).toBeLessThanOrEqual(1);
  }
  const cases = (rates: Record<string, { n: number }>) =>
    Object.values(rates).reduce((sum, { n }) => sum + n, 0);
  // Every scene has all slots but the relation, and none is right less often than all of them.
  const { bySlot, exact } = report.captions!;
  const { relation, ...others } = bySlot;
  expect(Object.keys(others)).toEqual(["count", "size", "color", "shape", "background"]);
  for (const { rate, n } of Object.values(others)) {
    expect(n).toBe(4);
    expect(rate).toBeGreaterThanOrEqual(exact.rate);
  }
  expect(relation?.n ?? 0).toBeLessThan(4);
  const { byObjects, byShape } = report.generation!;
  expect(cases(byObjects)).toBe(4);
  const objects = Object.entries(byObjects).reduce((sum, [k, { n }]) => sum + Number(k) * n, 0);
  expect(cases(byShape)).toBe(objects);
  // True pictures are parsed right, a source handed back is no edit, and the autoencoder is a good one.
  expect(report.vae!.parsed.rate).toBe(1);
  expect(report.vae!.psnr).toBeGreaterThan(28);
  expect(report.edits!.copied.rate).toBe(0);
  const { n, references, width } = report.frechet!;
  expect([n, references, width]).toEqual([4, 16, model.info.vision!.width]);
  expect(await evaluateScenes(model, options)).toEqual(report);
  // What was asked for, and what the model has where nothing was.
  const { guidance, order } = model.info.generation.image;
  expect(report).toMatchObject({ suite: "scenes", seed: 1n, steps: 2, guidance, order });
}, 120_000);

test("another seed draws with other noise", async () => {
  const seedsOf = async (seed: bigint) => {
    const generate = jest.spyOn(model, "generate");
    const edit = jest.spyOn(model, "edit");
    try {
      const only = ["generation", "held-out", "edits"] as const;
      await evaluateScenes(model, { scenes: 2, seed, steps: 1, only });
      // Those without items only check.
      const calls = [...generate.mock.calls, ...edit.mock.calls].filter(
        ([of]) => !Array.isArray(of),
      );
      return calls.map((call) => String((call.at(-1) as { seed: bigint }).seed));
    } finally {
      generate.mockRestore();
      edit.mockRestore();
    }
  };
  const [first, second] = [await seedsOf(1n), await seedsOf(2n)];
  expect(new Set([...first, ...second]).size).toBe(first.length + second.length);
});

test("drawings of up to 10,000 scenes have the numbers that they always had, and more have others", () => {
  // Of the parts with the lowest and the highest number, and of two that follow each other.
  const firsts = [10_000, 100_000, 110_000, 600_000];
  for (const first of firsts) {
    expect(drawingNumber(first, 0)).toBe(first);
    expect(drawingNumber(first, 9_999)).toBe(first + 9_999);
  }
  const numbers = firsts.flatMap((first) =>
    Array.from({ length: 100_000 }, (_, i) => drawingNumber(first, i)),
  );
  expect(new Set(numbers).size).toBe(numbers.length);
  // Seeds of the suite are 2^32 numbers apart.
  expect(numbers.reduce((a, b) => Math.max(a, b))).toBeLessThan(2 ** 32);
});

test("a model that draws pictures of another size is measured too", async () => {
  const folder = await mkdtemp(join(tmpdir(), "evaluate-"));
  try {
    const sizes = {
      ...TINY_MODEL,
      image_generation: { ...TINY_MODEL.image_generation, image_size: 128, grid: 8 },
    };
    await writeFile(join(folder, "sizes.yaml"), stringify(sizes));
    const out = join(folder, "model");
    await initCheckpoint(join(folder, "sizes.yaml"), out, { seed: 1n, vae: "shapes-64" });
    await using large = await UniFluid.load(out, { threads: 2 });
    const options = { scenes: 2, seed: 1n, steps: 1 };
    let items = 0;
    const report = await evaluateScenes(large, { ...options, onItem: () => items++ });
    expect(items).toBe(itemsOf(options));
    // True pictures are as large as the model's own, and its autoencoder is that of the shipped model.
    const { parsed, psnr } = report.vae!;
    expect(parsed.rate).toBe(1);
    expect(psnr).toBeGreaterThan(28);
    expect(report.edits!.copied).toEqual({ rate: 0, n: 2 });
    const { drawn, floor, autoencoder } = report.frechet!;
    for (const distance of [drawn, floor, autoencoder]) expect(distance).toBeGreaterThan(0);
  } finally {
    await rm(folder, { recursive: true });
  }
}, 120_000);

test("another model's tower gives the features, and one is needed", async () => {
  const other = await UniFluid.load(join(FIXTURES, "unifluid-flow-tiny"), { threads: 1 });
  const only = ["frechet"] as const;
  const options = { scenes: 3, seed: 1n, steps: 1, only };
  const report = await evaluateScenes(model, { ...options, features: other });
  expect(report.frechet).toMatchObject({
    width: other.info.vision!.width,
    features: other.info.directory,
  });
  // An untrained model draws noise, and its autoencoder leaves nothing of true pictures.
  const untrained = await evaluateScenes(other, { ...options, features: model });
  const near = (await evaluateScenes(model, options)).frechet!;
  expect(untrained.frechet!.floor).toBe(near.floor);
  expect(near.autoencoder).toBeGreaterThan(0.5 * near.floor);
  expect(near.autoencoder).toBeLessThan(2 * near.floor);
  for (const name of ["drawn", "autoencoder"] as const) {
    expect(untrained.frechet![name]).toBeGreaterThan(4 * near[name]);
  }
  await other.dispose();
  const blind = await UniFluid.load(join(FIXTURES, "gemma-tiny"), { threads: 1 });
  await expect(evaluateScenes(model, { ...options, features: blind })).rejects.toMatchObject({
    code: "UNSUPPORTED_TASK",
    message: expect.stringMatching(/has no vision tower/),
  });
  // Before any other part begins.
  const onItem = () => {
    throw new Error("began");
  };
  const all = { scenes: 3, seed: 1n, features: blind, onItem };
  await expect(evaluateScenes(model, all)).rejects.toMatchObject({ code: "UNSUPPORTED_TASK" });
  await blind.dispose();
}, 120_000);

describe("before any part begins", () => {
  const refused = async (
    of: UniFluid,
    options: Partial<SuiteOptions>,
    error: { code: string; message: RegExp },
  ) => {
    const onItem = jest.fn();
    const run = evaluateScenes(of, { scenes: 2, seed: 1n, ...options, onItem });
    await expect(run).rejects.toMatchObject({
      ...error,
      message: expect.stringMatching(error.message),
    });
    expect(onItem).not.toHaveBeenCalled();
  };
  const invalid = (message: RegExp) => ({ code: "INVALID_OPTION", message });

  test("settings that the model does not draw with are refused", async () => {
    await refused(model, { steps: 0 }, invalid(/for steps but received 0$/));
    await refused(model, { guidance: 1e9 }, invalid(/for guidance/));
    for (const part of ["edits", "held-out", "generation", "frechet"] as const)
      await refused(model, { steps: 0.5, only: ["captions", part] }, invalid(/for steps/));
    await using ddpm = await UniFluid.load(join(FIXTURES, "unifluid-tiny"), { threads: 1 });
    await refused(ddpm, { steps: 2000 }, invalid(/for steps but received 2000$/));
  });

  test("parts beyond what the model can do are refused", async () => {
    const cannot = (task: string) => ({
      code: "UNSUPPORTED_TASK",
      message: new RegExp(`cannot ${task}: it lacks`),
    });
    await using reader = await UniFluid.load(join(FIXTURES, "paligemma-tiny"), { threads: 1 });
    await refused(reader, { only: ["captions", "generation"] }, cannot("generate"));
    await refused(reader, { only: ["captions", "held-out"] }, cannot("generate"));
    await refused(reader, { only: ["captions", "edits"] }, cannot("edit"));
    await refused(reader, { only: ["captions", "frechet"] }, cannot("generate"));
    await using coder = await UniFluid.load(join(FIXTURES, "vae-tiny"), { threads: 1 });
    await refused(coder, { only: ["vae", "captions"] }, cannot("caption"));
    await refused(coder, { only: ["vae", "answers"] }, cannot("answer"));
  });
});

test("the command tells distances, of how many pictures and whether those are too few", async () => {
  const run = (...args: string[]) =>
    promisify(execFile)(process.execPath, [main, "eval", "shapes-64", ...args]).then(
      ({ stdout }) => ({ code: 0, stdout, stderr: "" }),
      ({ code, stdout, stderr }) => ({ code, stdout, stderr }),
    );
  const few = ["--only", "frechet", "--scenes", "1", "--steps", "1"];
  const own = await run(...few);
  expect(own.stdout).toMatch(
    /^Fréchet distance of drawings +[\d.]+\n.*\(the floor\) +[\d.]+\n.*autoencoder +[\d.]+\n.* 1 against 4, \d+ features; too few/,
  );
  const tiny = join(FIXTURES, "unifluid-tiny");
  const out = await run(...few, "--features", tiny, "--json");
  const { frechet, ...rest } = JSON.parse(out.stdout);
  const { guidance, order } = model.info.generation.image;
  const drawn = { steps: 1, guidance, order };
  expect(rest).toEqual({ model: "shapes-64", suite: "scenes", seed: 0, ...drawn });
  expect(frechet).toMatchObject({ n: 1, references: 4, features: tiny });
  expect(Object.values(frechet)).not.toContain(null);
  expect(await run("--only", "vae", "--features", tiny)).toMatchObject({
    code: 2,
    stderr: expect.stringContaining("--features belongs to the part frechet"),
  });
}, 120_000);

test("captions are judged slot by slot, and the command's table tells each", async () => {
  const only = ["captions"] as const;
  const say = jest.spyOn(model, "caption");
  try {
    // As many objects, one colour and one background are right by luck; sizes are never said.
    say.mockImplementation((async () => "a red circle on a pink background") as never);
    const report = await evaluateScenes(model, { scenes: 40, seed: 3n, only });
    const { bySlot, exact, byObjects } = report.captions!;
    expect(exact.rate).toBe(0);
    expect(bySlot.size).toEqual({ rate: 0, n: 40 });
    expect(bySlot.count!.rate).toBe(byObjects["1"]!.n / 40);
    for (const slot of ["color", "shape", "background"]) {
      expect(bySlot[slot]!.rate).toBeGreaterThan(0);
      expect(bySlot[slot]!.rate).toBeLessThan(0.5);
    }
    // Only of two objects that are not alike.
    expect(bySlot.relation!.rate).toBe(0);
    expect(bySlot.relation!.n).toBeGreaterThan(0);
    expect(bySlot.relation!.n).toBeLessThanOrEqual(byObjects["2"]!.n);
  } finally {
    say.mockRestore();
  }
  const run = [main, "eval", "shapes-64", "--only", "captions", "--scenes", "2"];
  const { stdout } = await promisify(execFile)(process.execPath, run);
  for (const slot of ["count", "size", "color", "shape", "background"])
    expect(stdout).toMatch(new RegExp(`^  slot: ${slot} +[\\d.]+ % of 2$`, "m"));
});

test("however many pictures there are, few wait in the engine", async () => {
  const features = model.imageFeatures.bind(model);
  let [running, most] = [0, 0];
  const spy = jest.spyOn(model, "imageFeatures").mockImplementation(async (...args) => {
    most = Math.max(most, ++running);
    return await features(...args).finally(() => running--);
  });
  const options = { scenes: 40, seed: 1n, only: ["frechet"], steps: 1 } as const;
  await evaluateScenes(model, options).finally(() => spy.mockRestore());
  expect(most).toBe(128);
});

test("parts can be chosen, and an abort ends it", async () => {
  const only = ["captions"] as const;
  const report = await evaluateScenes(model, { scenes: 2, seed: 1n, only });
  expect(Object.keys(report)).toEqual(["suite", "seed", "captions"]);
  expect(SUITE_PARTS).toContain("captions");
  const signal = AbortSignal.abort(new Error("enough"));
  await expect(evaluateScenes(model, { scenes: 2, seed: 1n, only, signal })).rejects.toThrow(
    "enough",
  );
});

test.each(["vae", "frechet"] as const)(
  "an abort ends the autoencoder's work of %s",
  async (part) => {
    const controller = new AbortController();
    let items = 0;
    const onItem = () => {
      items++;
      controller.abort(new Error("enough"));
    };
    const { signal } = controller;
    const options = { scenes: 300, seed: 1n, only: [part], signal, onItem };
    await expect(evaluateScenes(model, options)).rejects.toThrow("enough");
    expect(items).toBeLessThan(100);
  },
);
