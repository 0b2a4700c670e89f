/** Runs that train an autoencoder: what they learn and write, and what they refuse. */
import { execFile } from "node:child_process";
import { rmSync } from "node:fs";
import { cp, mkdtemp, readdir, readFile, rm, truncate, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join, resolve } from "node:path";
import { promisify } from "node:util";
import { stringify } from "yaml";
import { InsufficientMemoryError, type TrainOptions, UniFluid } from "../../lib";
import { loadAddon } from "../../lib/addon";
import { Image } from "../../lib/image";
import { decodeImage } from "../../lib/image-input";
import { initCheckpoint } from "../../lib/init/init";
import { resize } from "../../lib/preprocess";
import { psnr } from "../../lib/psnr";
import { writeDataset } from "../../lib/scenes/dataset";
import { FIXTURES, Tensors } from "../support/fixtures";
import { COMMON_SETTINGS, nativeOptions, OPTIMIZER_SETTINGS, trained } from "../support/runs";
import { bfloats } from "../support/training";

const SIDE = 32;

let folder: string;
beforeAll(async () => {
  folder = await mkdtemp(join(tmpdir(), "train-vae-"));
  const vae = { block_out_channels: [16, 16], norm_num_groups: 4, latent_channels: 3 };
  await writeFile(join(folder, "vae.yaml"), stringify({ vae }));
  await initCheckpoint(join(folder, "vae.yaml"), join(folder, "start"), {
    seed: 1n,
    tokenizer: "shapes-64",
  });
  await writeDataset(join(folder, "data"), { count: 24, seed: 1n });
}, 120_000);
afterAll(() => rm(folder, { recursive: true }));

const config = (change: object = {}) => ({
  autoencoder: join(folder, "start"),
  imageSize: SIDE,
  sources: ["generate", "edit"].map((task) => ({
    manifest: join(folder, "data", `${task}.jsonl`),
    examples: 2,
  })),
  steps: 6,
  learningRate: 3e-3,
  warmup: 2,
  seed: 5,
  threads: 2,
  latentPictures: 12,
  checkpoint: { every: 3, keep: 2 },
  ...change,
});

async function train(out: string, change: object = {}, options: Partial<TrainOptions> = {}) {
  return trained(config(change), { out: join(folder, out), ...options });
}
const lines = async (...path: string[]) =>
  (await readFile(join(folder, ...path), "utf8"))
    .trimEnd()
    .split("\n")
    .map((line) => JSON.parse(line));
const vaeConfig = async (checkpoint: string) =>
  JSON.parse(await readFile(join(checkpoint, "vae", "config.json"), "utf8"));

/** Pictures of the data at the size of the runs. */
async function pictures(count: number): Promise<Image[]> {
  const out: Image[] = [];
  for (let i = 0; i < count; i++) {
    const path = join(folder, "data", "images", `${String(i).padStart(6, "0")}.png`);
    const { pixels } = await resize(await decodeImage(path), SIDE, SIDE, "bicubic", loadAddon());
    out.push(Image.fromPixels(pixels, SIDE, SIDE));
  }
  return out;
}

test("a run learns to rebuild pictures, and its checkpoints have latents of unit spread", async () => {
  const summary = await train("learns", {
    steps: 60,
    samples: { every: 30, pictures: 6 },
    checkpoint: { every: 30, keep: 1 },
    latentPictures: 48,
  });
  expect(summary).toMatchObject({ step: 60, finished: true });
  const metrics = await lines("learns", "metrics.jsonl");
  expect(metrics.map((m) => m.step)).toEqual(Array.from({ length: 60 }, (_, i) => i + 1));
  const mean = (from: number, key: string) =>
    metrics.slice(from, from + 5).reduce((sum, m) => sum + m[key], 0) / 5;
  expect(mean(55, "loss")).toBeLessThan(0.7 * mean(0, "loss"));
  expect(mean(55, "psnr")).toBeGreaterThan(mean(0, "psnr") + 3);
  const { absoluteError, squareError, kl, loss, psnr: ratio, imageLoss } = metrics[9];
  expect(loss).toBeCloseTo(absoluteError + squareError + 1e-3 * kl, 5);
  expect(ratio).toBeCloseTo(10 * Math.log10(4 / squareError), 5);
  expect(imageLoss).toBeUndefined();

  const figures = await lines("learns", "samples.jsonl");
  expect(figures.map((f) => f.step)).toEqual([30, 60]);
  expect(figures[1].psnr).toBeGreaterThan(figures[0].psnr);
  expect(await readdir(join(folder, "learns", "samples"))).toEqual([
    "step-00000030.png",
    "step-00000060.png",
  ]);
  const report = await readFile(join(folder, "learns", "report.html"), "utf8");
  for (const part of ["PSNR of reconstructions", "divergence", "samples/step-00000060.png"])
    expect(report).toContain(part);
  expect(report).not.toContain("image loss");

  // The checkpoint is an autoencoder alone, in the layout of diffusers.
  expect(await readdir(summary.checkpoint)).toEqual([
    "positions.json",
    "records.json",
    "trainer.safetensors",
    "vae",
  ]);
  await using model = await UniFluid.load(summary.checkpoint, { threads: 1 });
  const all = await pictures(24);
  const latents = await Promise.all(all.map((picture) => model.encodeImage(picture)));
  for (let c = 0; c < 3; c++) {
    const values = latents.flatMap((l) => Array.from(l).filter((_, i) => i % 3 === c));
    const center = values.reduce((sum, v) => sum + v, 0) / values.length;
    const square = values.reduce((sum, v) => sum + v * v, 0) / values.length;
    // Measured over other draws of the same pictures and of their edits.
    expect(Math.abs(center)).toBeLessThan(0.15);
    expect(Math.abs(Math.sqrt(square - center ** 2) - 1)).toBeLessThan(0.15);
  }
  const rebuilt = await Promise.all(latents.map((l) => model.decodeLatents(l)));
  const ratios = all.map((picture, i) => psnr(picture, rebuilt[i]!));
  const average = ratios.reduce((sum, v) => sum + v, 0) / ratios.length;
  expect(average).toBeGreaterThan(mean(0, "psnr") + 3);

  // And a part to start a model from.
  const made = join(folder, "taken");
  const taken = { seed: 1n, tokenizer: "shapes-64", vae: summary.checkpoint };
  await initCheckpoint(join(folder, "vae.yaml"), made, taken);
  expect(await vaeConfig(made)).toEqual(await vaeConfig(summary.checkpoint));
}, 120_000);

test("equalizing the latents leaves the pictures as they are", async () => {
  const [plain, equal] = [
    await train("plain", { equalize: false }),
    await train("equal", { equalize: true }),
  ];
  const [picture] = await pictures(1);
  const through = async (checkpoint: string) => {
    await using model = await UniFluid.load(checkpoint, { threads: 1 });
    const latents = await model.encodeImage(picture!);
    return { latents, image: await model.decodeLatents(latents) };
  };
  const [a, b] = [await through(plain.checkpoint), await through(equal.checkpoint)];
  expect(Math.max(...a.latents.map((v, i) => Math.abs(v - b.latents[i]!)))).toBeGreaterThan(0.01);
  // Bytes that lie between two whole numbers may go either way.
  const apart = a.image.pixels.map((v, i) => Math.abs(v - b.image.pixels[i]!));
  expect(Math.max(...apart)).toBeLessThanOrEqual(1);
  // What goes on is the same either way.
  const state = (out: string) => readFile(join(out, "trainer.safetensors"));
  expect(Buffer.compare(await state(plain.checkpoint), await state(equal.checkpoint))).toBe(0);
});

test("stopped and taken up again, a run ends with the same bits", async () => {
  const whole = await train("whole");
  const controller = new AbortController();
  const onStep = ({ step }: { step: number }) => void (step === 2 && controller.abort());
  expect(await train("parts", {}, { signal: controller.signal, onStep })).toMatchObject({
    step: 2,
    finished: false,
  });
  const parts = await train("parts", {}, { resume: true });
  expect(parts).toMatchObject({ step: 6, finished: true });
  for (const file of ["trainer.safetensors", "vae/diffusion_pytorch_model.safetensors"]) {
    const [a, b] = await Promise.all(
      [whole, parts].map(({ checkpoint }) => readFile(join(checkpoint, file))),
    );
    expect(Buffer.compare(a!, b!)).toBe(0);
  }
  expect(await vaeConfig(parts.checkpoint)).toEqual(await vaeConfig(whole.checkpoint));
});

test("the autoencoder that a run began with may go away, but for one whose latents are noisy", async () => {
  const start = join(folder, "going");
  const copy = () => cp(join(folder, "start"), start, { recursive: true });
  const whole = await train("stays");
  const controller = new AbortController();
  const onStep = ({ step }: { step: number }) => {
    if (step === 2) rmSync(start, { recursive: true });
    if (step === 4) controller.abort();
  };
  const options = { signal: controller.signal, onStep };
  await copy();
  await train("goes", { autoencoder: start }, options);
  const parts = await train("goes", { autoencoder: start }, { resume: true });
  const weights = ({ checkpoint }: { checkpoint: string }) =>
    readFile(join(checkpoint, "trainer.safetensors"));
  expect(Buffer.compare(await weights(parts), await weights(whole))).toBe(0);
  expect(await vaeConfig(parts.checkpoint)).toEqual(await vaeConfig(whole.checkpoint));
  await copy();
  const noisy = { autoencoder: start, latentNoise: 0.1 };
  await train("noisy", { ...noisy, steps: 2 }, { onStep });
  await expect(train("noisy", noisy, { resume: true })).rejects.toMatchObject({
    code: "CHECKPOINT_NOT_FOUND",
  });
});

test("a checkpoint whose autoencoder is damaged is set aside", async () => {
  const { checkpoint } = await train("damaged");
  await truncate(join(checkpoint, "vae", "diffusion_pytorch_model.safetensors"), 1000);
  const notes: string[] = [];
  const onNote = (message: string) => notes.push(message);
  await train("damaged", {}, { resume: true, onNote });
  expect(notes).toEqual([
    expect.stringMatching(/step-00000006 is damaged .*; the run resumes from step 3$/),
  ]);
});

// A model that draws for a decoder goes on to do so with another encoder.
test.each([
  ["encoder", /^(encoder|quant_conv)\./, "decoder.conv_out.weight"],
  ["decoder", /^(decoder|post_quant_conv)\./, "encoder.conv_in.weight"],
])("a frozen %s stays as it is, and so do the factors of latents", async (half, stays, other) => {
  const freeze =
    half === "encoder" ? ["encoder.*", "quant_conv.*"] : ["decoder.*", "post_quant_conv.*"];
  const { checkpoint } = await train(`frozen-${half}`, { freeze });
  const [before, after] = await Promise.all([
    vaeConfig(join(folder, "start")),
    vaeConfig(checkpoint),
  ]);
  expect(after).toEqual(before);
  const weights = (directory: string) =>
    new Tensors(join(directory, "vae", "diffusion_pytorch_model.safetensors"));
  const [from, to] = [weights(join(folder, "start")), weights(checkpoint)];
  for (const name of from.names) {
    const same = from.floats(name).every((v, i) => v === to.floats(name)[i]);
    if (stays.test(name)) expect({ name, same }).toEqual({ name, same: true });
  }
  expect(to.floats(other)).not.toEqual(from.floats(other));
});

test.each([
  ["encoder", ["encoder.*", "quant_conv.*"]],
  ["decoder", ["decoder.*", "post_quant_conv.*"]],
])(
  "factors are of the latents also where the %s was trained before it was frozen",
  async (half, freeze) => {
    const out = `frozen-later-${half}`;
    await train(out);
    const notes: string[] = [];
    const later = (steps: number) =>
      train(out, { steps, freeze }, { resume: true, onNote: (message) => notes.push(message) });
    const { checkpoint } = await later(8);
    const told = expect.stringContaining(
      `the ${half} was trained before it was frozen: latents differ from those of earlier checkpoints`,
    );
    expect(notes).toContainEqual(told);
    const factors = await vaeConfig(checkpoint);
    expect(factors).toMatchObject({ scaling_factor: expect.any(Number) });
    const again = await vaeConfig((await later(10)).checkpoint);
    // Of an encoder that stays they do not change any more.
    if (half === "encoder") expect(again).toEqual(factors);
    // Settings with which no step that is left was done do not count.
    notes.length = 0;
    await rm(join(folder, out, "checkpoints"), { recursive: true });
    const { checkpoint: fresh } = await later(2);
    expect(await vaeConfig(fresh)).toEqual(await vaeConfig(join(folder, "start")));
    expect(notes).not.toContainEqual(told);
  },
);

test("latents are measured on the CPU where training leaves no room, and not at all where that has none", async () => {
  const { load } = UniFluid;
  const full = (places: readonly unknown[]) =>
    jest.spyOn(UniFluid, "load").mockImplementation(async (...args) => {
      if (places.includes(args[1]?.device)) throw new InsufficientMemoryError("full");
      return load.apply(UniFluid, args);
    });
  const notes: string[] = [];
  const onNote = (message: string) => notes.push(message);
  const there = await train("room");
  let loading = full(["auto"]);
  try {
    const { checkpoint } = await train("no-room", {}, { onNote });
    expect(await vaeConfig(checkpoint)).toEqual(await vaeConfig(there.checkpoint));
    expect(notes).toEqual([]);
    loading.mockRestore();
    loading = full(["auto", "cpu"]);
    // As in a run that never measured any.
    await rm(join(folder, "no-room", "latents.json"));
    const next = await train("no-room", { steps: 8 }, { resume: true, onNote });
    expect(next).toMatchObject({ step: 8, finished: true });
    expect(notes).toContainEqual(
      "the latents of a checkpoint were not measured, it has no factors: full",
    );
  } finally {
    loading.mockRestore();
  }
});

test("latentNoise is in what a run learns from", async () => {
  const first = async (latentNoise: number) => {
    const out = `noise-${latentNoise}`;
    await train(out, { autoencoder: "shapes-64", imageSize: 64, steps: 1, latentNoise });
    return (await lines(out, "metrics.jsonl"))[0];
  };
  const [clean, noisy] = [await first(0), await first(2)];
  expect(noisy.psnr).toBeLessThan(clean.psnr - 1);
  expect(noisy.kl).toBeCloseTo(clean.kl, 6);
});

test("weights are written in the type that is asked for", async () => {
  const [whole, half] = [
    await train("float32", { equalize: false }),
    await train("bfloat16", { equalize: false, dtype: "bfloat16" }),
  ];
  const weights = ({ checkpoint }: { checkpoint: string }) =>
    new Tensors(join(checkpoint, "vae", "diffusion_pytorch_model.safetensors"));
  const [from, to] = [weights(whole), weights(half)];
  expect(to.names).toEqual(from.names);
  for (const name of from.names) {
    const wanted = from.floats(name);
    // Half a unit in the last of eight places.
    const near = bfloats(to, name).every(
      (v, i) => Math.abs(v - wanted[i]!) <= 2 ** -8 * Math.abs(wanted[i]!),
    );
    expect({ name, near }).toEqual({ name, near: true });
  }
});

/** Eight pictures, and behind them a record without one and one whose picture is not there. */
async function manifestWithBroken(name: string): Promise<string> {
  const manifest = join(folder, "data", name);
  const records = [
    ...Array.from({ length: 8 }, (_, i) => ({ image: `images/00000${i}.png` })),
    { picture: "images/000000.png" },
    { image: "images/none.png" },
  ];
  await writeFile(manifest, records.map((r) => JSON.stringify(r)).join("\n"));
  return manifest;
}

test("records need no task, and broken ones are named", async () => {
  const manifest = await manifestWithBroken("pictures.jsonl");
  const notes: string[] = [];
  const summary = await train(
    "broken",
    { sources: [{ manifest, examples: 5 }], steps: 2, latentPictures: 1 },
    { onNote: (message) => notes.push(message) },
  );
  expect(notes).toHaveLength(2);
  expect(notes.join()).toMatch(/pictures\.jsonl: record [89] \(line (9|10)\): /);
  expect(summary.brokenRecords).toBe(2);
});

test("a record with one picture that cannot be read is skipped after a stop as it was before", async () => {
  const manifest = join(folder, "data", "half.jsonl");
  const image = (i: number) => `images/00000${i}.png`;
  const records = [
    ...[0, 1].map((i) => ({ image: image(i) })),
    ...[2, 3, 4, 5, 6].map((i) => ({ image: image(i), target: "images/none.png" })),
  ];
  await writeFile(manifest, records.map((record) => JSON.stringify(record)).join("\n"));
  const sources = [{ manifest, examples: 3 }];
  const change = { schedule: "constant", sources, brokenShare: 1, latentPictures: 3 };
  await train("half-whole", change);
  for (const steps of [2, 4, 6])
    await train("half-parts", { ...change, steps }, { resume: steps > 2 });
  const state = (out: string) =>
    readFile(join(folder, out, "checkpoints", "step-00000006", "trainer.safetensors"));
  expect(Buffer.compare(await state("half-parts"), await state("half-whole"))).toBe(0);
});

test("broken records that only latents and sheets come to are told once, and not counted", async () => {
  const manifest = await manifestWithBroken("late.jsonl");
  const notes: string[] = [];
  const change = {
    sources: [{ manifest, examples: 2, shuffle: 1 }],
    steps: 2,
    checkpoint: { every: 1 },
    samples: { every: 1, pictures: 20 },
  };
  const summary = await train("beside", change, { onNote: (message) => notes.push(message) });
  expect(notes.sort()).toEqual([
    expect.stringMatching(/^skipped .*late\.jsonl: record 8 /),
    expect.stringMatching(/^skipped .*late\.jsonl: record 9 /),
  ]);
  expect(summary.brokenRecords).toBe(0);
  const counts = JSON.parse(await readFile(join(summary.checkpoint, "records.json"), "utf8"));
  expect(counts).toEqual({ seen: 4, broken: [] });
});

test("shards are pictures as well, and give the run and the sheets that their manifest gives", async () => {
  await writeDataset(join(folder, "shards"), { count: 24, seed: 1n, tasks: ["edit"], shards: 3 });
  const change = { steps: 2, compute: "float32", samples: { every: 2, pictures: 30 } };
  // In the order in which they lie, both give the same records.
  const source = { examples: 4, shuffle: 1 };
  const edit = { ...source, manifest: join(folder, "data", "edit.jsonl") };
  const { checkpoint } = await train("unpacked", { ...change, sources: [edit] });
  const shards = { ...source, shards: join(folder, "shards", "edit-*.tar") };
  const packed = await train("packed", { ...change, sources: [shards] });
  const weights = (path: string) => readFile(join(path, "trainer.safetensors"));
  expect(Buffer.compare(await weights(packed.checkpoint), await weights(checkpoint))).toBe(0);
  const sheet = (out: string) => readFile(join(folder, out, "samples", "step-00000002.png"));
  expect(Buffer.compare(await sheet("packed"), await sheet("unpacked"))).toBe(0);
});

test("what does not fit is refused before anything starts", async () => {
  const refused = (change: object, code: string, message: RegExp) =>
    expect(train("refused", change)).rejects.toMatchObject({
      code,
      message: expect.stringMatching(message),
    });
  await refused({ imageSize: undefined }, "INVALID_CONFIG", /imageSize/);
  await refused({ imageSize: 33 }, "INVALID_CONFIG", /multiple of 2 for imageSize/);
  await refused(
    { imageSize: 2 ** 18, accumulation: 3 },
    "INSUFFICIENT_MEMORY",
    /^training .*start on 2 pictures of 262144 x 262144 at a time takes at least \d+ MiB, but \d+ MiB are available/,
  );
  for (const name of ["beta1", "beta2"])
    await refused({ [name]: 1 }, "INVALID_CONFIG", new RegExp(name));
  await refused({ lambda: 1 }, "INVALID_CONFIG", /lambda/);
  await refused({ model: "shapes-64" }, "INVALID_CONFIG", /model/);
  await refused({ autoencoder: join(FIXTURES, "gemma-tiny") }, "INVALID_CONFIG", /vae/);
  await refused({ freeze: ["vae.*"] }, "INVALID_OPTION", /"vae\.\*"/);
  const missing = { every: 1, manifest: join(folder, "none.jsonl") };
  await refused({ samples: missing }, "TRAINING_DATA", /none\.jsonl/);
  const manifest = join(folder, "data", "unreadable.jsonl");
  const samples = { samples: { every: 1, manifest } };
  const none = (tried: number) =>
    new RegExp(`samples: none of ${tried} records of \\S*unreadable\\.jsonl has a picture`);
  await writeFile(manifest, '{"image": "images/none.png"}\n{"image": "data.json"}\n');
  await refused(samples, "TRAINING_DATA", none(2));
  // Where so many are gone, the others are not tried.
  await writeFile(manifest, '{"image": "images/none.png"}\n'.repeat(300));
  await refused(samples, "TRAINING_DATA", none(101));
});

test("shards that are deleted stop the run with a checkpoint, whose latents are as last measured", async () => {
  const shards = join(folder, "gone");
  const change = {
    sources: [{ shards: join(shards, "edit-*.tar"), examples: 4, shuffle: 1 }],
    steps: 20,
    checkpoint: { every: 4 },
    brokenShare: 1,
  };
  const write = () => writeDataset(shards, { count: 24, seed: 1n, tasks: ["edit"], shards: 6 });
  const notes: string[] = [];
  const onNote = (message: string) => notes.push(message);
  const onStep = ({ step }: { step: number }) => {
    if (step === 5) rmSync(shards, { recursive: true });
  };
  await write();
  await expect(train("gone-run", change, { onNote, onStep })).rejects.toMatchObject({
    code: "TRAINING_DATA",
  });
  const checkpoints = join(folder, "gone-run", "checkpoints");
  const [before, last] = (await readdir(checkpoints)).slice(-2).map((n) => join(checkpoints, n));
  expect(notes).toContainEqual(expect.stringContaining(`is saved: ${last}`));
  expect(notes).toContainEqual(
    expect.stringMatching(
      /^the latents of a checkpoint were not measured, it uses the factors of the previous one: .*gone/,
    ),
  );
  expect(await vaeConfig(last!)).toEqual(await vaeConfig(before!));
  await write();
  await expect(train("gone-run", { ...change, steps: 8 }, { resume: true })).resolves.toMatchObject(
    { step: 8, finished: true },
  );
});

test("a run that is stopped does not wait until latents are measured", async () => {
  const controller = new AbortController();
  const { encodeImage } = UniFluid.prototype;
  const encoding = jest.spyOn(UniFluid.prototype, "encodeImage");
  const notes: string[] = [];
  const onNote = (message: string) => notes.push(message);
  const change = { steps: 20, latentPictures: 40, checkpoint: { every: 4 } };
  const onStep = ({ step }: { step: number }) => {
    if (step !== 8) return;
    encoding.mockImplementation(function (this: UniFluid, ...args) {
      controller.abort();
      return encodeImage.apply(this, args);
    });
  };
  try {
    const { signal } = controller;
    expect(await train("hurried", change, { signal, onNote, onStep })).toMatchObject({
      step: 8,
      finished: false,
    });
  } finally {
    encoding.mockRestore();
  }
  expect(notes).toEqual([
    "the latents of a checkpoint were not measured, it uses the factors of the previous one: the run was stopped",
  ]);
  const checkpoints = join(folder, "hurried", "checkpoints");
  const [before, last] = (await readdir(checkpoints)).slice(-2).map((n) => join(checkpoints, n));
  const measured = await vaeConfig(before!);
  expect(await vaeConfig(last!)).toEqual(measured);
  // Of a process that has not measured yet, too.
  const later = new AbortController();
  const stopped = await train("hurried", change, {
    resume: true,
    signal: later.signal,
    onStep: () => later.abort(),
  });
  expect(stopped).toMatchObject({ step: 9, finished: false });
  expect(await vaeConfig(join(checkpoints, "step-00000009"))).toEqual(measured);
  // The last one of a run is measured whatever happens.
  const end = new AbortController();
  const on = { ...change, steps: 10 };
  expect(
    await train("hurried", on, { resume: true, signal: end.signal, onStep: () => end.abort() }),
  ).toMatchObject({ step: 10, finished: true });
  expect(await vaeConfig(join(checkpoints, "step-00000010"))).not.toEqual(measured);
});

test("a run that is stopped while a sheet is made does not wait for it", async () => {
  const controller = new AbortController();
  const { decodeLatents } = UniFluid.prototype;
  const decode = jest.spyOn(UniFluid.prototype, "decodeLatents").mockImplementation(function (
    this: UniFluid,
    ...args
  ) {
    controller.abort();
    return decodeLatents.apply(this, args);
  });
  try {
    const change = { samples: { every: 3, pictures: 4 } };
    const { signal } = controller;
    expect(await train("sheet", change, { signal })).toMatchObject({ step: 3, finished: false });
    expect(decode).toHaveBeenCalled();
  } finally {
    decode.mockRestore();
  }
  expect(await readdir(join(folder, "sheet", "samples"))).toEqual([]);
});

test("the trainer gets every setting of the run", async () => {
  const vae = { klWeight: 0.02, latentNoise: 0.4 };
  const other = { seed: 2 ** 40, ema: 0.9, freeze: ["encoder.conv_in.*"] };
  const settings = config({ ...COMMON_SETTINGS, ...OPTIMIZER_SETTINGS, ...vae, ...other });
  // The latents of the start are measured by another.
  const options = (await nativeOptions(settings, join(folder, "every-setting"))).at(-1);
  expect(options).toMatchObject({
    ...COMMON_SETTINGS,
    vae,
    seed: 2n ** 40n,
    frozen: ["vae.encoder.conv_in.weight", "vae.encoder.conv_in.bias"],
    optimizer: { ...OPTIMIZER_SETTINGS, emaDecay: 0.9 },
  });
});

test("there is nothing to prepare", async () => {
  await writeFile(join(folder, "run.yaml"), stringify(config()));
  const main = resolve(__dirname, "../../dist/cli/main.js");
  const prepare = [main, "prepare", join(folder, "run.yaml")];
  await expect(promisify(execFile)(process.execPath, prepare)).rejects.toMatchObject({
    code: 2,
    stderr: expect.stringMatching(/INVALID_OPTION: .*run\.yaml trains an autoencoder/),
  });
});

test("a loss that explodes stops the run, and names step and loss", async () => {
  const change = { steps: 100, learningRate: 1e4, clipNorm: 0, warmup: 0, latentPictures: 1 };
  await expect(train("diverges", change)).rejects.toMatchObject({
    code: "TRAINING_DIVERGED",
    message: expect.stringMatching(/^step \d+: the (loss|absolute|square|divergence|gradient)/),
  });
}, 120_000);
