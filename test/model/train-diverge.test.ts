/** Runs that diverge: when they stop, and which checkpoints are left to go on from. */
import { readdirSync } from "node:fs";
import { cp, readdir, readFile, rm, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { UniFluid } from "../../lib";
import { loadAddon } from "../../lib/addon";
import { evaluateLoss } from "../../lib/evaluate/loss-suite";
import { Runs } from "../support/runs";

const runs = new Runs();
beforeAll(() => runs.open(), 120_000);
afterAll(() => runs.close());

const checkpoints = (out: string) => readdir(join(runs.folder, out, "checkpoints"));
const common = {
  compute: "float32",
  warmup: 0,
  schedule: "constant",
  checkpoint: { every: 1, keep: 1 },
};
const sane = { ...common, learningRate: 3e-3 };
/** No bound of the gradient, and a rate far too high. */
const wild = { ...common, learningRate: 3, clipNorm: 0 };

/** The image loss of a checkpoint, as a user would measure it. */
async function imageLoss(model: string): Promise<number> {
  const manifests = [join(runs.folder, "data", "generate.jsonl")];
  const { image } = await evaluateLoss(model, { manifests, seed: 1n, device: "cpu", threads: 2 });
  return image!.loss;
}

test("a loss that explodes stops the run, with the last checkpoint kept that was good", async () => {
  await runs.train("late", { ...sane, steps: 4 });
  // Step 5 is still computed with the good weights; its update is what ruins them.
  const kept = runs.checkpoint("late", 4);
  await expect(runs.train("late", { ...wild, steps: 200 }, { resume: true })).rejects.toMatchObject(
    {
      code: "TRAINING_DIVERGED",
      message: expect.stringMatching(
        /^step 10: the image loss exploded: \S+, where \d\.\d+ was usual; the last good checkpoint is /,
      ),
    },
  );
  await expect(runs.train("late", { ...wild, steps: 200 }, { resume: true })).rejects.toMatchObject(
    { message: expect.stringContaining(kept) },
  );
  const left = await checkpoints("late");
  expect(left.filter((name) => !name.endsWith(".diverged"))).toEqual(["step-00000004"]);
  expect(left.length).toBeGreaterThan(1);
  // The report shows the steps that led there.
  expect(await readFile(join(runs.folder, "late", "report.html"), "utf8")).toContain("Step 9,");

  const start = await imageLoss(join(runs.folder, "start"));
  expect(await imageLoss(kept)).toBeLessThan(1.1 * start);
  expect(await imageLoss(runs.checkpoint("late", 9).concat(".diverged"))).toBeGreaterThan(
    10 * start,
  );
  await using model = await UniFluid.load(kept, { threads: 1 });
  expect((await model.generate("a red circle", { steps: 1, seed: 1 })).width).toBe(64);
  expect(await runs.train("late", { ...sane, steps: 8 }, { resume: true })).toMatchObject({
    step: 8,
    finished: true,
  });
  const metrics = await runs.metricsOf("late");
  expect(metrics.map((m) => m.step)).toEqual([1, 2, 3, 4, 5, 6, 7, 8]);
  for (const m of metrics) expect(m.imageLoss).toBeLessThan(3);
}, 120_000);

test("a fresh run that explodes at once leaves nothing to go on from but its beginning", async () => {
  await expect(runs.train("early", { ...wild, steps: 200 })).rejects.toMatchObject({
    code: "TRAINING_DIVERGED",
    message: expect.stringMatching(
      /^step 6: the image loss exploded: .*no checkpoint is known to be good/,
    ),
  });
  for (const name of await checkpoints("early")) expect(name).toMatch(/\.diverged$/);
  expect(await runs.train("early", { ...sane, steps: 3 }, { resume: true })).toMatchObject({
    step: 3,
    finished: true,
  });
  const metrics = await runs.metricsOf("early");
  expect(metrics.map((m) => m.step)).toEqual([1, 2, 3]);
  for (const m of metrics) expect(m.imageLoss).toBeLessThan(3);
}, 120_000);

test("so does one whose losses are no numbers any more", async () => {
  const change = { ...wild, learningRate: 1e6, steps: 200 };
  await expect(runs.train("infinite", change)).rejects.toMatchObject({
    code: "TRAINING_DIVERGED",
    message: expect.stringMatching(
      /^step 2: (the loss of \w+ is|the gradient's norm is) .*; no checkpoint is known to be good/,
    ),
  });
  expect(await checkpoints("infinite")).toEqual(["step-00000001.diverged"]);
});

test("a run that ends among high losses keeps the last good checkpoint beside its own, and says so", async () => {
  const notes: string[] = [];
  const onNote = (message: string) => notes.push(message);
  await runs.train("ends", { ...sane, steps: 4 });
  expect(await checkpoints("ends")).toEqual(["step-00000003", "step-00000004"]);
  const summary = await runs.train("ends", { ...wild, steps: 7 }, { resume: true, onNote });
  expect(summary).toMatchObject({ step: 7, finished: true });
  expect(await checkpoints("ends")).toEqual(["step-00000004", "step-00000007"]);
  expect(notes).toContainEqual(
    expect.stringMatching(
      /^the image loss has been high since step 6: checkpoints of step 5 and later may be bad$/,
    ),
  );
  // Steps 6 and 7 count when it goes on, and their checkpoint is no good.
  await expect(runs.train("ends", { ...sane, steps: 20 }, { resume: true })).rejects.toMatchObject({
    code: "TRAINING_DIVERGED",
    message: expect.stringMatching(/^step 10: .*step-00000004$/),
  });
  const good = (await checkpoints("ends")).filter((name) => !name.endsWith(".diverged"));
  expect(good).toEqual(["step-00000004"]);
}, 120_000);

test("a checkpoint that a later step found good takes the place of the one before", async () => {
  const seen: string[][] = [];
  const onStep = () =>
    void seen.push(readdirSync(join(runs.folder, "keeps", "checkpoints")).map((n) => n.slice(-1)));
  const change = { ...sane, steps: 6, checkpoint: { every: 2, keep: 1 } };
  await runs.train("keeps", change, { onStep });
  // As each step ends, before what it found good is acted on.
  expect(seen).toEqual([[], [], ["2"], ["2"], ["2", "4"], ["4"]]);
  expect(await checkpoints("keeps")).toEqual(["step-00000004", "step-00000006"]);
});

test("a killed run's only checkpoint is kept where the step after it was good", async () => {
  await runs.train("killed", { ...sane, steps: 4, checkpoint: { every: 3, keep: 1 } });
  // As if killed before the end's checkpoint was written.
  await rm(runs.checkpoint("killed", 4), { recursive: true });
  // No step of the process that goes on is good, whatever makes it so.
  const addon = loadAddon();
  const createTrainer = addon.createTrainer.bind(addon);
  const create = jest.spyOn(addon, "createTrainer").mockImplementation(async (...args) => {
    const native = await createTrainer(...args);
    const step: typeof native.step = async (...batch) => ({
      ...(await native.step(...batch)),
      finite: false,
      gradientNorm: Number.NaN,
    });
    return {
      step,
      write: (...state) => native.write(...state),
      dispose: () => native.dispose(),
    } as typeof native;
  });
  try {
    await expect(
      runs.train("killed", { ...sane, steps: 6 }, { resume: true }),
    ).rejects.toMatchObject({
      message: expect.stringMatching(/^step 4: the gradient's norm is NaN; .*step-00000003$/),
    });
  } finally {
    create.mockRestore();
  }
  expect(await checkpoints("killed")).toEqual(["step-00000003"]);
});

test("losses of other data are judged anew, and set no good checkpoint aside", async () => {
  await runs.train("learned", { ...sane, steps: 4 });
  // As if the run had learned its data very well, in more steps.
  const metrics = join(runs.folder, "learned", "metrics.jsonl");
  const lines = (await readFile(metrics, "utf8")).replace(
    /(imageLoss|textLoss)":[^,]*/g,
    '$1":0.01',
  );
  await writeFile(metrics, lines.replace(/^.*"step":1,.*$/m, Array(100).fill("$&").join("\n")));
  await cp(join(runs.folder, "learned"), join(runs.folder, "forgets"), { recursive: true });
  await expect(
    runs.train("forgets", { ...sane, learningRate: 2e-3, steps: 20 }, { resume: true }),
  ).rejects.toMatchObject({
    code: "TRAINING_DIVERGED",
    message: expect.stringMatching(/^step 9: /),
  });

  const task = (name: string) => join(runs.folder, "data", `${name}.jsonl`);
  const sources = [
    { manifest: task("generate"), examples: 2 },
    { manifest: task("caption"), examples: 1 },
  ];
  const other = { ...sane, sources };
  expect(await runs.train("learned", { ...other, steps: 6 }, { resume: true })).toMatchObject({
    step: 6,
  });
  // Nor where the run goes on once more, with the same data or another rate.
  for (const change of [{}, { learningRate: 2e-3 }])
    expect(
      await runs.train("learned", { ...other, ...change, steps: 12 }, { resume: true }),
    ).toMatchObject({ step: 12, finished: true });
  expect((await checkpoints("learned")).filter((name) => name.endsWith(".diverged"))).toEqual([]);
}, 120_000);
