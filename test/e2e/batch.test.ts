/** `unifluid batch` as people run it: mixed jobs, failures, kills and restarts. */

import { type ChildProcess, spawn } from "node:child_process";
import {
  cpSync,
  existsSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  statSync,
  writeFileSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import sharp from "sharp";
import { UniFluid } from "../../lib/index";

const root = join(__dirname, "../..");
const main = join(root, "dist/cli/main.js");
const photo = join(root, "test/fixtures/shapes-64/expected/caption0.png");

let folder: string;
beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), "unifluid-batch-"));
  cpSync(photo, join(folder, "photo.png"));
});
afterEach(() => rmSync(folder, { recursive: true, force: true }));

interface Ending {
  code: number | null;
  out: string;
  err: string;
}

function run(
  args: string[],
  { input = "", started = (_: ChildProcess): unknown => undefined, hook = "" } = {},
) {
  if (hook) writeFileSync(join(folder, "hook.cjs"), hook);
  const node = hook ? ["--require", "./hook.cjs"] : [];
  const child = spawn(process.execPath, [...node, main, "batch", ...args], { cwd: folder });
  started(child);
  let [out, err] = ["", ""];
  child.stdout.on("data", (chunk) => {
    out += chunk;
  });
  child.stderr.on("data", (chunk) => {
    err += chunk;
  });
  child.stdin.on("error", () => {});
  child.stdin.end(input);
  return new Promise<Ending>((resolve, reject) => {
    child.once("error", reject);
    child.once("close", (code) => resolve({ code, out, err }));
  });
}

type Line = Record<string, unknown> & { index: number };
const results = (name = "results.jsonl"): Line[] =>
  readFileSync(join(folder, "out", name), "utf8")
    .trimEnd()
    .split("\n")
    .map((line) => JSON.parse(line) as Line)
    .sort((a, b) => a.index - b.index);
const write = (name: string, records: unknown[]) =>
  writeFileSync(join(folder, name), records.map((r) => `${JSON.stringify(r)}\n`).join(""));
const pictures = () => readdirSync(join(folder, "out")).filter((name) => /\.png/.test(name));

test("does mixed jobs, and tells of those that cannot be done", async () => {
  write("jobs.jsonl", [
    { prompt: "a red circle", seed: 7, steps: 3 },
    { image: "photo.png" },
    { image: "photo.png", question: "how many objects are there?" },
    { id: "blue", image: "photo.png", instruction: "make it blue" },
    { image: "missing.png" },
    { prompt: "a", wrong: true },
    { prompt: "a star" },
  ]);
  const ending = await run(["jobs.jsonl", "--out", "out", "--steps", "2", "--seed", "50"]);
  expect(ending).toMatchObject({ code: 7, out: "" });
  const last = ending.err.trimEnd().split("\n").at(-1);
  expect(last).toMatch(/^unifluid: 5 done, 2 failed; .*; first failure: record \d: /);
  // Which of the two was first is not decided.
  expect(last).toMatch(
    /(IMAGE_NOT_FOUND: there is no .*missing\.png|INVALID_RECORD: .*"wrong".*) \(/,
  );
  expect(last).toMatch(/ \(all are in out\/results\.jsonl\)$/);
  const lines = results();
  const model = await UniFluid.load("shapes-64");
  try {
    expect(lines.map(({ milliseconds, fingerprint, ...line }) => line)).toEqual([
      { index: 0, task: "generate", seed: 7, file: "0000000.png", width: 64, height: 64 },
      { index: 1, task: "caption", seed: 51, text: await model.caption(photo) },
      {
        index: 2,
        task: "answer",
        seed: 52,
        text: await model.answer(photo, "how many objects are there?"),
      },
      {
        index: 3,
        id: "blue",
        task: "edit",
        seed: 53,
        file: "0000003-blue.png",
        width: 64,
        height: 64,
      },
      {
        index: 4,
        task: "caption",
        seed: 54,
        error: { code: "IMAGE_NOT_FOUND", message: expect.stringContaining("missing.png") },
      },
      { index: 5, error: { code: "INVALID_RECORD", message: expect.stringContaining('"wrong"') } },
      { index: 6, task: "generate", seed: 56, file: "0000006.png", width: 64, height: 64 },
    ]);
    const drawn = await model.generate("a red circle", { seed: 7, steps: 3 });
    const read = await sharp(join(folder, "out/0000000.png")).removeAlpha().raw().toBuffer();
    expect(Buffer.compare(read, Buffer.from(drawn.pixels))).toBe(0);
  } finally {
    await model.dispose();
  }

  // Again: nothing is left to do; what failed is told of, and done again when asked.
  const again = await run(["jobs.jsonl", "--out", "out", "--steps", "2", "--seed", "50"]);
  expect(again.code).toBe(7);
  expect(again.err).toMatch(/0 done, 0 failed, 5 were done before, 2 failed before/);
  expect(again.err).toMatch(/; out\/results\.jsonl says why$/m);
  cpSync(photo, join(folder, "missing.png"));
  const args = ["jobs.jsonl", "--out", "out", "--steps", "2", "--seed", "50", "--json"];
  const retried = await run([...args, "--retry-failed"]);
  expect(JSON.parse(retried.out)).toMatchObject({
    done: 1,
    failed: 1,
    doneBefore: 5,
    failedBefore: 0,
  });
  // Other options would make other pictures than those that are there.
  const changed = await run(["jobs.jsonl", "--out", "out", "--steps", "3", "--seed", "50"]);
  expect(changed).toMatchObject({ code: 2, err: expect.stringContaining("JOBS_CHANGED") });
  const other = await run([...args, "--format", "webp"]);
  expect(other).toMatchObject({ code: 2, err: expect.stringContaining("JOBS_CHANGED") });
});

test("records beyond every measure fail, and the others are done", async () => {
  const line = { width: 1_100_000, height: 1, channels: 3, background: "red" } as const;
  await sharp({ create: line }).png().toFile(join(folder, "line.png"));
  write("jobs.jsonl", [
    { image: "line.png" },
    { prompt: "a ".repeat(200_000) },
    { prompt: "a star", steps: 1 },
  ]);
  const { code } = await run(["jobs.jsonl", "--out", "out"]);
  expect(code).toBe(7);
  expect(results().map(({ error }) => (error as { code?: string } | undefined)?.code)).toEqual([
    "IMAGE_TOO_LARGE",
    "PROMPT_TOO_LONG",
    undefined,
  ]);
});

test("killed at any moment and started again, it does what is missing and nothing twice", async () => {
  const prompts = Array.from({ length: 40 }, (_, i) => ({ prompt: `a star ${i}` }));
  write("jobs.jsonl", prompts);
  const args = ["jobs.jsonl", "--out", "out", "--steps", "12", "--concurrency", "4"];
  /** The whole lines, and when their pictures were written. */
  const done = () => {
    const path = join(folder, "out/results.jsonl");
    const text = existsSync(path) ? readFileSync(path, "utf8").split("\n").slice(0, -1) : [];
    return text.map((line) => {
      const { file } = JSON.parse(line) as { file: string };
      return [line, statSync(join(folder, "out", file)).mtimeMs];
    });
  };
  let before = done();
  for (let kills = 0; kills < 4; kills++) {
    const { code } = await run(args, {
      started: async (child) => {
        while (done().length < before.length + 4 && child.exitCode === null) await sleep(5);
        child.kill("SIGKILL");
      },
    });
    expect(code).toBeNull();
    const now = done();
    expect(now.slice(0, before.length)).toEqual(before);
    before = now;
  }
  expect((await run(args)).code).toBe(0);
  expect(done().slice(0, before.length)).toEqual(before);
  const lines = results();
  expect(lines.map(({ index }) => index)).toEqual(prompts.map((_, i) => i));
  // No half of anything.
  expect(pictures().sort()).toEqual(lines.map(({ file }) => file));
  expect(readdirSync(join(folder, "out"))).toHaveLength(41);
  for (const name of pictures())
    await sharp(join(folder, "out", name))
      .raw()
      .toBuffer();
  const model = await UniFluid.load("shapes-64");
  try {
    const drawn = await model.generate("a star 23", { seed: 23, steps: 12 });
    const read = await sharp(join(folder, "out/0000023.png")).removeAlpha().raw().toBuffer();
    expect(Buffer.compare(read, Buffer.from(drawn.pixels))).toBe(0);
  } finally {
    await model.dispose();
  }
});

test("interrupted, it ends with what is done and says so by its exit code", async () => {
  write(
    "jobs.jsonl",
    Array.from({ length: 200 }, (_, i) => ({ prompt: `a star ${i}` })),
  );
  const args = ["jobs.jsonl", "--out", "out", "--steps", "500"];
  const begun = join(folder, "out/results.jsonl");
  const ending = await run(args, {
    // Minutes of work, once there is a folder of results.
    started: async (child) => {
      while (!existsSync(begun) && child.exitCode === null) await sleep(20);
      child.kill("SIGINT");
    },
  });
  expect(ending).toMatchObject({ code: 130, err: expect.stringContaining("INTERRUPTED") });
  expect(readdirSync(join(folder, "out"))).toEqual(["results.jsonl"]);
});

test("terminated while standard input says nothing more, it ends", async () => {
  const child = spawn(process.execPath, [main, "batch", "-", "--out", "out", "--quiet"], {
    cwd: folder,
  });
  try {
    child.stdin.write('{"prompt":"a star","steps":1}\n');
    const ended = new Promise((resolve) => child.once("close", resolve));
    while (!existsSync(join(folder, "out/0000000.png"))) await sleep(20);
    child.kill("SIGTERM");
    expect(await ended).toBe(143);
    expect(readdirSync(join(folder, "out")).sort()).toEqual(["0000000.png", "results.jsonl"]);
  } finally {
    child.kill("SIGKILL");
  }
});

test("results that the disk takes only when they are closed, and then not, end with 6", async () => {
  writeFileSync(join(folder, "jobs.txt"), "a star\n");
  const hook = `
    const files = require("node:fs/promises");
    const { open } = files;
    files.open = async (path, flags) => {
      const file = await open(path, flags);
      if (flags !== "a+") return file;
      const close = file.close.bind(file);
      file.close = async () => {
        await close();
        const of = { code: "EDQUOT", errno: -122, syscall: "close" };
        throw Object.assign(new Error("EDQUOT: disk quota exceeded, close"), of);
      };
      return file;
    };`;
  const { code, err } = await run(["jobs.txt", "--out", "out", "--steps", "1"], { hook });
  expect([code, err]).toEqual([6, expect.stringMatching(/OUTPUT: cannot write to out: EDQUOT/)]);
});

test("a file that breaks while it is counted leaves no lock", async () => {
  writeFileSync(join(folder, "jobs.csv"), 'prompt\na star\n"a heart\n');
  expect((await run(["jobs.csv", "--out", "out"])).code).toBe(3);
  expect(readdirSync(join(folder, "out"))).toEqual(["results.jsonl"]);
});

describe("--dry-run", () => {
  const dry = async (...args: string[]) => {
    const ending = await run([...args, "--out", "out", "--dry-run"]);
    expect(existsSync(join(folder, "out"))).toBe(false);
    return ending;
  };

  test("tells of every record that would fail, and does none", async () => {
    writeFileSync(join(folder, "text.png"), "text");
    const records: [object, string?][] = [
      [{ prompt: "a star", steps: 3 }],
      [{ image: "photo.png", question: "how many?", maxNewTokens: 5 }],
      [{ prompt: "a star", steps: 0 }, "INVALID_OPTION"],
      [{ prompt: "a star", seed: "18446744073709551616" }, "INVALID_OPTION"],
      [{ prompt: "word ".repeat(999) }, "PROMPT_TOO_LONG"],
      [{ image: "photo.png", maxNewTokens: 9999 }, "PROMPT_TOO_LONG"],
      [{ image: "none.png" }, "IMAGE_NOT_FOUND"],
      [{ image: "text.png" }, "IMAGE_UNDECODABLE"],
      [{ image: "https://example.org/a.png" }, "IMAGE_UNSUPPORTED_INPUT"],
      [{ prompt: "a star", size: 3 }, "INVALID_RECORD"],
    ];
    write(
      "jobs.jsonl",
      records.map(([record]) => record),
    );
    const failing = records.flatMap(([, code], record) => (code ? [{ code, record }] : []));
    const json = await dry("jobs.jsonl", "--json");
    const told = json.err
      .trimEnd()
      .split("\n")
      .map((line) => JSON.parse(line));
    expect(json.code).toBe(7);
    expect(JSON.parse(json.out)).toEqual({ valid: 2, invalid: 8 });
    expect(told.map(({ error, record, line }) => ({ code: error.code, record, line }))).toEqual(
      failing.map(({ code, record }) => ({ code, record, line: record + 1 })),
    );
    // What it says is what becomes of them.
    expect((await run(["jobs.jsonl", "--out", "out"])).code).toBe(7);
    const codes = results().map(({ error }) => (error as { code?: string } | undefined)?.code);
    expect(codes).toEqual(records.map(([, code]) => code));
  });

  test("looks at no weights, and keeps to a shard", async () => {
    const broken = join(folder, "broken");
    cpSync(join(root, "models/shapes-64"), broken, { recursive: true });
    const file = join(broken, "model.safetensors");
    const bytes = readFileSync(file);
    bytes.fill(0xff, bytes.length - 4_000_000);
    writeFileSync(file, bytes);
    write("jobs.jsonl", [{ prompt: "a" }, { prompt: "" }, { prompt: "c" }]);
    const args = ["jobs.jsonl", "--model", broken, "--shard"];
    const first = await dry(...args, "1/2");
    expect(first).toEqual({
      code: 0,
      out: "",
      err: "unifluid: 2 jobs can be done, 0 records would fail\n",
    });
    const second = await dry(...args, "2/2");
    expect(second.code).toBe(7);
    expect(second.err).toMatch(/^unifluid: INVALID_RECORD: record 1 \(line 2\): prompt: /);
  });
});

test("shards do all together what one run does", async () => {
  writeFileSync(join(folder, "prompts.txt"), "a star\na heart\na circle\na square\na triangle\n");
  const common = ["prompts.txt", "--out", "out", "--steps", "1", "--quiet"];
  const [first, second] = await Promise.all([
    run([...common, "--shard", "1/2"]),
    run([...common, "--shard", "2/2"]),
  ]);
  expect([first, second]).toEqual([
    { code: 0, out: "", err: "" },
    { code: 0, out: "", err: "" },
  ]);
  expect(results("results-1-of-2.jsonl").map(({ index }) => index)).toEqual([0, 2, 4]);
  expect(results("results-2-of-2.jsonl").map(({ index }) => index)).toEqual([1, 3]);
  const all = await run(["prompts.txt", "--out", "out", "--steps", "1"]);
  expect(all.err).toMatch(/0 done, 0 failed, 5 were done before/);
});

test("reads CSV and standard input", async () => {
  writeFileSync(join(folder, "jobs.csv"), 'id,prompt,seed\na,"a star, red",3\nb,a heart,\n');
  expect((await run(["jobs.csv", "--out", "out", "--steps", "1"])).code).toBe(0);
  expect(results().map(({ id, seed }) => [id, seed])).toEqual([
    ["a", 3],
    ["b", 1],
  ]);
  const input = "a star\na heart\n";
  const args = [
    "-",
    "--input-format",
    "lines",
    "--out",
    "out2",
    "--steps",
    "1",
    "--format",
    "webp",
  ];
  expect((await run(args, { input })).code).toBe(0);
  expect(readdirSync(join(folder, "out2")).sort()).toEqual([
    "0000000.webp",
    "0000001.webp",
    "results.jsonl",
  ]);
});

test.each<[string, string[], number, RegExp]>([
  ["no file", ["none.jsonl", "--out", "out"], 2, /cannot read the jobs/],
  ["a folder", [".", "--out", "out"], 2, /expected a file of jobs/],
  ["no --out", ["photo.png"], 2, /--out/],
  ["JSON that is not lines", ["jobs.json", "--out", "out"], 2, /\.jsonl.*--input-format/],
  ["a binary file", ["photo.png", "--out", "out"], 3, /NUL byte; is this a file of jobs/],
  ["a folder in which none can be", ["a.txt", "--out", "/proc/x"], 6, /cannot write to \/proc\/x/],
  ["a shard that is none", ["photo.png", "--out", "out", "--shard", "3/2"], 2, /i\/n/],
  ["a folder that is a file", ["photo.png", "--out", "photo.png"], 6, /cannot write to photo.png/],
])("%s is refused", async (_name, args, code, message) => {
  writeFileSync(join(folder, "jobs.json"), '[{"prompt":"x"}]');
  writeFileSync(join(folder, "a.txt"), "a star\n");
  const ending = await run(args);
  expect(ending.code).toBe(code);
  expect(ending.err).toMatch(message);
});
