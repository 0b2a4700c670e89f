/** The suite "loss": what it measures, held against other ways to compute it, and what it refuses. */
import { execFile } from "node:child_process";
import { cp, mkdtemp, readdir, readFile, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join, resolve } from "node:path";
import { promisify } from "node:util";
import { stringify } from "yaml";
import { UniFluid } from "../../lib";
import { loadAddon } from "../../lib/addon";
import { readCheckpoint } from "../../lib/checkpoint/checkpoint";
import { locateCheckpoint } from "../../lib/checkpoint/locate";
import { evaluateLoss, type ImageLoss, type TextLoss } from "../../lib/evaluate/loss-suite";
import { initCheckpoint } from "../../lib/init/init";
import { writeDataset } from "../../lib/scenes/dataset";
import { FIXTURES } from "../support/fixtures";
import { TINY_MODEL } from "../support/training";

const TASKS = ["generate", "caption", "answer", "edit"];

let folder: string;
const manifest = (task: string) => join(folder, "data", `${task}.jsonl`);
beforeAll(async () => {
  folder = await mkdtemp(join(tmpdir(), "evaluate-loss-"));
  await writeDataset(join(folder, "data"), { count: 40, seed: 2n, split: "test" });
}, 60_000);
afterAll(() => rm(folder, { recursive: true }));

test("losses of every task, the same again, on one thread or two; another seed, other draws", async () => {
  const options = { manifests: TASKS.map(manifest), seed: 1n, threads: 2 };
  let records = 0;
  const report = await evaluateLoss("shapes-64", { ...options, onRecord: () => records++ });
  expect(records).toBe(160);
  expect(report).toMatchObject({ suite: "loss", seed: 1n, records: 160, timesteps: 4 });
  expect(report.order).toBe("random");
  expect(Object.keys(report.byTask)).toEqual([...TASKS].sort());
  // Sixteen tokens to an image.
  for (const task of ["generate", "edit"])
    expect(report.byTask[task]).toMatchObject({ records: 40, tokens: 640 });
  const mean = (sums: (ImageLoss | TextLoss)[], key: "loss" | "accuracy") =>
    sums.reduce((sum, s) => sum + (s as TextLoss)[key] * s.tokens, 0) /
    sums.reduce((sum, s) => sum + s.tokens, 0);
  const { generate, edit, caption, answer } = report.byTask as Record<string, TextLoss>;
  expect(report.image!.loss).toBeCloseTo(mean([generate!, edit!], "loss"), 6);
  expect(report.text!.loss).toBeCloseTo(mean([caption!, answer!], "loss"), 6);
  expect(report.text!.accuracy).toBeCloseTo(mean([caption!, answer!], "accuracy"), 6);
  expect(caption!.perplexity).toBeCloseTo(Math.exp(caption!.loss), 6);

  expect(await evaluateLoss("shapes-64", { ...options, threads: 1 })).toEqual(report);
  const other = await evaluateLoss("shapes-64", { ...options, seed: 2n });
  expect(other.image!.loss).not.toBe(report.image!.loss);
  // Captions have one text each, and no draws.
  expect(other.byTask.caption).toEqual(report.byTask.caption);
  const raster = await evaluateLoss("shapes-64", { ...options, order: "raster" });
  expect(raster.image!.loss).not.toBe(report.image!.loss);
}, 120_000);

test("the text loss and its share of right tokens are those of the model's logits", async () => {
  await using model = await UniFluid.load("shapes-64", { threads: 2 });
  const { tokenizer, config } = await readCheckpoint(await locateCheckpoint("shapes-64"));
  const lines = (await readFile(manifest("caption"), "utf8")).trimEnd().split("\n");
  let [loss, right, tokens] = [0, 0, 0];
  for (const line of lines) {
    const { image, text } = JSON.parse(line) as { image: string; text: string };
    const words = [...tokenizer!.encode(text), config!.eosTokens[0]!];
    const logits = await model.logits({
      image: join(folder, "data", image),
      task: "caption",
      suffix: words.slice(0, -1),
    });
    const width = logits.length / words.length;
    for (const [i, word] of words.entries()) {
      const row = logits.subarray(i * width, (i + 1) * width);
      const top = row.reduce((a, b) => Math.max(a, b));
      loss += top + Math.log(row.reduce((sum, v) => sum + Math.exp(v - top), 0)) - row[word]!;
      right += row.indexOf(top) === word ? 1 : 0;
    }
    tokens += words.length;
  }
  const { text } = await evaluateLoss("shapes-64", {
    manifests: [manifest("caption")],
    seed: 0n,
    threads: 2,
  });
  expect(text!.tokens).toBe(tokens);
  // The shipped weights are bfloat16 in inference and float32 here; sums differ in their order.
  expect(Math.abs(text!.loss / (loss / tokens) - 1)).toBeLessThan(0.01);
  expect(Math.abs(text!.accuracy * tokens - right)).toBeLessThanOrEqual(2);
  // It has learned this, and a fresh model has not.
  await writeFile(join(folder, "model.yaml"), stringify(TINY_MODEL));
  const start = join(folder, "start");
  const parts = { seed: 1n, tokenizer: "shapes-64", vae: "shapes-64" };
  await initCheckpoint(join(folder, "model.yaml"), start, parts);
  const manifests = TASKS.map(manifest);
  const fresh = await evaluateLoss(start, { manifests, seed: 0n, threads: 2 });
  const trained = await evaluateLoss("shapes-64", { manifests, seed: 0n, threads: 2 });
  expect(fresh.text!.perplexity).toBeGreaterThan(100);
  expect(trained.text!.perplexity).toBeLessThan(2);
  expect(trained.image!.loss).toBeLessThan(0.7 * fresh.image!.loss);
}, 120_000);

describe("what cannot be measured is told by the record", () => {
  const measure = (model: string, ...manifests: string[]) =>
    evaluateLoss(model, { manifests, seed: 0n, threads: 1 });
  const refused = (message: RegExp, code = "TRAINING_DATA") => ({
    code,
    message: expect.stringMatching(message),
  });
  const write = async (name: string, ...lines: unknown[]) => {
    const path = join(folder, "data", name);
    await writeFile(
      path,
      lines.map((line) => (typeof line === "string" ? line : JSON.stringify(line))).join("\n"),
    );
    return path;
  };
  const good = { task: "caption", image: "images/000000.png", text: "a red circle" };

  test("manifests", async () => {
    await expect(measure("shapes-64", join(folder, "none.jsonl"))).rejects.toMatchObject(
      refused(/^cannot read .*none\.jsonl/),
    );
    await expect(measure("shapes-64", await write("empty.jsonl", ""))).rejects.toMatchObject(
      refused(/empty\.jsonl has no records$/),
    );
    const broken = await write("broken.jsonl", good, "{");
    await expect(measure("shapes-64", broken)).rejects.toMatchObject(
      refused(/broken\.jsonl: record 1 \(line 2\): not JSON/),
    );
    const task = await write("task.jsonl", good, good, { ...good, task: "sing" });
    await expect(measure("shapes-64", task)).rejects.toMatchObject(
      refused(/task\.jsonl: record 2 \(line 3\): task: expected generate or caption/),
    );
    const picture = await write("picture.jsonl", good, { ...good, image: "images/none.png" });
    await expect(measure("shapes-64", picture)).rejects.toMatchObject(
      refused(/picture\.jsonl: record 1 \(line 2\): .*none\.png/),
    );
  });

  test("a tar", async () => {
    const tar = join(folder, "data", "a.tar");
    const message = /expected JSON lines but .*a\.tar is a tar file: .* under "shards"/;
    await expect(measure("shapes-64", tar)).rejects.toMatchObject(refused(message));
  });

  test("texts beyond the model's length, before anything is measured", async () => {
    const long = await write("long.jsonl", good, { ...good, text: "a red circle ".repeat(200) });
    const message =
      /long\.jsonl: record 1 \(line 2\): its prompt takes \d+ rows and its text \d+: \d+ together/;
    const progress = jest.fn();
    const options = { manifests: [long], seed: 0n, threads: 1, onRecord: progress };
    await expect(evaluateLoss("shapes-64", options)).rejects.toMatchObject(refused(message));
    expect(progress).not.toHaveBeenCalled();
  });

  test("models", async () => {
    await expect(measure(join(FIXTURES, "gemma2-tiny"), manifest("caption"))).rejects.toMatchObject(
      refused(/record 0 \(line 1\): the model reads no images, which caption needs$/),
    );
    await expect(
      measure(join(FIXTURES, "paligemma-tiny"), manifest("generate")),
    ).rejects.toMatchObject(
      refused(/record 0 \(line 1\): the model draws no images, which generate needs$/),
    );
    await expect(measure("./nothing", manifest("caption"))).rejects.toMatchObject({
      code: "CHECKPOINT_NOT_FOUND",
    });
  });

  test("a text whose logits are not finite, by the records it is among", async () => {
    const addon = loadAddon();
    const createTrainer = addon.createTrainer.bind(addon);
    const create = jest.spyOn(addon, "createTrainer").mockImplementation(async (...args) => {
      const native = await createTrainer(...args);
      const error = {
        code: "NUMERICAL_ERROR",
        message: "expected finite logits but a row has none",
      };
      return {
        evaluate: () => Promise.reject(error),
        dispose: () => native.dispose(),
      } as unknown as typeof native;
    });
    try {
      await expect(
        measure("shapes-64", await write("two.jsonl", good, good)),
      ).rejects.toMatchObject(
        refused(
          /^expected finite logits .*, between .*two\.jsonl: record 0 \(line 1\) and .*record 1 \(line 2\)$/,
          "NUMERICAL_ERROR",
        ),
      );
    } finally {
      create.mockRestore();
    }
  });

  test("an abort ends it with the signal's reason", async () => {
    const signal = AbortSignal.abort(new Error("enough"));
    const options = { manifests: [manifest("caption")], seed: 0n, signal };
    await expect(evaluateLoss("shapes-64", options)).rejects.toThrow("enough");
  });
});

test("texts of a model without its autoencoder lose as much, and drawings cannot be measured", async () => {
  const without = join(folder, "without-vae");
  await cp(await locateCheckpoint("shapes-64"), without, { recursive: true });
  await rm(join(without, "vae"), { recursive: true });
  const options = { manifests: [manifest("caption")], seed: 1n, threads: 1 };
  const { text } = await evaluateLoss(without, options);
  expect(text).toEqual((await evaluateLoss("shapes-64", options)).text);
  await expect(
    evaluateLoss(without, { ...options, manifests: [manifest("edit")] }),
  ).rejects.toMatchObject({
    code: "TRAINING_DATA",
    message: expect.stringMatching(/the model has no autoencoder, which edit needs$/),
  });
}, 60_000);

test("pictures may be kept in a folder of their own", async () => {
  const [data, cache] = [join(folder, "elsewhere"), join(folder, "kept")];
  await writeDataset(data, { count: 2, seed: 2n, tasks: ["caption"] });
  await evaluateLoss("shapes-64", {
    manifests: [join(data, "caption.jsonl")],
    seed: 0n,
    threads: 1,
    cache,
  });
  expect(await readdir(data)).toEqual(["caption.jsonl", "images"]);
  expect((await readdir(cache)).map((name) => name.replace(/.*\./, ""))).toEqual(["bin", "jsonl"]);
});

test("the command prints a table or JSON, writes a file, and tells which option is of which suite", async () => {
  const run = (...args: string[]) =>
    promisify(execFile)(process.execPath, [
      resolve(__dirname, "../../dist/cli/main.js"),
      "eval",
      "shapes-64",
      ...args,
    ]).then(
      ({ stdout }) => ({ code: 0, stdout, stderr: "" }),
      ({ code, stdout, stderr }) => ({ code, stdout, stderr }),
    );
  const loss = ["--suite", "loss", "--manifest", manifest("caption"), manifest("generate")];
  const out = join(folder, "figures.json");
  const table = await run(...loss, "--timesteps", "2", "--out", out);
  expect(table.stdout).toMatch(/^records +80\nimage loss +[\d.]+ over 640 tokens\ntext loss/);
  const { stdout } = await run(...loss, "--timesteps", "2", "--json");
  expect(JSON.parse(stdout)).toEqual(JSON.parse(await readFile(out, "utf8")));
  const named = { suite: "loss", model: "shapes-64", seed: 0, timesteps: 2 };
  expect(JSON.parse(stdout)).toMatchObject(named);
  // JSON has no number for it.
  const seed = String(2n ** 64n - 1n);
  const far = ["--suite", "loss", "--manifest", manifest("caption"), "--seed", seed];
  const printed = JSON.parse((await run(...far, "--out", out, "--json")).stdout);
  expect([printed.seed, JSON.parse(await readFile(out, "utf8"))]).toEqual([seed, printed]);
  const usage = (text: string) => ({ code: 2, stderr: expect.stringContaining(text) });
  expect(await run("--suite", "loss")).toMatchObject(usage("needs --manifest"));
  expect(await run("--cache", "a")).toMatchObject(usage("--cache is an option of the suite loss"));
  expect(await run("--manifest", "a")).toMatchObject(usage("--manifest is an option of the suite"));
  expect(await run(...loss, "--steps", "3")).toMatchObject(usage("--steps is an option of the"));
  expect(await run("--suite", "loss", "--manifest", "nothing.jsonl")).toMatchObject({
    code: 3,
    stderr: expect.stringContaining("TRAINING_DATA"),
  });
}, 120_000);
