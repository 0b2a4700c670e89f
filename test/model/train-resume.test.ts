/** Runs that go on with other settings than before, and data that are not as a model was made for. */
import { rmSync } from "node:fs";
import { cp, readdir, readFile, rm, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { Trainer, UniFluid } from "../../lib";
import { loadAddon } from "../../lib/addon";
import { readCheckpoint } from "../../lib/checkpoint/checkpoint";
import { writeSafetensors } from "../../lib/checkpoint/safetensors-writer";
import { decodeImage } from "../../lib/image-input";
import { Random } from "../../lib/philox";
import { resize, toVisionPixels } from "../../lib/preprocess";
import { Pictures } from "../../lib/train/pictures";
import { Sequences } from "../../lib/train/sequences";
import { FIXTURES, Tensors } from "../support/fixtures";
import { relativeError } from "../support/parity";
import { Runs } from "../support/runs";
import { bfloats, TINY_MODEL } from "../support/training";

const runs = new Runs();
beforeAll(() => runs.open(), 120_000);
afterAll(() => runs.close());

const json = async (...path: string[]) => JSON.parse(await readFile(join(...path), "utf8"));
const state = (out: string, step: number) =>
  new Tensors(join(runs.checkpoint(out, step), "trainer.safetensors"));

test("an average that is asked for later begins with the weights of then, and may be given up", async () => {
  const change = { compute: "float32", steps: 2, ema: 0 };
  await runs.train("average", change);
  expect(state("average", 2).names.some((n) => n.startsWith("ema."))).toBe(false);
  await runs.train("average", { ...change, steps: 3, ema: 0.9 }, { resume: true });
  const [before, after] = [state("average", 2), state("average", 3)];
  const keep = 3 / 13;
  const name = "image_in.weight";
  const [old, now] = [before.floats(`weights.${name}`), after.floats(`weights.${name}`)];
  const wanted = Array.from(old, (v, i) => keep * v + (1 - keep) * now[i]!);
  expect(relativeError(after.floats(`ema.${name}`), wanted)).toBeLessThan(1e-6);
  expect(relativeError(now, Array.from(old))).toBeGreaterThan(1e-4);
  const given = { ...change, steps: 4, ema: 0 };
  expect(await runs.train("average", given, { resume: true })).toMatchObject({ step: 4 });
});

test("the average of a tensor that is frozen on the way is its weights", async () => {
  const change = { compute: "float32", steps: 2, ema: 0.9 };
  await runs.train("freezing", change);
  const freeze = ["image_in.*"];
  await runs.train("freezing", { ...change, steps: 3, freeze }, { resume: true });
  const [before, after] = [state("freezing", 2), state("freezing", 3)];
  const [frozen, other] = ["image_in.weight", "language_model.layers.0.mlp.up_proj.weight"];
  expect(before.floats(`ema.${frozen}`)).not.toEqual(before.floats(`weights.${frozen}`));
  expect(after.floats(`weights.${frozen}`)).toEqual(before.floats(`weights.${frozen}`));
  expect(after.names.filter((n) => n.endsWith(frozen))).toEqual([`weights.${frozen}`]);
  const model = new Tensors(join(runs.checkpoint("freezing", 3), "model.safetensors"));
  const weights = before.floats(`weights.${frozen}`);
  expect(relativeError(bfloats(model, frozen), Array.from(weights))).toBeLessThan(2 ** -8);
  expect(after.floats(`ema.${other}`)).not.toEqual(after.floats(`weights.${other}`));
});

test("a run with frozen tensors resumes bit for bit", async () => {
  const change = { schedule: "constant", freeze: ["*q_proj.weight", "image_in.*"] };
  await runs.train("frozen-whole", { ...change, steps: 4 });
  await runs.train("frozen-parts", { ...change, steps: 2 });
  await runs.train("frozen-parts", { ...change, steps: 4 }, { resume: true });
  const [whole, parts] = [
    await runs.weightsOf("frozen-whole", 4),
    await runs.weightsOf("frozen-parts", 4),
  ];
  expect(Buffer.compare(whole, parts)).toBe(0);
});

/** Rewrites the state of a run as versions did that kept no counts of updates, and moments of frozen tensors as well. */
async function forgetUpdates(out: string, step: number) {
  const stored = state(out, step);
  const names = stored.names.filter((n) => n.startsWith("weights.")).map((n) => n.slice(8));
  const tensors = ["weights", "ema", "first", "second"].flatMap((kind) =>
    names.map((name) => {
      const { shape } = stored.get(`weights.${name}`);
      const floats = Float32Array.from(stored.floats(`weights.${name}`));
      const own = `${kind}.${name}`;
      if (stored.names.includes(own)) floats.set(stored.floats(own));
      else if (kind !== "ema") floats.fill(0);
      return {
        name: own,
        dtype: "F32" as const,
        shape,
        bytes: () => new Uint8Array(floats.buffer),
      };
    }),
  );
  await writeSafetensors(join(runs.checkpoint(out, step), "trainer.safetensors"), tensors);
}

test("a tensor that is thawed begins with updates of the size of the rate", async () => {
  const rates = { learningRate: 1e-3, schedule: "constant", warmup: 0, weightDecay: 0 };
  const change = { ...rates, compute: "float32", beta2: 0.999, epsilon: 1e-15 };
  const name = "image_in.bias";
  const freeze = ["image_in.*"];
  const resume = { resume: true };
  // Frozen from the beginning, and after it was trained.
  await runs.train("thawed", { ...change, steps: 30, freeze });
  await runs.train("paused", { ...change, steps: 3 });
  await runs.train("paused", { ...change, steps: 30, freeze }, resume);
  await cp(join(runs.folder, "thawed"), join(runs.folder, "older"), { recursive: true });
  await forgetUpdates("older", 30);
  for (const out of ["thawed", "paused", "older"]) {
    await runs.train(out, { ...change, steps: 31 }, resume);
    const [before, after] = [state(out, 30), state(out, 31)];
    const was = before.floats(`weights.${name}`);
    for (const [i, now] of after.floats(`weights.${name}`).entries())
      expect(Math.abs(now - was[i]!) / rates.learningRate).toBeCloseTo(1, 1);
    expect(Array.from(after.floats(`updates.${name}`))).toEqual([1]);
    expect(Array.from(after.floats("updates.image_begin"))).toEqual([31]);
  }
  const [now, older] = [await runs.weightsOf("thawed", 31), await runs.weightsOf("older", 31)];
  expect(Buffer.compare(now, older)).toBe(0);
});

test("the folder has the settings in force, and those before under another name", async () => {
  const change = { steps: 1, learningRate: 1e-3 };
  await runs.train("settings", change);
  await runs.train("settings", { ...change, steps: 2, learningRate: 2e-3 }, { resume: true });
  const text = (name: string) => readFile(join(runs.folder, "settings", name), "utf8");
  expect(await text("run.yaml")).toContain("learningRate: 0.002");
  expect(await text("run-until-step-00000001.yaml")).toContain("learningRate: 0.001");
  await runs.train("settings", { ...change, steps: 2, learningRate: 2e-3 }, { resume: true });
  const names = await readdir(join(runs.folder, "settings"));
  expect(names.filter((n) => n.endsWith(".yaml"))).toHaveLength(2);
  // With settings that are changed again before a step is done with them, none was done.
  for (const learningRate of [3e-3, 4e-3]) {
    const options = { out: join(runs.folder, "settings"), resume: true };
    await (await Trainer.open(runs.config({ ...change, steps: 3, learningRate }), options)).close();
  }
  expect(await text("run.yaml")).toContain("learningRate: 0.004");
  expect(await text("run-until-step-00000002.yaml")).toContain("learningRate: 0.002");
});

test("settings of steps that were given up go with them, and those before are of the steps that are left", async () => {
  const rates = async (out: string) => {
    const folder = join(runs.folder, out);
    const names = (await readdir(folder)).filter((name) => name.endsWith(".yaml")).sort();
    const texts = await Promise.all(names.map((name) => readFile(join(folder, name), "utf8")));
    return names.map((name, i) => [name, Number(/learningRate: (.*)/.exec(texts[i]!)?.[1])]);
  };
  const run = (out: string, steps: number, learningRate: number) =>
    runs.train(out, { steps, learningRate, checkpoint: { every: 1, keep: 9 } }, { resume: true });
  await run("given-up", 2, 1e-3);
  await run("given-up", 3, 2e-3);
  await run("given-up", 4, 3e-3);
  for (const step of [2, 3, 4]) await rm(runs.checkpoint("given-up", step), { recursive: true });
  await cp(join(runs.folder, "given-up"), join(runs.folder, "as-before"), { recursive: true });
  await run("given-up", 3, 4e-3);
  // Step 1 was done with the first settings, and no step that is left with the second or third.
  const first = ["run-until-step-00000001.yaml", 1e-3];
  expect(await rates("given-up")).toEqual([first, ["run.yaml", 4e-3]]);
  // Also where the run goes on with the settings that it had.
  await run("as-before", 4, 3e-3);
  expect(await rates("as-before")).toEqual([first, ["run.yaml", 3e-3]]);
});

test("sheets of samples behind the checkpoint go with the metrics of the part that was given up", async () => {
  const prompts = ["a red circle"];
  const change = { steps: 4, checkpoint: { every: 2 }, samples: { every: 2, prompts, steps: 1 } };
  await runs.train("sheets", change);
  const sheets = () => readdir(join(runs.folder, "sheets", "samples"));
  expect(await sheets()).toEqual(["step-00000002.png", "step-00000004.png"]);
  // A person's own, and what a kill left half-written.
  const others = ["mine.png", "step-00000002.png.0123abcd.tmp"];
  for (const name of others) await writeFile(join(runs.folder, "sheets", "samples", name), "");
  await rm(runs.checkpoint("sheets", 4), { recursive: true });
  const options = { out: join(runs.folder, "sheets"), resume: true };
  await using trainer = await Trainer.open(runs.config(change), options);
  expect(await sheets()).toEqual(["mine.png", "step-00000002.png"]);
  // Neither is shown.
  await writeFile(join(runs.folder, "sheets", "samples", others[1]!), "");
  await trainer.run();
  const report = await readFile(join(runs.folder, "sheets", "report.html"), "utf8");
  expect(report.match(/samples\/[^"]*/g)).toEqual([
    "samples/step-00000004.png",
    "samples/step-00000002.png",
  ]);
});

test.each<[string, (tensor: { name: string; rows: number }) => object, string]>([
  [
    "a tensor of another name",
    () => ({ name: "first.x" }),
    "first.x is not a tensor of this model",
  ],
  ["one that is missing", () => ({ rows: 0 }), "trainer.safetensors has no first.image_in.weight"],
  [
    "one of another size",
    ({ rows }) => ({ rows: rows + 1 }),
    "first.image_in.weight has another size",
  ],
])("where there is no other checkpoint, a state with %s is refused", async (what, change, told) => {
  await runs.train(what, { steps: 1 });
  const folder = runs.checkpoint(what, 1);
  const path = join(folder, "trainer.safetensors");
  const stored = new Tensors(path);
  const tensors = stored.names.flatMap((name) => {
    const { shape } = stored.get(name);
    const values = stored.floats(name);
    const as = { name, rows: shape[0]! };
    if (name === "first.image_in.weight") Object.assign(as, change(as));
    const [rows, row] = [as.rows, values.length / shape[0]!];
    if (rows === 0) return [];
    const floats = new Float32Array(rows * row);
    floats.set(values);
    const bytes = () => new Uint8Array(floats.buffer);
    return [{ name: as.name, dtype: "F32" as const, shape: [rows, ...shape.slice(1)], bytes }];
  });
  await writeSafetensors(path, tensors);
  await expect(runs.train(what, { steps: 2 }, { resume: true })).rejects.toMatchObject({
    code: "INVALID_CHECKPOINT",
    message: `${folder}: ${told}`,
  });
});

test("a source that took another's place begins anew", async () => {
  const of = (...tasks: string[]) => ({
    sources: tasks.map((task) => ({
      manifest: join(runs.folder, "data", `${task}.jsonl`),
      examples: 1,
    })),
  });
  await runs.train("places", { ...of("generate", "caption"), steps: 2 });
  const notes: string[] = [];
  const options = { resume: true, onNote: (message: string) => notes.push(message) };
  await runs.train("places", { ...of("generate", "answer", "caption"), steps: 3 }, options);
  expect(notes.filter((n) => n.includes("read from its beginning"))).toEqual([
    expect.stringContaining("answer.jsonl"),
    expect.stringContaining("caption.jsonl"),
  ]);
  expect(await json(runs.checkpoint("places", 3), "positions.json")).toMatchObject([
    { manifest: "generate.jsonl", records: 24, drawn: 3 },
    { manifest: "answer.jsonl", records: 24, drawn: 1 },
    { manifest: "caption.jsonl", records: 24, drawn: 1 },
  ]);
});

test("examples draw the same orders, timesteps and noise in one batch or in several", async () => {
  const change = { steps: 1, compute: "float32", learningRate: 1e-9, contextNoise: 0.2 };
  const losses: number[] = [];
  for (const accumulation of [1, 2, 3]) {
    await runs.train(`batches-${accumulation}`, { ...change, accumulation });
    const [{ imageLoss, gradientNorm }] = await runs.metricsOf(`batches-${accumulation}`);
    losses.push(imageLoss, gradientNorm);
  }
  const [loss, norm] = losses as [number, number];
  for (let i = 2; i < losses.length; i += 2) {
    expect(Math.abs(losses[i]! / loss - 1)).toBeLessThan(1e-6);
    expect(Math.abs(losses[i + 1]! / norm - 1)).toBeLessThan(1e-5);
  }
});

test("a checkpoint draws in the order that it was trained in", async () => {
  await runs.train("raster", { steps: 1, order: "raster" });
  const before = await json(runs.folder, "start", "generation_config.json");
  expect(before.image.order).toBe("random");
  expect(await json(runs.checkpoint("raster", 1), "generation_config.json")).toEqual({
    ...before,
    image: { ...before.image, order: "raster" },
  });
});

test("a checkpoint has the order also where the model that the run began with has no settings of drawing", async () => {
  const model = await runs.start("unset", TINY_MODEL);
  await rm(join(model, "generation_config.json"));
  await runs.train("raster-unset", { model, steps: 1, order: "raster" });
  expect(await json(runs.checkpoint("raster-unset", 1), "generation_config.json")).toEqual({
    image: { order: "raster" },
  });
});

test("the model that a run began with may go away: checkpoints are whole, and the run goes on from them", async () => {
  const model = await runs.start("going", TINY_MODEL);
  const change = { model, compute: "float32" };
  await runs.train("stays", change);
  const beside = async (out: string, step: number) => {
    const names = await readdir(runs.checkpoint(out, step), { recursive: true });
    return Promise.all(
      names
        .filter((name) => /(\.json|^vae.*\.safetensors)$/.test(name))
        .sort()
        .map(async (name) => [name, await readFile(join(runs.checkpoint(out, step), name))]),
    );
  };
  const controller = new AbortController();
  const onStep = ({ step }: { step: number }) => {
    if (step === 2) rmSync(model, { recursive: true });
    if (step === 5) controller.abort();
  };
  await runs.train("goes", change, { signal: controller.signal, onStep });
  expect(await beside("goes", 4)).toEqual(await beside("stays", 4));
  const notes: string[] = [];
  const options = { resume: true, onNote: (message: string) => notes.push(message) };
  expect(await runs.train("goes", change, options)).toMatchObject({ step: 8, finished: true });
  expect(notes).toEqual([
    expect.stringMatching(/^there is no checkpoint .*; the run continues with .*step-00000005$/),
  ]);
  expect(Buffer.compare(await runs.weightsOf("goes", 8), await runs.weightsOf("stays", 8))).toBe(0);
  expect(await beside("goes", 8)).toEqual(await beside("stays", 8));
  await using loaded = await UniFluid.load(runs.checkpoint("goes", 8), { threads: 1 });
  expect((await loaded.generate("a red circle", { steps: 1, seed: 1 })).width).toBe(64);
  // A run that has not begun needs it.
  await expect(runs.train("never", change)).rejects.toMatchObject({ code: "CHECKPOINT_NOT_FOUND" });
});

test("pictures that the cache lacks are encoded by the run's own checkpoints where the model is gone", async () => {
  const model = await runs.start("gone", TINY_MODEL);
  const cache = join(runs.folder, "gone-cache");
  const change = { model, cache, checkpoint: { every: 1, keep: 1 } };
  const controller = new AbortController();
  const onStep = ({ step }: { step: number }) => {
    if (step === 2) controller.abort();
  };
  await runs.train("gone-run", change, { signal: controller.signal, onStep });
  rmSync(model, { recursive: true });
  rmSync(cache, { recursive: true });
  expect(await runs.train("gone-run", change, { resume: true })).toMatchObject({ finished: true });
});

test("a tower that reads at another size than is drawn learns from what it reads when it is used", async () => {
  const vision_config = { ...TINY_MODEL.vision_config, image_size: 32 };
  const model = await runs.start("smaller", { ...TINY_MODEL, vision_config });
  expect(await runs.train("smaller-run", { model, steps: 2 })).toMatchObject({ step: 2 });
  const checkpoint = await readCheckpoint(model);
  const pictures = await Pictures.open(join(runs.folder, "data"), checkpoint, { device: "cpu" });
  try {
    const image = join(runs.folder, "data", "images", "000003.png");
    const sequence = await new Sequences(checkpoint, { promptDropout: 0 }).of(
      { task: "caption", prompt: "", text: "a", image },
      pictures,
      new Random(1n, 0, 0),
    );
    const decoded = await decodeImage(image);
    const wanted = await toVisionPixels(decoded, checkpoint.preprocessor!, loadAddon(), 32);
    expect(sequence.visionPixels).toHaveLength(3 * 32 * 32);
    expect(relativeError(sequence.visionPixels!, Array.from(wanted))).toBeLessThan(1e-6);
  } finally {
    await pictures.close();
  }
});

test("models that read at different sizes keep their pictures apart", async () => {
  const small = await readCheckpoint(join(FIXTURES, "paligemma-tiny"));
  const { vision } = small.spec;
  const large = {
    ...small,
    spec: { ...small.spec, vision: { ...vision!, imageSize: 2 * vision!.imageSize } },
  };
  const image = join(runs.folder, "data", "images", "000005.png");
  const decoded = await decodeImage(image);
  // Each in its turn, then from what both have kept.
  for (let round = 0; round < 2; round++)
    for (const checkpoint of [small, large]) {
      const folder = join(runs.folder, "data");
      const pictures = await Pictures.open(folder, checkpoint, { device: "cpu" });
      const side = checkpoint.spec.vision!.imageSize;
      const { filter } = checkpoint.preprocessor!;
      const { pixels } = await resize(decoded, side, side, filter, loadAddon());
      expect(Buffer.compare((await pictures.get(image)).pixels, pixels)).toBe(0);
      await pictures.close();
    }
});
