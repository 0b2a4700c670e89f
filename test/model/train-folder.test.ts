/** The folder of a run: whose it is, what may lie in it, and what opening one refuses. */
import { execFile } from "node:child_process";
import { existsSync, promises } from "node:fs";
import {
  appendFile,
  mkdir,
  readdir,
  readFile,
  rm,
  stat,
  truncate,
  writeFile,
} from "node:fs/promises";
import { hostname } from "node:os";
import { join, resolve } from "node:path";
import { promisify } from "node:util";
import { stringify } from "yaml";
import { Trainer, type TrainOptions } from "../../lib";
import { thisOwner } from "../../lib/folder-lock";
import { readRunConfig } from "../../lib/train/config";
import { RunFolder } from "../../lib/train/run-folder";
import { FIXTURES } from "../support/fixtures";
import { Runs } from "../support/runs";

const runs = new Runs();
beforeAll(() => runs.open(), 120_000);
afterAll(() => runs.close());

const at = (...names: string[]) => join(runs.folder, ...names);
const open = (out: string, change: object = {}, options: Partial<TrainOptions> = {}) =>
  Trainer.open(runs.config(change), { out: at(out), ...options });

test("a folder has one trainer at a time, also where two begin at once", async () => {
  const both = await Promise.allSettled([open("shared"), open("shared")]);
  const [won] = both.filter((one) => one.status === "fulfilled");
  const [lost] = both.filter((one) => one.status === "rejected");
  expect(lost?.reason).toMatchObject({ code: "OUTPUT_LOCKED" });
  const trainer = won!.value;
  // What the one that works is writing is left alone.
  const half = at("shared", "checkpoints", "step-00000004.partial");
  await mkdir(half);
  for (const resume of [false, true])
    await expect(open("shared", {}, { resume })).rejects.toMatchObject({
      code: "OUTPUT_LOCKED",
      message: expect.stringMatching(
        /^process \d+ on .* is writing to this folder; .*\.run\.lock$/,
      ),
    });
  expect(existsSync(half)).toBe(true);
  await trainer.close();
  await (await open("shared")).close();
  expect(await readdir(at("shared"))).toEqual(["checkpoints", "run.yaml", "samples"]);
});

test("settings that cannot be written leave nothing half-written", async () => {
  const folder = await RunFolder.open(at("unwritable"));
  await mkdir(folder.settings);
  await expect(folder.goOnWith(3, "steps: 9\n", true)).rejects.toThrow(/EISDIR|ENOTSUP/);
  await folder.close();
  expect(await readdir(folder.path)).toEqual(["run.yaml"]);
});

test("the lock of a process that was killed is taken over, that of a living one is not", async () => {
  await mkdir(at("left"));
  const of = (pid: number) =>
    writeFile(at("left", ".run.lock"), JSON.stringify({ pid, host: hostname() }));
  await of(process.ppid);
  await expect(open("left")).rejects.toMatchObject({ code: "OUTPUT_LOCKED" });
  // The second as containers have it, in which every process has the same number.
  for (const pid of [2 ** 30, process.pid]) {
    await of(pid);
    await (await open("left")).close();
  }
  // Of another thread of this process, and of an earlier process of its number.
  const mine = thisOwner();
  await writeFile(at("left", ".run.lock"), JSON.stringify(mine));
  await expect(open("left")).rejects.toMatchObject({ code: "OUTPUT_LOCKED" });
  const earlier = { ...mine, started: mine.started! - 3_600_000 };
  await writeFile(at("left", ".run.lock"), JSON.stringify(earlier));
  await (await open("left")).close();
});

test("what can not be sampled is refused before the first step", async () => {
  const refused = (samples: object, message: RegExp, change: object = {}) =>
    expect(open("refused", { samples: { every: 4, ...samples }, ...change })).rejects.toMatchObject(
      { code: "INVALID_CONFIG", message: expect.stringMatching(message) },
    );
  const prompts = ["a red circle"];
  await refused({ prompts, steps: 100_000 }, /^samples: expected an integer .* for steps/);
  await refused({ prompts, guidance: 1e6 }, /^samples: expected a number .* for guidance/);
  await refused(
    { prompts: [...prompts, "red ".repeat(600)] },
    /^samples\.prompts\.1: the prompt takes \d+ rows/,
  );
  const model = join(FIXTURES, "paligemma-tiny");
  await refused({ prompts }, /^samples: this checkpoint \(paligemma\) cannot generate/, { model });
  expect(existsSync(at("refused"))).toBe(false);
});

test("a run that failed before its first step may be begun again, corrected", async () => {
  await writeFile(at("data", "broken.jsonl"), "{not json\n");
  const broken = { sources: [{ manifest: at("data", "broken.jsonl"), examples: 1 }] };
  await expect(runs.train("corrected", broken)).rejects.toMatchObject({ code: "TRAINING_DATA" });
  expect(await runs.train("corrected", { steps: 1 })).toMatchObject({ step: 1 });
  expect(await readFile(at("corrected", "run.yaml"), "utf8")).toContain("caption.jsonl");
  await expect(runs.train("corrected", { steps: 1 })).rejects.toMatchObject({
    code: "INVALID_OPTION",
    message: expect.stringContaining("already has a run"),
  });
});

test("a run.yaml that a person wrote is not replaced", async () => {
  await mkdir(at("mine"));
  const text = `# My run\n${stringify(runs.config())}`;
  await writeFile(at("mine", "run.yaml"), text);
  for (const resume of [false, true])
    await expect(open("mine", {}, { resume })).rejects.toMatchObject({
      code: "INVALID_OPTION",
      message: expect.stringMatching(/run\.yaml was not written by a run/),
    });
  expect(await readdir(at("mine"))).toEqual(["run.yaml"]);
  expect(await readFile(at("mine", "run.yaml"), "utf8")).toBe(text);
});

test("notes say which settings differ, and that there was nothing to go on with", async () => {
  const notes: string[] = [];
  const options = { resume: true, onNote: (message: string) => notes.push(message) };
  await runs.train("noted", { steps: 1 }, options);
  expect(notes).toEqual([`there is no run in ${at("noted")} to resume: a new one starts`]);
  notes.length = 0;
  const change = { steps: 2, learningRate: 1e-3, checkpoint: { every: 3, keep: 2 } };
  await runs.train("noted", change, options);
  expect(notes).toEqual([
    "the settings differ from those the run started with: steps, learningRate, checkpoint.every",
  ]);
  notes.length = 0;
  await rm(runs.checkpoint("noted", 1), { recursive: true });
  await rm(runs.checkpoint("noted", 2), { recursive: true });
  await runs.train("noted", change, options);
  expect(notes).toEqual([`${at("noted")} has no checkpoint to resume from: the run starts over`]);
});

test("folders that were removed are made again", async () => {
  const samples = { every: 2, prompts: ["a red circle"], steps: 2 };
  await runs.train("removed", { steps: 2, samples });
  await rm(at("removed", "samples"), { recursive: true });
  await runs.train("removed", { steps: 4, samples }, { resume: true });
  expect(await readdir(at("removed", "samples"))).toEqual([
    "step-00000002.png",
    "step-00000004.png",
  ]);
});

test("a run whose folder cannot be read now is not taken for one that has not begun", async () => {
  await runs.train("unread", { steps: 2 });
  const metrics = await readFile(at("unread", "metrics.jsonl"), "utf8");
  const { readdir: list, open: opened } = promises;
  const denied = (path: unknown) =>
    Promise.reject(Object.assign(new Error(`EACCES: ${path}`), { code: "EACCES" }));
  const listing = jest
    .spyOn(promises, "readdir")
    .mockImplementation(((...args: Parameters<typeof list>) =>
      args[0] === at("unread", "checkpoints") ? denied(args[0]) : list(...args)) as typeof list);
  try {
    for (const resume of [false, true])
      await expect(open("unread", {}, { resume })).rejects.toMatchObject({ code: "EACCES" });
  } finally {
    listing.mockRestore();
  }
  const reading = jest
    .spyOn(promises, "open")
    .mockImplementation(((...args: Parameters<typeof opened>) =>
      args[0] === at("unread", "metrics.jsonl")
        ? denied(args[0])
        : opened(...args)) as typeof opened);
  try {
    await expect(open("unread", {}, { resume: true })).rejects.toMatchObject({ code: "EACCES" });
  } finally {
    reading.mockRestore();
  }
  expect(await readFile(at("unread", "metrics.jsonl"), "utf8")).toBe(metrics);
  expect(await runs.train("unread", { steps: 3 }, { resume: true })).toMatchObject({ step: 3 });
});

test("an old checkpoint that cannot be removed is told once, and does not end the run", async () => {
  const stuck = runs.checkpoint("stuck", 1);
  const { rm: remove } = promises;
  const removing = jest.spyOn(promises, "rm").mockImplementation(async (path, ...rest) => {
    if (path === stuck && existsSync(stuck))
      throw new Error(`ENOTEMPTY: directory not empty, rmdir '${stuck}'`);
    return remove(path, ...rest);
  });
  const notes: string[] = [];
  const onNote = (message: string) => notes.push(message);
  try {
    const change = { steps: 6, checkpoint: { every: 1, keep: 1 } };
    expect(await runs.train("stuck", change, { onNote })).toMatchObject({ finished: true });
  } finally {
    removing.mockRestore();
  }
  expect(notes).toEqual([
    `an old checkpoint could not be removed: ENOTEMPTY: directory not empty, rmdir '${stuck}'`,
  ]);
  expect(await readdir(at("stuck", "checkpoints"))).toEqual([
    "step-00000001",
    "step-00000005",
    "step-00000006",
  ]);
});

test("the history of a run is cut off where some of it goes, and else left alone", async () => {
  await runs.train("history", { steps: 4, checkpoint: { every: 2 } });
  const path = at("history", "metrics.jsonl");
  const before = await stat(path);
  const again = () => open("history", {}, { resume: true }).then((trainer) => trainer.close());
  await again();
  expect(await stat(path)).toMatchObject({ ino: before.ino, mtimeMs: before.mtimeMs });
  await rm(runs.checkpoint("history", 4), { recursive: true });
  const lines = (await readFile(path, "utf8")).split("\n");
  await again();
  expect(await readFile(path, "utf8")).toBe(`${lines[0]}\n${lines[1]}\n`);
  expect(await stat(path)).toMatchObject({ ino: before.ino });
});

test("a history may be larger than the longest string, and ends where a kill left half a line", async () => {
  await runs.train("long", { steps: 4, checkpoint: { every: 2 } });
  const path = at("long", "metrics.jsonl");
  const before = await readFile(path, "utf8");
  // Zeros, which take no room on the disk, and what is no line of metrics.
  await truncate(path, 520 * 2 ** 20);
  await appendFile(path, "\nnull\n[]\n3\n");
  expect(await runs.train("long", { steps: 6 }, { resume: true })).toMatchObject({ step: 6 });
  expect((await readFile(path, "utf8")).slice(0, before.length)).toBe(before);
  const metrics = await runs.metricsOf("long");
  expect(metrics.map(({ step }) => step)).toEqual([1, 2, 3, 4, 5, 6]);
  expect(metrics.map(({ examples }) => examples)).toEqual([8, 16, 24, 32, 40, 48]);
});

test("options are checked", async () => {
  const refused = (options: object, message: RegExp) =>
    expect(Trainer.open(runs.config(), options as TrainOptions)).rejects.toMatchObject({
      code: "INVALID_OPTION",
      message: expect.stringMatching(message),
    });
  const out = at("options");
  await refused({}, /a string for out but received/);
  await refused({ out: "" }, /the name of a folder for out/);
  await refused({ out, onstep: () => {} }, /only the options .* "onstep"/);
  await refused({ out, resume: "yes" }, /a boolean for resume/);
  await refused({ out, signal: {} }, /an AbortSignal for signal/);
  await refused({ out, onStep: 1 }, /a function for onStep/);
  await refused({ out, onNote: "log" }, /a function for onNote/);
  await expect(
    Trainer.open(runs.config(), undefined as unknown as TrainOptions),
  ).rejects.toMatchObject({ code: "INVALID_OPTION" });
  expect(existsSync(out)).toBe(false);
});

test("a model beside the settings is meant by its bare name, also where a shipped one has the name", async () => {
  const write = (change: object) =>
    writeFile(at("named.yaml"), stringify({ ...runs.config(), ...change }));
  await write({ model: "start" });
  expect(await readRunConfig(at("named.yaml"))).toMatchObject({ model: at("start") });
  await write({ model: "shapes-64" });
  expect(await readRunConfig(at("named.yaml"))).toMatchObject({ model: "shapes-64" });
  await mkdir(at("shapes-64"));
  expect(await readRunConfig(at("named.yaml"))).toMatchObject({ model: at("shapes-64") });
  await rm(at("shapes-64"), { recursive: true });
  const { model: _, ...rest } = runs.config() as { model: string };
  await writeFile(at("named.yaml"), stringify({ ...rest, autoencoder: "start" }));
  expect(await readRunConfig(at("named.yaml"))).toMatchObject({ autoencoder: at("start") });
  await rm(at("named.yaml"));
});

test("on a terminal notes begin a line of their own", async () => {
  const lines = (await readFile(at("data", "caption.jsonl"), "utf8")).trimEnd().split("\n");
  lines[9] = "{";
  await writeFile(at("data", "late.jsonl"), lines.join("\n"));
  const sources = [{ manifest: at("data", "late.jsonl"), examples: 2, shuffle: 1 }];
  await writeFile(at("late.yaml"), stringify(runs.config({ sources, steps: 6 })));
  await writeFile(
    at("terminal.cjs"),
    "Object.assign(process.stderr, { isTTY: true, columns: 80 });",
  );
  const main = resolve(__dirname, "../../dist/cli/main.js");
  for (const args of [["prepare"], ["train", "--out", at("late")]]) {
    const [command, ...rest] = args as [string, ...string[]];
    const { stderr } = await promisify(execFile)(process.execPath, [
      ...["-r", at("terminal.cjs"), main, command, at("late.yaml")],
      ...rest,
    ]);
    const notes = stderr.split("unifluid: ").slice(0, -1);
    expect(stderr).toMatch(/unifluid: skipped .*late\.jsonl: record 9/);
    // At the line's begin, or where the bar was taken away.
    const ends = ["\n", "\r\x1b[K", "\x1b[1G\x1b[2K"];
    const own = (before: string) => before === "" || ends.some((end) => before.endsWith(end));
    expect(notes.filter((before) => !own(before))).toEqual([]);
  }
  // What still works behind the end draws no bar any more, which would keep the process.
  const settings = runs.config({ sources, steps: 6, brokenShare: 0, cache: at("late-cache") });
  await writeFile(at("late.yaml"), stringify({ ...settings, brokenShare: 0 }));
  await expect(
    promisify(execFile)(
      process.execPath,
      ["-r", at("terminal.cjs"), main, "prepare", at("late.yaml")],
      { timeout: 30_000 },
    ),
  ).rejects.toMatchObject({ killed: false, stderr: expect.stringContaining("TRAINING_DATA") });
});

test("where the disk of the cache, or of the run, is full at the beginning the commands say which", async () => {
  const [cache, run] = [at("roomless"), at("run-without-room")];
  await writeFile(
    at("roomless.cjs"),
    `const promises = require("node:fs/promises");
    for (const [name, full] of [["mkdir", process.env.FULL_CACHE], ["writeFile", process.env.FULL_RUN]]) {
      const work = promises[name];
      promises[name] = (path, ...rest) => full && String(path).startsWith(full)
        ? Promise.reject(Object.assign(new Error("ENOSPC: no room, " + name), { code: "ENOSPC", errno: -28, syscall: name, path }))
        : work(path, ...rest);
    }`,
  );
  await writeFile(at("roomless.yaml"), stringify(runs.config({ cache })));
  const main = resolve(__dirname, "../../dist/cli/main.js");
  const command = (env: object, ...args: string[]) =>
    promisify(execFile)(process.execPath, ["-r", at("roomless.cjs"), main, ...args], {
      env: { ...process.env, ...env },
    });
  const [prepare, train] = ["prepare", "train"].map((name) => [name, at("roomless.yaml")]);
  const says = (path: string) => ({
    code: 6,
    stderr: expect.stringMatching(`OUTPUT: cannot write to ${path}: .*ENOSPC: no room`),
  });
  const fullCache = { FULL_CACHE: cache };
  await expect(command(fullCache, ...prepare!)).rejects.toMatchObject(says(cache));
  await expect(command(fullCache, ...train!, "--out", run)).rejects.toMatchObject(says(cache));
  const fullRun = { FULL_RUN: join(run, "run.yaml") };
  await expect(command(fullRun, ...train!, "--out", run)).rejects.toMatchObject(says(run));
});

/** Files of a process may have so many KiB: what comes behind fails to be written, as on a full disk. */
async function limited(kib: number, ...args: string[]) {
  const main = resolve(__dirname, "../../dist/cli/main.js");
  const command = `ulimit -f ${kib}; exec "$0" "$@"`;
  return promisify(execFile)("bash", ["-c", command, process.execPath, main, ...args]);
}

test("on a full disk the commands say where, and end with the code of outputs", async () => {
  const data = at("full-data");
  await mkdir(data);
  await writeFile(
    join(data, "captions.jsonl"),
    [0, 1, 2, 3, 4, 5, 6, 7]
      .map((i) => ({ task: "caption", image: at("data", "images", `00000${i}.png`), text: "a" }))
      .map((record) => `${JSON.stringify(record)}\n`)
      .join(""),
  );
  const sources = [{ manifest: join(data, "captions.jsonl"), examples: 2 }];
  const settings = at("full.yaml");
  await writeFile(settings, stringify(runs.config({ sources, steps: 2 })));
  const cache = join(data, ".unifluid-cache");
  const failed = (path: string) => ({
    code: 6,
    stderr: expect.stringMatching(`OUTPUT: cannot write to ${path}: .*EFBIG`),
  });
  // Where not one picture has room nothing is left, and where one has, nothing of the others.
  for (const [kib, left] of [
    [8, []],
    [20, [expect.stringMatching(/\.bin$/), expect.stringMatching(/\.jsonl$/)]],
  ] as const) {
    await expect(limited(kib, "prepare", settings)).rejects.toMatchObject(failed(cache));
    expect((await readdir(cache)).sort()).toEqual(left);
  }
  await expect(limited(500, "train", settings, "--out", at("full"))).rejects.toMatchObject(
    failed(at("full")),
  );
});
