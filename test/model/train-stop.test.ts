/** Runs that stop before their end: by a signal, by their data, as they are closed. */
import { readdir, readFile, rm, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { InsufficientMemoryError, Trainer, UniFluid } from "../../lib";
import { loadAddon } from "../../lib/addon";
import type { NativeTrainer } from "../../lib/native";
import { Mixture } from "../../lib/train/mixture";
import { Runs } from "../support/runs";
import { TINY_MODEL } from "../support/training";

const runs = new Runs();
beforeAll(() => runs.open(), 120_000);
afterAll(() => runs.close());

const at = (...names: string[]) => join(runs.folder, ...names);

/** Captions in the order in which they lie, two a step; `broken`: the seventh is. */
async function captions(broken: boolean) {
  const manifest = at("data", "six.jsonl");
  const lines = (await readFile(at("data", "caption.jsonl"), "utf8")).trimEnd().split("\n");
  await writeFile(manifest, lines.map((line, i) => (broken && i === 6 ? "{" : line)).join("\n"));
  return {
    sources: [{ manifest, examples: 2, shuffle: 1 }],
    compute: "float32",
    steps: 5,
    brokenShare: 0,
    checkpoint: { every: 500 },
  };
}

test("a run that its data stop keeps what was done, and goes on once they are mended", async () => {
  const notes: string[] = [];
  const onNote = (message: string) => notes.push(message);
  await runs.train("unbroken", await captions(false));
  const stopped = runs.train("mended", await captions(true), { onNote });
  await expect(stopped).rejects.toMatchObject({ code: "TRAINING_DATA" });
  expect(await readdir(at("mended", "checkpoints"))).toEqual(["step-00000003"]);
  expect(notes).toContain(`step 3 is saved: ${runs.checkpoint("mended", 3)}`);
  const change = await captions(false);
  expect(await runs.train("mended", change, { resume: true })).toMatchObject({
    step: 5,
    finished: true,
    brokenRecords: 0,
  });
  const [whole, parts] = [await runs.weightsOf("unbroken", 5), await runs.weightsOf("mended", 5)];
  expect(Buffer.compare(whole, parts)).toBe(0);
});

test.each([
  ["INSUFFICIENT_MEMORY", ["step-00000002"]],
  ["DEVICE_ERROR", []],
])("a step that fails with %s leaves the checkpoints %j", async (code, left) => {
  const out = `failed-${code}`;
  const addon = loadAddon();
  const { createTrainer } = addon;
  const create = jest.spyOn(addon, "createTrainer").mockImplementation(async (...args) => {
    const native = await createTrainer.apply(addon, args);
    return {
      description: () => native.description(),
      step: (batches: never, of: { step: number; learningRate: number }) =>
        of.step === 3
          ? Promise.reject({ code, message: "as the core tells" })
          : native.step(batches, of),
      evaluate: (...of: Parameters<NativeTrainer["evaluate"]>) => native.evaluate(...of),
      read: (...of: Parameters<NativeTrainer["read"]>) => native.read(...of),
      write: (...of: Parameters<NativeTrainer["write"]>) => native.write(...of),
      dispose: () => native.dispose(),
    };
  });
  try {
    await expect(runs.train(out)).rejects.toMatchObject({ code });
  } finally {
    create.mockRestore();
  }
  expect(await readdir(at(out, "checkpoints"))).toEqual(left);
  expect(await runs.train(out, { steps: 3 }, { resume: true })).toMatchObject({ step: 3 });
});

test("where what was done cannot be saved, that is a note beside what stopped the run", async () => {
  const notes: string[] = [];
  const onNote = (message: string) => notes.push(message);
  const checkpoints = at("unsaved", "checkpoints");
  await using trainer = await Trainer.open(runs.config(await captions(true)), {
    out: at("unsaved"),
    onNote,
  });
  await rm(checkpoints, { recursive: true });
  await writeFile(checkpoints, "in the way");
  await expect(trainer.run()).rejects.toMatchObject({ code: "TRAINING_DATA" });
  expect(notes).toContainEqual(
    expect.stringMatching(/^progress since step 0 could not be saved: ENOTDIR/),
  );
});

test.each(["while a step is at work", "while it waits for them"])(
  "a run whose data hang is stopped %s and saves at once",
  async (when) => {
    const controller = new AbortController();
    const { draw } = Mixture.prototype;
    let give = () => {};
    const drawing = jest.spyOn(Mixture.prototype, "draw").mockImplementation(function (
      this: Mixture,
      step,
      make,
    ) {
      if (step < 3) return draw.call(this, step, make);
      if (when === "while a step is at work") controller.abort();
      return new Promise((_, reject) => {
        give = () => reject(new Error("they came after all"));
      });
    } as typeof draw);
    const onStep = ({ step }: { step: number }) => {
      if (step === 2) setImmediate(() => controller.abort());
    };
    try {
      const options = { signal: controller.signal, onStep };
      expect(await runs.train(when, { checkpoint: { every: 9 } }, options)).toEqual({
        step: 2,
        finished: false,
        checkpoint: runs.checkpoint(when, 2),
        brokenRecords: 0,
      });
    } finally {
      drawing.mockRestore();
      give();
    }
    expect(await runs.train(when, {}, { resume: true })).toMatchObject({ step: 8, finished: true });
  },
);

test("data that come as the run is stopped begin no further step", async () => {
  const controller = new AbortController();
  const { draw } = Mixture.prototype;
  const drawing = jest.spyOn(Mixture.prototype, "draw").mockImplementation(async function (
    this: Mixture,
    ...args: Parameters<typeof draw>
  ) {
    const drawn = await draw.apply(this, args);
    if (args[0] === 3) controller.abort();
    return drawn;
  } as typeof draw);
  try {
    const { signal } = controller;
    // The second step is at work meanwhile, or done.
    expect(await runs.train("comes", {}, { signal })).toMatchObject({ step: 2, finished: false });
  } finally {
    drawing.mockRestore();
  }
});

test("a run that is stopped while samples are drawn does not wait for them", async () => {
  const controller = new AbortController();
  const samples = { every: 2, prompts: ["a red circle", "two blue stars"], steps: 50 };
  const { generate } = UniFluid.prototype;
  const drawing = jest.spyOn(UniFluid.prototype, "generate").mockImplementation(function (
    this: UniFluid,
    ...args: Parameters<typeof generate>
  ) {
    const drawn = generate.apply(this, args);
    controller.abort();
    return drawn;
  } as typeof generate);
  try {
    expect(await runs.train("drawing", { samples }, { signal: controller.signal })).toMatchObject({
      step: 2,
      finished: false,
      checkpoint: runs.checkpoint("drawing", 2),
    });
    expect(drawing).toHaveBeenCalledTimes(1);
  } finally {
    drawing.mockRestore();
  }
  expect(await readdir(at("drawing", "samples"))).toEqual([]);
  // They are drawn when the run goes on, and where it was at its end.
  const on = { steps: 4, samples: { ...samples, steps: 2 } };
  const resumed = await runs.train("drawing", on, { resume: true });
  expect(resumed).toMatchObject({ step: 4, finished: true });
  const both = ["step-00000002.png", "step-00000004.png"];
  expect(await readdir(at("drawing", "samples"))).toEqual(both);
  await rm(at("drawing", "samples", both[1]!));
  expect(await runs.train("drawing", on, { resume: true })).toMatchObject({ step: 4 });
  expect(await readdir(at("drawing", "samples"))).toEqual(both);
});

test("samples that cannot be drawn are a note, and the run goes on", async () => {
  const samples = { every: 2, prompts: ["a red circle"], steps: 1 };
  const notes: string[] = [];
  const onNote = (message: string) => notes.push(message);
  const loading = jest
    .spyOn(UniFluid, "load")
    .mockRejectedValueOnce(new InsufficientMemoryError("the GPU is full"));
  try {
    expect(await runs.train("full", { steps: 4, samples }, { onNote })).toMatchObject({
      step: 4,
      finished: true,
    });
    expect(notes).toEqual(["the samples of step 2 were not drawn: the GPU is full"]);
    // Not where training computes, which may have no room left.
    for (const [, options] of loading.mock.calls) expect(options).toMatchObject({ device: "auto" });
    expect(await readdir(at("full", "samples"))).toEqual(["step-00000004.png"]);
    // What the system refuses would meet the run as well.
    const refused = Object.assign(new Error("EMFILE"), {
      code: "EMFILE",
      errno: -24,
      syscall: "open",
    });
    loading.mockRejectedValueOnce(refused);
    const stopped = runs.train("full", { steps: 6, samples }, { resume: true });
    await expect(stopped).rejects.toBe(refused);
  } finally {
    loading.mockRestore();
  }
});

test("stopped before its first step a run has no checkpoint", async () => {
  const out = at("nothing");
  await using trainer = await Trainer.open(runs.config(), { out, signal: AbortSignal.abort() });
  expect(await trainer.run()).toEqual({ step: 0, finished: false, brokenRecords: 0 });
  expect(await readdir(join(out, "checkpoints"))).toEqual([]);
});

test("a trainer that is closed while it runs lets the step end and says that it was closed", async () => {
  const out = at("closed");
  let closed: Promise<void> | undefined;
  const trainer: Trainer = await Trainer.open(runs.config({ steps: 100 }), {
    out,
    onStep: ({ step }) => {
      if (step === 2) closed = trainer.close();
    },
  });
  const run = trainer.run();
  expect(trainer.run()).toBe(run); // and not a second loop
  await expect(run).rejects.toMatchObject({ code: "DISPOSED" });
  await closed;
  await trainer.close();
  await expect(trainer.run()).rejects.toMatchObject({ code: "DISPOSED" });
  expect((await runs.metricsOf("closed")).map(({ step }) => step)).toEqual([1, 2]);
  // Others may have the folder.
  await (await Trainer.open(runs.config(), { out, resume: true })).close();
});

test("a model whose weights are not finite is told from a run that diverges", async () => {
  const model = await runs.start("poisoned", TINY_MODEL);
  const path = join(model, "model.safetensors");
  const bytes = await readFile(path);
  for (let i = 8 + Number(bytes.readBigUInt64LE()); i < bytes.length; i += 4)
    bytes.writeFloatLE(Number.NaN, i);
  await writeFile(path, bytes);
  await expect(runs.train("nan", { model })).rejects.toMatchObject({
    code: "TRAINING_DIVERGED",
    message: expect.stringMatching(
      /^step 1: .*NaN.*; that is of the model that the run begins with: `unifluid info \S*poisoned --check` tells/,
    ),
  });
  expect(await runs.train("nan", { steps: 1 })).toMatchObject({ step: 1 });
});
