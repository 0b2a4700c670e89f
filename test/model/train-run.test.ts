/** Runs of training: what they learn, write, survive and refuse. */
import { execFile, spawn } from "node:child_process";
import { existsSync, promises, readFileSync } from "node:fs";
import {
  copyFile,
  cp,
  mkdir,
  readdir,
  readFile,
  rm,
  stat,
  truncate,
  writeFile,
} from "node:fs/promises";
import { basename, join, resolve } from "node:path";
import { promisify } from "node:util";
import { stringify } from "yaml";
import { Trainer, UniFluid } from "../../lib";
import { loadAddon } from "../../lib/addon";
import { writeDataset } from "../../lib/scenes/dataset";
import { learningRateAt, parseRunConfig } from "../../lib/train/config";
import { ReportPace } from "../../lib/train/report";
import { RUN_FILES } from "../../lib/train/run-folder";
import { FIXTURES, Tensors } from "../support/fixtures";
import { COMMON_SETTINGS, nativeOptions, OPTIMIZER_SETTINGS, Runs } from "../support/runs";

const runs = new Runs();
let folder: string;
beforeAll(async () => {
  await runs.open();
  folder = runs.folder;
}, 120_000);
afterAll(() => runs.close());

const train: Runs["train"] = (...args) => runs.train(...args);
const weightsOf: Runs["weightsOf"] = (...args) => runs.weightsOf(...args);
const metricsOf: Runs["metricsOf"] = (...args) => runs.metricsOf(...args);

test("a run learns, and its folder tells how", async () => {
  const summary = await train("learns", {
    steps: 40,
    checkpoint: { every: 20, keep: 1 },
    samples: { every: 40, prompts: ["a red circle", "two blue stars"], steps: 2 },
  });
  expect(summary).toMatchObject({ step: 40, finished: true });
  const metrics = await metricsOf("learns");
  expect(metrics.map((m) => m.step)).toEqual(Array.from({ length: 40 }, (_, i) => i + 1));
  expect(Object.keys(metrics[0].byTask).sort()).toEqual(["answer", "caption", "edit", "generate"]);
  const mean = (from: number, key: "imageLoss" | "textLoss") =>
    metrics.slice(from, from + 5).reduce((sum, m) => sum + m[key], 0) / 5;
  expect(mean(35, "textLoss")).toBeLessThan(0.7 * mean(0, "textLoss"));
  expect(mean(35, "imageLoss")).toBeLessThan(0.9 * mean(0, "imageLoss"));
  // Old checkpoints go, but for the last that a later step has found good; the last one is a model.
  expect(await readdir(join(folder, "learns", "checkpoints"))).toEqual([
    "step-00000020",
    "step-00000040",
  ]);
  const { checkpoint } = summary;
  const deployed = join(folder, "deployed");
  // Its own files are the run's alone.
  await cp(checkpoint, deployed, {
    recursive: true,
    filter: (p) => !RUN_FILES.includes(basename(p)),
  });
  await using model = await UniFluid.load(deployed, { threads: 1 });
  expect((await model.generate("a red circle", { steps: 1, seed: 1 })).width).toBe(64);
  expect(await readdir(join(folder, "learns", "samples"))).toEqual(["step-00000040.png"]);
  const report = await readFile(join(folder, "learns", "report.html"), "utf8");
  for (const part of ["image loss", "loss of edit", "<polyline", "samples/step-00000040.png"])
    expect(report).toContain(part);
});

test("the report can be read from the first step on, before any checkpoint", async () => {
  const path = join(folder, "early", "report.html");
  const first = new Map<number, string>();
  const onStep = ({ step }: { step: number }) => {
    if (existsSync(path)) first.set(step, readFileSync(path, "utf8"));
  };
  await train("early", { steps: 2, checkpoint: { every: 500 } }, { onStep });
  expect([...first.keys()]).toEqual([2]);
  for (const part of ["Step 1, 8 examples", "<polyline"]) expect(first.get(2)).toContain(part);
  expect(await readFile(path, "utf8")).toContain("Step 2, 16 examples");
});

test("later reports come at intervals of time, further apart where they take long to write", () => {
  const pace = new ReportPace();
  expect(pace.due(5)).toBe(true);
  pace.wrote(1000, 1010);
  expect(pace.due(1010 + 14_999)).toBe(false);
  expect(pace.due(1010 + 15_000)).toBe(true);
  pace.wrote(100_000, 101_000);
  expect(pace.due(200_999)).toBe(false);
  expect(pace.due(201_000)).toBe(true);
});

test("stopped at any step and taken up again, a run ends with the same bits", async () => {
  await train("whole", { compute: "float32" });
  const controller = new AbortController();
  const stopped = await train(
    "parts",
    { compute: "float32" },
    { signal: controller.signal, onStep: ({ step }) => void (step === 3 && controller.abort()) },
  );
  expect(stopped).toMatchObject({ step: 3, finished: false });
  expect(await train("parts", { compute: "float32" }, { resume: true })).toMatchObject({
    step: 8,
    finished: true,
  });
  expect(Buffer.compare(await weightsOf("whole", 8), await weightsOf("parts", 8))).toBe(0);
  const losses = async (out: string) => (await metricsOf(out)).map((m) => [m.step, m.imageLoss]);
  expect(await losses("parts")).toEqual(await losses("whole"));
  // Finished runs stay as they are.
  expect(await train("parts", { compute: "float32" }, { resume: true })).toMatchObject({ step: 8 });
});

test("a record with one text that is too long is skipped after a stop as it was before, whatever is drawn of it", async () => {
  const long = "red ".repeat(400);
  const image = (i: number) => `images/00000${i}.png`;
  const records = [
    ...[0, 1].map((i) => ({ task: "generate", image: image(i), prompt: "a red circle" })),
    ...[2, 3].map((i) => ({ task: "generate", image: image(i), prompt: ["a red circle", long] })),
    { task: "generate", image: image(4), prompt: long },
    { task: "caption", image: image(5), text: ["a red circle", long] },
  ];
  const manifest = join(folder, "data", "long.jsonl");
  await writeFile(manifest, records.map((record) => JSON.stringify(record)).join("\n"));
  const sources = [{ manifest, examples: 3 }];
  const rates = { compute: "float32", schedule: "constant" };
  const change = { ...rates, sources, promptDropout: 0.5, brokenShare: 1 };
  expect(await train("long-whole", change)).toMatchObject({ step: 8, brokenRecords: 4 });
  for (const steps of [2, 4, 6, 8])
    await train("long-parts", { ...change, steps }, { resume: steps > 2 });
  const counts = async (out: string) => (await metricsOf(out)).map((m) => m.brokenRecords);
  expect(await counts("long-parts")).toEqual(await counts("long-whole"));
  const [whole, parts] = [await weightsOf("long-whole", 8), await weightsOf("long-parts", 8)];
  expect(Buffer.compare(whole, parts)).toBe(0);
});

test("shards are learned from, and a run of them that was stopped ends with the same bits", async () => {
  await writeDataset(join(folder, "shards"), { count: 24, seed: 1n, shards: 3 });
  // A sample that is broken, and one cut off: what replaces them is the same as well.
  const shard = join(folder, "shards", "caption-000001.tar");
  await truncate(shard, (await stat(shard)).size - 4000);
  const change = {
    compute: "float32",
    brokenShare: 0.05,
    sources: [
      ...["generate", "caption"].map((task) => ({
        shards: join(folder, "shards", `${task}-{000000..000002}.tar`),
        examples: 5,
        shuffle: 6,
      })),
      { manifest: join(folder, "data", "edit.jsonl"), examples: 2, shuffle: 4 },
    ],
  };
  const notes: string[] = [];
  await train("shards-whole", change, { onNote: (message) => notes.push(message) });
  expect(notes).toEqual([
    expect.stringMatching(
      /^skipped .*caption-000001\.tar: sample \d+ \(0000\d\d\): the archive is damaged here/,
    ),
  ]);
  const controller = new AbortController();
  const stopped = await train("shards-parts", change, {
    signal: controller.signal,
    // In the second epoch of the captions.
    onStep: ({ step }) => void (step === 6 && controller.abort()),
  });
  expect(stopped).toMatchObject({ step: 6, finished: false });
  expect(await train("shards-parts", change, { resume: true })).toMatchObject({ step: 8 });
  expect(
    Buffer.compare(await weightsOf("shards-whole", 8), await weightsOf("shards-parts", 8)),
  ).toBe(0);
});

test("sources that are not as they were begin anew, and a note says so", async () => {
  const source = (names: string, examples: number) => ({
    sources: [{ shards: join(folder, "shards", `generate-00000${names}.tar`), examples }],
  });
  await train("fewer", { ...source("{0..2}", 2), steps: 1 });
  const notes: string[] = [];
  const options = { resume: true, onNote: (message: string) => notes.push(message) };
  expect(await train("fewer", { ...source("1", 3), steps: 2 }, options)).toMatchObject({
    step: 2,
  });
  expect((await metricsOf("fewer")).map(({ examples }) => examples)).toEqual([2, 5]);
  expect(notes).toEqual([
    expect.stringContaining("settings differ"),
    expect.stringContaining("read from its beginning"),
  ]);
});

test("a checkpoint that a kill left half-written is passed over", async () => {
  await cp(join(folder, "whole"), join(folder, "killed"), { recursive: true });
  const checkpoints = join(folder, "killed", "checkpoints");
  // As if killed while step 8 was being written.
  await rm(join(checkpoints, "step-00000008"), { recursive: true });
  const half = join(checkpoints, "step-00000008.partial");
  await mkdir(half);
  await writeFile(join(half, "model.safetensors"), "half");
  const metrics = join(folder, "killed", "metrics.jsonl");
  await writeFile(metrics, `${await readFile(metrics, "utf8")}{"step": 9, "exam`);
  expect(await train("killed", { compute: "float32" }, { resume: true })).toMatchObject({
    step: 8,
  });
  expect(Buffer.compare(await weightsOf("whole", 8), await weightsOf("killed", 8))).toBe(0);
  expect(await metricsOf("killed")).toHaveLength(8);
  expect((await readdir(checkpoints)).filter((n) => n.endsWith(".partial"))).toEqual([]);
});

test.each([
  ["a state cut off", "trainer.safetensors", 1000, /bytes/],
  ["an empty state", "trainer.safetensors", 0, /trainer\.safetensors/],
  ["no state", "trainer.safetensors", undefined, /no weights/],
  ["a model cut off", "model.safetensors", 1000, /model\.safetensors/],
  ["an empty model", "model.safetensors", 0, /model\.safetensors/],
  ["no model", "model.safetensors", undefined, /no weights/],
  ["an empty configuration", "config.json", 0, /config\.json: not JSON/],
  ["no configuration", "config.json", undefined, /no config\.json/],
  ["an empty tokenizer", "tokenizer.json", 0, /tokenizer\.json: not JSON/],
  ["no tokenizer", "tokenizer.json", undefined, /tokenizer\.json/],
  ["an autoencoder cut off", "vae/diffusion_pytorch_model.safetensors", 1000, /vae/],
  ["no autoencoder", "vae", undefined, /has no vae/],
  ["no positions", "positions.json", undefined, /has no positions\.json/],
  ["empty positions", "positions.json", 0, /positions\.json is not what a run writes/],
  ["empty counts of records", "records.json", 0, /records\.json is not what a run writes/],
])(
  "%s: the run goes on from the checkpoint before, and says so",
  async (name, file, length, why) => {
    const out = name.replaceAll(" ", "-");
    await cp(join(folder, "whole"), join(folder, out), { recursive: true });
    const path = join(runs.checkpoint(out, 8), file);
    if (length === undefined) await rm(path, { recursive: true });
    else await truncate(path, length);
    const notes: string[] = [];
    const onNote = (message: string) => notes.push(message);
    const options = { out: join(folder, out), resume: true, onNote };
    await using trainer = await Trainer.open(runs.config({ compute: "float32" }), options);
    expect(trainer.done).toBe(4);
    expect(notes).toEqual([expect.stringMatching(why)]);
    expect(notes[0]).toContain(`${runs.checkpoint(out, 8)} is damaged`);
    expect(notes[0]).toContain("resumes from step 4");
    expect((await metricsOf(out)).map((m) => m.step)).toEqual([1, 2, 3, 4]);
    const names = () => readdir(join(folder, out, "checkpoints"));
    expect(await names()).toEqual(["step-00000004", "step-00000008.damaged"]);
    await trainer.run();
    expect(Buffer.compare(await weightsOf("whole", 8), await weightsOf(out, 8))).toBe(0);
    expect(await names()).toEqual(["step-00000004", "step-00000008", "step-00000008.damaged"]);
  },
);

test("a checkpoint of a version that kept nothing of the data is gone on from, and a note says so", async () => {
  await cp(join(folder, "whole"), join(folder, "old"), { recursive: true });
  const checkpoint = runs.checkpoint("old", 8);
  for (const name of ["positions.json", "records.json"]) await rm(join(checkpoint, name));
  const notes: string[] = [];
  const onNote = (message: string) => notes.push(message);
  const options = { out: join(folder, "old"), resume: true, onNote };
  await using trainer = await Trainer.open(runs.config({ compute: "float32" }), options);
  expect(trainer.done).toBe(8);
  expect(notes).toEqual([expect.stringMatching(/step-00000008 is of an earlier version/)]);
});

test("a checkpoint that the machine cannot read now is not taken for a damaged one", async () => {
  await cp(join(folder, "whole"), join(folder, "unread"), { recursive: true });
  const { readFile } = promises;
  const reading = jest
    .spyOn(promises, "readFile")
    .mockImplementation(((...args: Parameters<typeof readFile>) =>
      String(args[0]).endsWith(join("step-00000008", "config.json"))
        ? Promise.reject(
            Object.assign(new Error("EMFILE"), { code: "EMFILE", errno: -24, syscall: "open" }),
          )
        : readFile(...args)) as typeof readFile);
  try {
    await expect(train("unread", { compute: "float32" }, { resume: true })).rejects.toMatchObject({
      cause: { code: "EMFILE" },
    });
  } finally {
    reading.mockRestore();
  }
  expect(await readdir(join(folder, "unread", "checkpoints"))).toEqual([
    "step-00000004",
    "step-00000008",
  ]);
});

test("files of a checkpoint are on the disk before it has its name", async () => {
  const order: string[] = [];
  const { open, rename } = promises;
  const opened = jest.spyOn(promises, "open").mockImplementation(async (path, flags, mode) => {
    const file = await open(path, flags, mode);
    const { sync } = file;
    file.sync = () => {
      order.push(basename(String(path)));
      return sync.call(file);
    };
    return file;
  });
  const renamed = jest.spyOn(promises, "rename").mockImplementation((from, to) => {
    order.push(`rename ${basename(String(to))}`);
    return rename(from, to);
  });
  try {
    await train("synced", { steps: 1 });
  } finally {
    opened.mockRestore();
    renamed.mockRestore();
  }
  const before = order.slice(0, order.indexOf("rename step-00000001"));
  for (const name of await readdir(runs.checkpoint("synced", 1))) expect(before).toContain(name);
  expect(order[before.length + 1]).toBe("checkpoints");
});

test("where no checkpoint is whole, the last one's fault is told, nothing is touched and the trainer is let go", async () => {
  await cp(join(folder, "whole"), join(folder, "damaged"), { recursive: true });
  for (const step of [4, 8])
    await truncate(join(runs.checkpoint("damaged", step), "trainer.safetensors"), 100 * step);
  const create = jest.spyOn(loadAddon(), "createTrainer");
  try {
    await expect(train("damaged", {}, { resume: true })).rejects.toMatchObject({
      code: expect.stringContaining("SAFETENSORS"),
      message: expect.stringContaining("step-00000008"),
    });
    expect(await readdir(join(folder, "damaged", "checkpoints"))).toEqual([
      "step-00000004",
      "step-00000008",
    ]);
    expect(await metricsOf("damaged")).toHaveLength(8);
    expect(create).toHaveBeenCalledTimes(1);
    const trainer = await create.mock.results[0]!.value;
    expect(trainer.description()).toBe("disposed");
  } finally {
    create.mockRestore();
  }
});

test("a run that is killed goes on from its last checkpoint", async () => {
  await writeFile(
    join(folder, "kill.yaml"),
    stringify(runs.config({ steps: 2000, checkpoint: { every: 5, keep: 2 } })),
  );
  const out = join(folder, "shot");
  const main = resolve(__dirname, "../../dist/cli/main.js");
  const args = [main, "train", join(folder, "kill.yaml"), "--out", out];
  const child = spawn(process.execPath, args, { stdio: ["ignore", "ignore", "pipe"] });
  const ended = new Promise((done) => child.on("exit", done));
  const steps = async () =>
    (await readdir(join(out, "checkpoints")).catch(() => [])).filter((n) => /^step-\d+$/.test(n));
  while ((await steps()).length < 2 && child.exitCode === null)
    await new Promise((r) => setTimeout(r, 50));
  child.kill("SIGKILL");
  await ended;
  const before = Math.max(...(await steps()).map((n) => Number(n.slice(5))));
  const controller = new AbortController();
  const trainer = await Trainer.open(
    runs.config({ steps: 2000, checkpoint: { every: 5, keep: 2 } }),
    {
      out,
      resume: true,
      signal: controller.signal,
      onStep: () => controller.abort(),
    },
  );
  expect(trainer.done).toBe(before);
  expect(await trainer.run()).toMatchObject({ step: before + 1, finished: false });
  await trainer.close();
}, 120_000);

test("frozen tensors stay as they were", async () => {
  const summary = await train("frozen", { steps: 2, freeze: ["vision_tower.*", "*.self_attn.*"] });
  const start = new Tensors(join(folder, "start", "model.safetensors"));
  const end = new Tensors(join(summary.checkpoint, "trainer.safetensors"));
  const same = (name: string, stored: string) =>
    Buffer.compare(
      Buffer.from(start.floats(stored).buffer),
      Buffer.from(end.floats(`weights.${name}`).buffer),
    ) === 0;
  expect(
    same(
      "language_model.layers.0.self_attn.q_proj.weight",
      "model.language_model.layers.0.self_attn.q_proj.weight",
    ),
  ).toBe(true);
  expect(
    same(
      "language_model.layers.0.mlp.up_proj.weight",
      "model.language_model.layers.0.mlp.up_proj.weight",
    ),
  ).toBe(false);
  await expect(train("nothing", { freeze: ["no_such.*"] })).rejects.toMatchObject({
    code: "INVALID_OPTION",
    message: expect.stringContaining('"no_such.*"'),
  });
});

test("broken records are named, counted and skipped, and too many stop the run", async () => {
  const lines = (await readFile(join(folder, "data", "caption.jsonl"), "utf8"))
    .trimEnd()
    .split("\n");
  const write = (name: string, records: string[]) =>
    writeFile(join(folder, "data", name), records.join("\n"));
  const broken = [
    "{not json",
    JSON.stringify({ task: "caption", image: "images/none.png", text: "a" }),
    JSON.stringify({ task: "caption", image: "images/000000.png" }),
    JSON.stringify({ task: "sing" }),
  ];
  await write("some.jsonl", [...lines, ...broken]);
  const sources = [{ manifest: join(folder, "data", "some.jsonl"), examples: 14 }];
  const notes: string[] = [];
  const onNote = (message: string) => notes.push(message);
  const change = { sources, steps: 2, brokenShare: 0.02 };
  expect(await train("some", change, { onNote })).toMatchObject({ step: 2, brokenRecords: 4 });
  expect(notes).toHaveLength(4);
  expect(notes.join()).toMatch(/some\.jsonl: record 2\d \(line 2\d\): /);
  const counts = (await metricsOf("some")).map((m) => m.brokenRecords);
  expect(counts).toEqual([expect.any(Number), 4]);
  expect(await readFile(join(folder, "some", "report.html"), "utf8")).toContain(
    "4 broken records were skipped.",
  );
  // A run that stopped between goes on counting, and tells each once.
  notes.length = 0;
  const first = await train("counted", { ...change, steps: 1 }, { onNote });
  expect(first.brokenRecords).toBe(counts[0]);
  expect(await train("counted", change, { onNote, resume: true })).toMatchObject({
    brokenRecords: 4,
  });
  expect(notes.filter((n) => n.startsWith("skipped"))).toHaveLength(4);
  expect((await metricsOf("counted")).map((m) => m.brokenRecords)).toEqual(counts);
  // As they come back in the next epoch they are no new ones.
  const more = { ...change, steps: 4 };
  expect(await train("counted", more, { onNote, resume: true })).toMatchObject({
    brokenRecords: 4,
  });
  await writeFile(join(folder, "some.yaml"), stringify(runs.config(change)));
  const main = resolve(__dirname, "../../dist/cli/main.js");
  const args = [main, "train", join(folder, "some.yaml"), "--out", join(folder, "told")];
  const { stderr } = await promisify(execFile)(process.execPath, args);
  expect(stderr).toContain("4 broken records were skipped");
  await expect(train("many", { ...change, brokenShare: 0.01 })).rejects.toMatchObject({
    code: "TRAINING_DATA",
    message: expect.stringContaining("brokenShare"),
  });
  await write("empty.jsonl", []);
  for (const manifest of ["empty.jsonl", "missing.jsonl"])
    await expect(
      train("none", { sources: [{ manifest: join(folder, "data", manifest), examples: 1 }] }),
    ).rejects.toMatchObject({ code: "TRAINING_DATA" });
});

test("pictures are read again from the cache, and anew where they changed", async () => {
  const cache = join(folder, "data", ".unifluid-cache");
  const entries = async () => {
    const indices = (await readdir(cache)).filter((n) => n.endsWith(".jsonl"));
    const texts = await Promise.all(indices.map((n) => readFile(join(cache, n), "utf8")));
    return texts.join("").trimEnd().split("\n").length;
  };
  await train("again", { steps: 12 });
  const before = await entries();
  await train("again2", { steps: 12 });
  expect(await entries()).toBe(before);
  await copyFile(join(folder, "data/images/000001.png"), join(folder, "data/images/000000.png"));
  await train("again3", { steps: 12 });
  expect(await entries()).toBe(before + 1);
  // As it is now it is kept as well.
  await train("again4", { steps: 12 });
  expect(await entries()).toBe(before + 1);
});

test("settings are checked before anything starts", async () => {
  const refused = (change: object, message: RegExp) =>
    expect(train("refused", change)).rejects.toMatchObject({
      code: "INVALID_CONFIG",
      message: expect.stringMatching(message),
    });
  await refused({ steps: 0 }, /steps/);
  await refused({ sources: [] }, /sources/);
  await refused({ learningrate: 1 }, /learningrate/);
  await refused({ schedule: "none" }, /schedule/);
  // A moment that takes nothing in is divided by nothing.
  for (const name of ["beta1", "beta2"]) {
    await refused({ [name]: 1 }, new RegExp(name));
    await refused({ [name]: 0.99999999 }, new RegExp(`${name}: .* below 1 in float32`));
  }
  await refused({ epsilon: 1e-46 }, /epsilon: .* above 0 in float32/);
  await expect(train("learns")).rejects.toMatchObject({ code: "INVALID_OPTION" });
  await expect(train("refused", { model: join(folder, "none") })).rejects.toMatchObject({
    code: "CHECKPOINT_NOT_FOUND",
  });
  for (const [model, message] of [
    ["gemma-tiny", /neither draws nor reads images: `unifluid init --text/],
    ["vae-tiny", /is an autoencoder alone/],
  ] as const)
    await expect(train("refused", { model: join(FIXTURES, model) })).rejects.toMatchObject({
      code: "UNSUPPORTED_TASK",
      message: expect.stringMatching(message),
    });
});

test("the trainer gets every setting of the run", async () => {
  const settings = runs.config({
    ...COMMON_SETTINGS,
    ...OPTIMIZER_SETTINGS,
    recompute: true,
    seed: 2 ** 40,
    ema: 0.9,
    lambda: 0.25,
    diffusionBatchMultiplier: 3,
    noiseWeightCap: 6,
    contextNoise: 0.3,
    order: "raster",
    freeze: ["image_in.*"],
  });
  expect(await nativeOptions(settings, join(folder, "every-setting"))).toEqual([
    expect.objectContaining({
      ...COMMON_SETTINGS,
      seed: 2n ** 40n,
      frozen: ["image_in.weight", "image_in.bias"],
      unified: {
        recompute: true,
        textWeight: 0.25,
        batchMultiplier: 3,
        noiseWeightCap: 6,
        contextNoise: 0.3,
        order: "raster",
      },
      optimizer: { ...OPTIMIZER_SETTINGS, emaDecay: 0.9 },
    }),
  ]);
});

test("learning rates", () => {
  const run = (change: object) =>
    parseRunConfig(runs.config({ steps: 100, learningRate: 1, ...change }), "", "/");
  const at = (step: number, change: object) => learningRateAt(step, run({ warmup: 10, ...change }));
  expect(at(5, { schedule: "constant" })).toBeCloseTo(0.5);
  expect(at(50, { schedule: "constant" })).toBe(1);
  expect(at(80, { schedule: "decay" })).toBe(1);
  expect(at(91, { schedule: "decay" })).toBeCloseTo(0.5);
  expect(at(100, { schedule: "decay" })).toBeGreaterThan(0);
  expect(at(51, { schedule: "cosine" })).toBeCloseTo(0.5);
  expect(at(100, { schedule: "cosine" })).toBeLessThan(0.001);
});
