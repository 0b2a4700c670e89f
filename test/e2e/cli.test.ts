/** The program `unifluid` as people run it: child processes and real files. */

import { type ChildProcess, spawn } from "node:child_process";
import { createHash } from "node:crypto";
import {
  cpSync,
  existsSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  writeFileSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { stringify } from "yaml";
import { decodeImage } from "../../lib/image-input.js";
import { UniFluid } from "../../lib/model.js";
import { Screen } from "../support/screen";
import { TINY_MODEL } from "../support/training";

const root = join(__dirname, "../..");
const main = join(root, "dist/cli/main.js");
const fixtures = join(root, "test/fixtures");
const photo = join(fixtures, "shapes-64/expected/caption0.png");
const gemma = join(fixtures, "gemma2-tiny");

let folder: string;
beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), "unifluid-cli-"));
});
afterEach(() => rmSync(folder, { recursive: true, force: true }));

interface RunOptions {
  input?: string | Uint8Array;
  /** Files may have so many KiB: what comes behind fails to be written, as on a full disk. */
  mostKib?: number;
  env?: Record<string, string>;
  /** Gets the child as soon as it is started. */
  started?: (child: ChildProcess) => unknown;
}

interface Result {
  code: number | null;
  stdout: Buffer;
  out: string;
  err: string;
}

function run(args: string[], { input, env, mostKib, started }: RunOptions = {}): Promise<Result> {
  const command = [process.execPath, main, ...args];
  const limited = mostKib && ["bash", "-c", `ulimit -f ${mostKib}; exec "$0" "$@"`, ...command];
  const [program, ...rest] = limited || command;
  const child = spawn(program as string, rest, { cwd: folder, env: { ...process.env, ...env } });
  started?.(child);
  const chunks: { out: Buffer[]; err: Buffer[] } = { out: [], err: [] };
  child.stdout.on("data", (chunk: Buffer) => chunks.out.push(chunk));
  child.stderr.on("data", (chunk: Buffer) => chunks.err.push(chunk));
  child.stdin.on("error", () => {});
  child.stdin.end(input ?? "");
  return new Promise((resolve, reject) => {
    child.once("error", reject);
    child.once("close", (code) => {
      const stdout = Buffer.concat(chunks.out);
      resolve({ code, stdout, out: stdout.toString(), err: Buffer.concat(chunks.err).toString() });
    });
  });
}

/** As on a machine without a GPU. */
const NO_GPU = { UNIFLUID_CUDA_LIBRARY: "/nothing/unifluid_cuda.so" };
const onLinux = process.platform === "linux" ? test : test.skip;
/** Of processors that a child has used: what Linux counts in hundredths. */
const secondsOf = ({ pid }: ChildProcess): number => {
  const fields = readFileSync(`/proc/${pid}/stat`, "utf8").split(") ")[1]!.split(" ");
  return (Number(fields[11]) + Number(fields[12])) / 100;
};

const documents = (text: string) =>
  text
    .trimEnd()
    .split("\n")
    .map((line) => JSON.parse(line) as Record<string, unknown>);

const pixelsOf = async (path: string) => (await decodeImage(join(folder, path))).pixels;

/** Few steps: these tests look at the way of the image, not at its content. */
const quick = ["--steps", "2"];

describe("generate", () => {
  test("writes the image that the library draws with that seed", async () => {
    const args = ["generate", "a red circle", "--seed", "7", "--out", "circle.png", ...quick];
    const { code, out, err } = await run(args);
    expect([code, out]).toEqual([0, "circle.png\n"]);
    expect(err).toMatch(/^unifluid: seed 7, [\d.]+ s\n$/);
    expect(readdirSync(folder)).toEqual(["circle.png"]);
    await using model = await UniFluid.load("shapes-64");
    const image = await model.generate("a red circle", { seed: 7, steps: 2 });
    expect(await pixelsOf("circle.png")).toEqual(image.pixels);
  });

  test("draws by every option of drawing, each of which matters", async () => {
    const flags = ["-g", "3", "--guidance-schedule", "linear", "--order", "raster"];
    const more = ["--x0-limit", "0.5", "-t", "0.7", "--steps", "2", "-s", "7"];
    const args = ["generate", "a red circle", ...flags, ...more, "-o", "circle.png"];
    expect((await run(args)).code).toBe(0);
    const drawn = await pixelsOf("circle.png");
    const options = {
      guidance: 3,
      guidanceSchedule: "linear",
      order: "raster",
      x0Limit: 0.5,
      temperature: 0.7,
      steps: 2,
      seed: 7,
    } as const;
    await using model = await UniFluid.load("shapes-64");
    expect(drawn).toEqual((await model.generate("a red circle", options)).pixels);
    for (const name of Object.keys(options)) {
      const without = { ...options, seed: 7, steps: 2, [name]: { seed: 8, steps: 3 }[name] };
      const other = await model.generate("a red circle", without);
      expect([name, Buffer.compare(drawn, other.pixels) === 0]).toEqual([name, false]);
    }
  });

  test("computes in the type that is asked for", async () => {
    const args = ["generate", "a red circle", "-s", "7", "-o", "circle.png", ...quick];
    expect((await run([...args, "--dtype", "bfloat16"])).code).toBe(0);
    const draw = async (dtype: "bfloat16" | "float32") => {
      await using model = await UniFluid.load("shapes-64", { dtype });
      const { pixels } = await model.generate("a red circle", { seed: 7, steps: 2 });
      return { pixels, device: model.info.device };
    };
    const drawn = await pixelsOf("circle.png");
    const { pixels, device } = await draw("bfloat16");
    expect(drawn).toEqual(pixels);
    // A processor that does not multiply it computes in float32.
    if (device.includes("bfloat16")) expect(drawn).not.toEqual((await draw("float32")).pixels);
  });

  test("several prompts and several images: numbers, seeds, a sheet, JSON", async () => {
    const args = [
      "a blue star",
      "a green heart",
      "--n",
      "2",
      "-s",
      "18446744073709551614",
      "-o",
      "o.webp",
    ];
    const { code, out, err } = await run([
      "generate",
      ...args,
      "--grid",
      "sheet.png",
      "--json",
      ...quick,
    ]);
    expect([code, err]).toEqual([0, ""]);
    const files = ["o-0001.webp", "o-0002.webp", "o-0003.webp", "o-0004.webp"];
    expect(readdirSync(folder).sort()).toEqual([...files, "sheet.png"]);
    const shared = { width: 64, height: 64 };
    // Seeds count on modulo 2^64.
    expect(documents(out)).toEqual([
      { prompt: "a blue star", seed: "18446744073709551614", ...shared, file: files[0] },
      { prompt: "a blue star", seed: "18446744073709551615", ...shared, file: files[1] },
      { prompt: "a green heart", seed: 0, ...shared, file: files[2] },
      { prompt: "a green heart", seed: 1, ...shared, file: files[3] },
      { grid: "sheet.png" },
    ]);
    const sheet = await decodeImage(join(folder, "sheet.png"));
    expect(sheet.width).toBeGreaterThan(2 * 256);
  });

  test("reads prompts from standard input, and writes an image to standard output", async () => {
    const several = await run(["generate", "-", "-o", "x.png", "-q", ...quick], {
      input: "a red star\n\na blue circle\r\n",
    });
    expect([several.code, several.err]).toEqual([0, ""]);
    expect(several.out).toBe("x-0001.png\nx-0002.png\n");
    const image = await run(["generate", "-", "-o", "-", "--format", "jpeg", "-q", ...quick], {
      input: "a red star",
    });
    expect([image.code, image.err]).toEqual([0, ""]);
    expect(image.stdout.subarray(0, 3)).toEqual(Buffer.of(0xff, 0xd8, 0xff));
    await expect(decodeImage(image.stdout)).resolves.toMatchObject({ width: 64, height: 64 });
  });

  test("beside an image on standard output nothing is written there", async () => {
    const args = ["generate", "a star", "-s", "3", "-o", "-", ...quick];
    const [alone, beside] = [await run(args), await run([...args, "--grid", "sheet.png"])];
    expect([alone.code, beside.code]).toEqual([0, 0]);
    expect(Buffer.compare(beside.stdout, alone.stdout)).toBe(0);
    expect(readdirSync(folder)).toEqual(["sheet.png"]);
  });
});

describe("of several inputs those that can be done are done, and told of", () => {
  const long = "word ".repeat(999).trim();

  test("prompts: files by their places, one line for each that failed, exit code 7", async () => {
    const args = ["generate", "a star", long, "a heart", "-o", "o.png", "-s", "4", "-n", "2"];
    const plain = await run([...args, "--grid", "g.png", "--steps", "1"]);
    const files = ["o-0001.png", "o-0002.png", "o-0005.png", "o-0006.png"];
    expect([plain.code, plain.out]).toEqual([7, `${[...files, "g.png"].join("\n")}\n`]);
    expect(plain.err).toMatch(
      /^unifluid: PROMPT_TOO_LONG: "word .+\nunifluid: 4 images from seed 4, 2 failed, [\d.]+ s\n$/,
    );
    expect(readdirSync(folder).sort()).toEqual(["g.png", ...files]);
    const json = await run([...args, "--json", "--steps", "1"]);
    expect(json.code).toBe(7);
    expect(documents(json.out).map(({ seed, file }) => [seed, file])).toEqual(
      files.map((file) => [3 + Number(file.slice(2, 6)), file]),
    );
    const error = { code: "PROMPT_TOO_LONG", message: expect.any(String) };
    expect(documents(json.err)).toEqual([{ error, prompt: long }]);
  });

  test("images: captions of the good ones", async () => {
    writeFileSync(join(folder, "text.png"), "text");
    const { code, out, err } = await run(["caption", "none.png", photo, "text.png", photo]);
    expect([code, out.split("\n").map((line) => line.split("\t")[0])]).toEqual([
      7,
      [photo, photo, ""],
    ]);
    expect(err).toMatch(
      /^unifluid: IMAGE_NOT_FOUND: .*none\.png\nunifluid: IMAGE_UNDECODABLE: .*text\.png.*\n$/,
    );
  });

  test("where none can be done, the first one's exit code", async () => {
    const { code, out, err } = await run(["caption", "a.png", "b.png"]);
    expect([code, out, err.split("\n").length]).toEqual([3, "", 3]);
  });

  test("interrupted, every file that is there was named, and no other", async () => {
    const prompts = Array.from({ length: 400 }, (_, i) => `a star ${i}`).join("\n");
    const { code, out } = await run(["generate", "-", "-o", "x.png", "--steps", "20"], {
      input: prompts,
      started: (child) => child.stdout!.once("data", () => child.kill("SIGINT")),
    });
    expect(code).toBe(130);
    const named = out.trimEnd().split("\n");
    expect(named.length).toBeLessThan(400);
    expect(named).toEqual(named.map((_, i) => `x-${String(i + 1).padStart(4, "0")}.png`));
    expect(readdirSync(folder).sort()).toEqual(named);
  });
});

test("an image of standard input is given up at the limit of a file", async () => {
  const command = `head -c 600000000 /dev/zero | "${process.execPath}" "${main}" caption -`;
  const child = spawn("sh", ["-c", command], { cwd: folder });
  let err = "";
  child.stderr.on("data", (chunk) => {
    err += chunk;
  });
  expect(await new Promise((resolve) => child.once("close", resolve))).toBe(3);
  expect(err).toMatch(/IMAGE_TOO_LARGE: standard input has more than 536870912 bytes/);
});

test("edit draws from an image of standard input", async () => {
  const args = [
    "edit",
    "-",
    "make the circle blue",
    "-s",
    "3",
    "-o",
    "blue.png",
    "--json",
    ...quick,
  ];
  const { code, out } = await run(args, { input: readFileSync(photo) });
  expect(code).toBe(0);
  expect(documents(out)).toEqual([
    {
      image: "-",
      instruction: "make the circle blue",
      seed: 3,
      width: 64,
      height: 64,
      file: "blue.png",
    },
  ]);
  await using model = await UniFluid.load("shapes-64");
  const image = await model.edit(photo, "make the circle blue", { seed: 3, steps: 2 });
  expect(await pixelsOf("blue.png")).toEqual(image.pixels);
});

test("caption and answer say what the library says", async () => {
  const other = join(fixtures, "shapes-64/expected/caption1.png");
  await using model = await UniFluid.load("shapes-64");
  const [first, second] = await model.caption([photo, other]);
  const question = "what color is the background?";
  const answer = await model.answer(photo, question);
  const results = await Promise.all([
    run(["caption", photo]),
    run(["caption", "-"], { input: readFileSync(photo) }),
    run(["caption", photo, other]),
    run(["caption", other, "--json"]),
    run(["answer", photo, question]),
    run(["answer", photo, "-", "--json"], { input: `${question}\n` }),
  ]);
  expect(results.map(({ code, err }) => [code, err])).toEqual(results.map(() => [0, ""]));
  const out = results.map((result) => result.out);
  expect(out.slice(0, 3)).toEqual([
    `${first}\n`,
    `${first}\n`,
    `${photo}\t${first}\n${other}\t${second}\n`,
  ]);
  expect(documents(out[3]!)).toEqual([{ image: other, caption: second }]);
  expect(out[4]).toBe(`${answer}\n`);
  expect(documents(out[5]!)).toEqual([{ image: photo, question, answer }]);
});

test("sampled texts tell their seed, and come again from it", async () => {
  const plain = await run(["caption", photo, photo, "-t", "2"]);
  const [, seed] = /^unifluid: 2 captions from seed (\d+)\n$/.exec(plain.err) ?? [];
  expect(seed).toBeDefined();
  const again = await run(["caption", photo, photo, "-t", "2", "--seed", seed!, "--json"]);
  const told = documents(again.out) as { caption: string }[];
  expect(
    told.map((one) => ({ ...one, caption: one.caption.replace(/\s*[\r\n]\s*/g, " ") })),
  ).toEqual(
    plain.out
      .trimEnd()
      .split("\n")
      .map((line, i) => ({
        image: photo,
        caption: line.split("\t")[1],
        seed: Number(seed) + i,
      })),
  );
  const answer = await run(["answer", photo, "how many?", "-t", "1", "-s", "5", "--json"]);
  expect(documents(answer.out)[0]).toMatchObject({ seed: 5 });
  const text = await run(["complete", "Once", "-m", gemma, "--max-new-tokens", "3", "-t", "1"]);
  expect(text.err).toMatch(/^unifluid: seed \d+\n$/);
  for (const [command, said] of [
    ["generate", "same seed, same image"],
    ["caption", "image i gets seed + i, modulo 2^64"],
    ["answer", "determines sampling"],
    ["init", "same fresh weights"],
    ["scenes", "same data set"],
  ] as const) {
    expect((await run([command, "--help"])).out.replace(/\s+/g, " ")).toContain(said);
  }
});

test("complete continues a text with a Gemma checkpoint", async () => {
  await using model = await UniFluid.load(gemma);
  const text = await model.complete("Once upon", { maxNewTokens: 6 });
  const args = ["-m", gemma, "--max-new-tokens", "6"];
  const plain = await run(["complete", "Once upon", ...args]);
  expect([plain.code, plain.out]).toEqual([0, `${text}\n`]);
  const json = await run(["complete", "-", ...args, "--json"], { input: "Once upon" });
  expect(documents(json.out)).toEqual([{ prompt: "Once upon", text }]);
});

describe("info", () => {
  test("tells what the shipped model is", async () => {
    const { code, out } = await run(["info"]);
    expect(code).toBe(0);
    for (const fact of [
      "shapes-64",
      "generate, edit, caption, answer",
      "7.94 million, BF16",
      "16 tokens of 64 values",
    ]) {
      expect(out).toContain(fact);
    }
    const [json] = documents((await run(["info", gemma, "--json"])).out);
    expect(json).toMatchObject({ kind: "gemma2", tasks: ["complete"], text: { gemma2: true } });
  });

  test("--check finds a weight that is no number", async () => {
    const good = await run(["info", "--check", "--json"]);
    expect([good.code, documents(good.out)[0]!.finite]).toEqual([0, true]);
    const broken = join(folder, "broken");
    cpSync(join(root, "models/shapes-64"), broken, { recursive: true });
    const file = join(broken, "model.safetensors");
    const bytes = readFileSync(file);
    bytes.writeUInt16LE(0x7fc0, bytes.length - 2);
    writeFileSync(file, bytes);
    expect((await run(["info", broken])).code).toBe(0);
    const bad = await run(["info", broken, "--check"]);
    expect([bad.code, bad.out]).toEqual([3, ""]);
    expect(bad.err).toMatch(/^unifluid: NON_FINITE_WEIGHT: .*NaN\n$/);
  });
});

test("doctor has one line for each fact, and says what UNIFLUID_ISA does", async () => {
  const plain = await run(["doctor"], { env: NO_GPU });
  expect(plain.code).toBe(0);
  for (const line of [
    /^package +unifluid \d/m,
    /^machine +.*Node v\d/m,
    /^binary +.*unifluid\.node \(/m,
    /^instruction set +\w+, the best this processor has, of \w+/m,
    /^device +cpu; ./m,
    /^threads +\d+ by default$/m,
    /^memory +.* free of .* in the machine$/m,
    /^images +sharp [\d.]+, libvips [\d.]+$/m,
    /^models +.*shapes-64/m,
  ]) {
    expect(plain.out).toMatch(line);
  }
  const forced = await run(["doctor", "--json"], { env: { UNIFLUID_ISA: "baseline" } });
  if (process.arch === "x64") {
    const known = expect.arrayContaining([{ name: "baseline", supported: true, bfloat16: false }]);
    expect(documents(forced.out)[0]!.instructionSet).toEqual({
      name: "baseline",
      forced: true,
      known,
    });
  }
  const [facts] = documents((await run(["doctor", "--json"], { env: NO_GPU })).out);
  expect(facts).toEqual({
    version: expect.any(String),
    node: process.versions.node,
    platform: process.platform,
    arch: process.arch,
    threads: expect.any(Number),
    memory: { total: expect.any(Number), available: expect.any(Number) },
    binary: {
      path: expect.stringContaining("unifluid.node"),
      origin: expect.stringMatching(/^(environment|package|compiled)$/),
    },
    instructionSet: { name: expect.any(String), forced: false, known: expect.any(Array) },
    device: { kind: "cpu", reason: expect.any(String), cudaLibrary: null, gpus: [] },
    sharp: expect.any(String),
    libvips: expect.any(String),
    models: expect.arrayContaining(["shapes-64"]),
  });
  // As of every command that loads a model.
  for (const args of [["doctor"], ["doctor", "--json"], ["generate", "a star"]]) {
    const unknown = await run(args, { env: { UNIFLUID_ISA: "abacus" } });
    expect([unknown.code, unknown.out]).toEqual([2, ""]);
    expect(unknown.err).toMatch(/INVALID_OPTION.* for UNIFLUID_ISA but received .*abacus/);
  }
});

test("tokenizer learns from texts, and says when they give fewer tokens than were asked for", async () => {
  writeFileSync(join(folder, "a.txt"), "a red star and a red circle\n".repeat(3));
  const few = ["tokenizer", "a.txt", "--vocab", "270", "--out", "few"];
  expect(await run(few)).toMatchObject({
    code: 0,
    out: "",
    err: expect.stringMatching(/^unifluid: 270 tokens in few, \d+ from merges\n$/),
  });
  expect(readdirSync(join(folder, "few")).sort()).toEqual([
    "tokenizer.json",
    "tokenizer_config.json",
  ]);
  expect(await run(few)).toMatchObject({ code: 2, err: expect.stringContaining("few does") });
  const all = await run(["tokenizer", "a.txt", "--vocab", "9999", "--out", "all", "--json"]);
  const [made] = documents(all.out);
  expect(made).toEqual({ folder: "all", tokens: expect.any(Number), merges: expect.any(Number) });
  expect(made!.tokens).toBeLessThan(320);
  const more = await run(["tokenizer", "a.txt", "--vocab", "9999", "--out", "more"]);
  expect(more.err).toContain("no more pairs that occur twice");
  for (const [code, args] of [
    [2, ["a.txt", "--vocab", "260", "--out", "x"]],
    [2, ["a.txt", "--out", "x"]],
    [2, ["--vocab", "300", "--out", "x"]],
    [3, ["none.txt", "--vocab", "300", "--out", "x"]],
    [6, ["a.txt", "--vocab", "300", "--out", "a.txt/x"]],
  ] as const)
    expect([args, (await run(["tokenizer", ...args])).code]).toEqual([args, code]);
});

test("scenes --json says what the data set is", async () => {
  const sizes = ["--count", "1", "--size", "32", "--seed", "3"];
  const { out } = await run(["scenes", "--out", "one", ...sizes, "--tasks", "caption", "--json"]);
  expect(documents(out)).toEqual([
    {
      folder: "one",
      count: 1,
      seed: 3,
      size: 32,
      split: "train",
      pairs: "exclude",
      minObjects: 1,
      tasks: ["caption"],
    },
  ]);
});

test.each([
  ["manifests", 16, []],
  ["one shard", 64, ["--shards", "1"]],
  ["shards", 8, ["--shards", "3"]],
])("scenes that do not fit on the disk end with 6 and leave nothing: %s", async (...row) => {
  const [, mostKib, form] = row;
  const args = ["scenes", "--out", "data", "--count", "200", "--seed", "1", ...form];
  const { code, out, err } = await run(args, { mostKib });
  expect([code, out]).toEqual([6, ""]);
  expect(err).toMatch(/^unifluid: OUTPUT: cannot write to data: EFBIG: .+\n$/);
  expect(readdirSync(folder)).toEqual([]);
});

describe("what goes wrong", () => {
  const missing = "/nonexistent";
  const sizes = join(root, "examples/train/model.yaml");
  test.each<[string, number, string, string[], Record<string, string>?]>([
    ["an unknown command", 2, "USAGE", ["paint"]],
    ["an unknown option", 2, "USAGE", ["generate", "x", "--colour", "red"]],
    ["no prompt", 2, "USAGE", ["generate"]],
    ["a number that is none", 2, "USAGE", ["generate", "x", "--steps", "many"]],
    ["a negative seed", 2, "USAGE", ["generate", "x", "--seed=-1"]],
    [
      "a seed beyond 64 bits",
      2,
      "INVALID_OPTION",
      ["generate", "x", "--seed", "18446744073709551616"],
    ],
    ["no images", 2, "USAGE", ["generate", "x", "--n", "0"]],
    ["steps out of range", 2, "INVALID_OPTION", ["generate", "x", "--steps", "0"]],
    ["an unknown extension", 2, "INVALID_OPTION", ["generate", "x", "--out", "x.bmp"]],
    ["an unknown extension of a sheet", 2, "INVALID_OPTION", ["generate", "x", "--grid", "x.txt"]],
    [
      "a sheet in the place of an image",
      2,
      "USAGE",
      ["generate", "x", "y", "-o", "g.png", "--grid", "./g-0002.png"],
    ],
    [
      "a sheet that is too large",
      3,
      "IMAGE_TOO_LARGE",
      ["generate", "x", "-n", "9999", "-o", "g.png", "--grid", "s.png"],
    ],
    ["several images to standard output", 2, "USAGE", ["generate", "x", "y", "--out", "-"]],
    ["standard input twice", 2, "USAGE", ["answer", "-", "-"]],
    ["blank standard input", 2, "USAGE", ["generate", "-"]],
    ["a model that is not there", 3, "CHECKPOINT_NOT_FOUND", ["generate", "x", "-m", missing]],
    ["an image that is not there", 3, "IMAGE_NOT_FOUND", ["caption", missing]],
    ["an image that is none", 3, "IMAGE_UNDECODABLE", ["caption", main]],
    ["an empty image", 3, "IMAGE_EMPTY", ["caption", "-"]],
    ["a task that the weights cannot do", 3, "UNSUPPORTED_TASK", ["generate", "x", "-m", gemma]],
    ["a prompt that is too long", 3, "PROMPT_TOO_LONG", ["generate", "word ".repeat(999)]],
    ["too little memory", 4, "INSUFFICIENT_MEMORY", ["generate", "x", "--max-memory", "0.01"]],
    [
      "a device that is not there",
      5,
      "DEVICE_UNAVAILABLE",
      ["generate", "x", "--device", "cuda"],
      NO_GPU,
    ],
    ["no native part", 5, "NATIVE_NOT_FOUND", ["generate", "x"], { UNIFLUID_NATIVE: missing }],
    ["no native part for doctor", 5, "NATIVE_NOT_FOUND", ["doctor"], { UNIFLUID_NATIVE: missing }],
    ["help of an unknown command", 2, "USAGE", ["help", "paint"]],
    ["help of an unknown command of a group", 2, "USAGE", ["queue", "help", "paint"]],
    ["a blank prompt", 2, "USAGE", ["generate", "a star", " "]],
    ["a blank instruction", 2, "USAGE", ["edit", photo, ""]],
    ["a blank question", 2, "USAGE", ["answer", photo, ""]],
    ["a memory below nothing", 2, "USAGE", ["generate", "x", "--max-memory", "-5"]],
    // Before the model is looked for, which is not there.
    ["a file without a folder", 6, "OUTPUT", ["generate", "x", "-o", "no/x.png", "-m", missing]],
    [
      "a sheet without a folder",
      6,
      "OUTPUT",
      ["generate", "x", "--grid", "n/x.png", "-m", missing],
    ],
    ["figures without a folder", 6, "OUTPUT", ["eval", missing, "--out", "no/x.json"]],
    [
      "a checkpoint that cannot be made",
      6,
      "OUTPUT",
      ["init", sizes, "--vae", "shapes-64", "-o", `${sizes}/x`],
    ],
  ])("%s ends with %i and one line", async (...row) => {
    // Not as parameters: jest takes one more than a row has for the callback that ends the test.
    const [, code, name, args, env] = row;
    const plain = await run(args, { env });
    expect([plain.code, plain.err.split("\n").length]).toEqual([code, 2]);
    expect(plain.err).toMatch(new RegExp(`^unifluid: ${name}: .+\n$`));
    const json = await run([...args, "--json"], { env });
    expect(json.code).toBe(code);
    expect(documents(json.err)).toEqual([{ error: { code: name, message: expect.any(String) } }]);
    expect(readdirSync(folder)).toEqual([]);
  });

  test("JSON and an image cannot share standard output", async () => {
    const { code, out, err } = await run(["generate", "x", "--out", "-", "--json"]);
    expect([code, out]).toEqual([2, ""]);
    expect(documents(err)[0]).toMatchObject({ error: { code: "USAGE" } });
  });

  test("Ctrl-C ends with 130 and leaves no file", async () => {
    // Many minutes of work.
    const args = ["generate", "a red circle", "--n", "64", "--steps", "1000", "-o", "x.png"];
    // As on a terminal, where a bar tells that tokens are drawn.
    const env = { NODE_OPTIONS: "--import=data:text/javascript,process.stderr.isTTY=true" };
    const screen = new Screen();
    const started = (child: ChildProcess) =>
      child.stderr!.on("data", (chunk) => {
        screen.write(String(chunk));
        // Once: a second one would not wait for what it has to say.
        if (!child.killed && / [1-9]\d*\/1024 tokens/.test(screen.lines[0]!)) child.kill("SIGINT");
      });
    const { code, out } = await run(args, { started, env });
    expect([code, out]).toEqual([130, ""]);
    expect(screen.lines).toEqual(["unifluid: INTERRUPTED: interrupted", ""]);
    expect(readdirSync(folder)).toEqual([]);
  });

  const interrupted = { code: 130, out: "", err: "unifluid: INTERRUPTED: interrupted\n" };

  test("Ctrl-C also ends the making of a checkpoint", async () => {
    // Minutes of work.
    const large = { vocab_size: 300_000, hidden_size: 1024, intermediate_size: 8192 };
    const text_config = { ...TINY_MODEL.text_config, ...large, num_hidden_layers: 40 };
    writeFileSync(join(folder, "sizes.yaml"), stringify({ ...TINY_MODEL, text_config }));
    const begun = join(folder, "made.partial", "model.safetensors.partial");
    const started = async (child: ChildProcess) => {
      while (!existsSync(begun) && child.exitCode === null) await sleep(20);
      child.kill("SIGINT");
    };
    const args = ["init", "sizes.yaml", "--vae", "shapes-64", "-o", "made"];
    expect(await run(args, { started })).toMatchObject(interrupted);
    expect(readdirSync(folder)).toEqual(["sizes.yaml"]);
  });

  onLinux("Ctrl-C also ends the learning of a tokenizer", async () => {
    // Half a minute of work: words of letters alone, which nothing splits.
    const letters = (hex: string) => hex.replace(/\d/g, (digit) => "ghijklmnop"[Number(digit)]!);
    const hash = (i: number) => createHash("md5").update(String(i)).digest("hex");
    const words = Array.from({ length: 60_000 }, (_, i) => letters(hash(i)));
    writeFileSync(join(folder, "words.txt"), words.map((word) => `${word} ${word}`).join(" "));
    const started = async (child: ChildProcess) => {
      // Nothing tells of it but the processor's time, most of which it takes soon.
      while (child.exitCode === null && secondsOf(child) < 2) await sleep(20);
      child.kill("SIGINT");
    };
    const args = ["tokenizer", "words.txt", "--vocab", "900000", "-o", "made"];
    expect(await run(args, { started })).toMatchObject(interrupted);
    expect(readdirSync(folder)).toEqual(["words.txt"]);
  });

  test("a reader that goes away is no failure", async () => {
    const images = Array<string>(40).fill(photo);
    const { code, err } = await run(["caption", ...images], {
      started: (child) => child.stdout!.once("data", () => child.stdout!.destroy()),
    });
    expect([code, err]).toEqual([0, ""]);
  });
});

onLinux("standard output that takes nothing is told of", async () => {
  for (const [args, told] of [
    [["caption", photo], "unifluid: OUTPUT: cannot write to standard output: ENOSPC"],
    [["info", "--json"], '{"error":{"code":"OUTPUT","message":"cannot write to standard output'],
  ] as const) {
    const command = [process.execPath, main, ...args].map((part) => `'${part}'`).join(" ");
    const child = spawn("sh", ["-c", `${command} > /dev/full`], { cwd: folder });
    let err = "";
    child.stderr.on("data", (chunk) => {
      err += chunk;
    });
    expect(await new Promise((resolve) => child.once("close", resolve))).toBe(6);
    expect(err.slice(0, told.length)).toBe(told);
  }
});

test("usage errors name the command's own help, in one line", async () => {
  const said = async (...args: string[]) => (await run(args)).err;
  expect(await said("generat", "x")).toBe(
    "unifluid: USAGE: unknown command 'generat' (Did you mean generate?) (see unifluid --help)\n",
  );
  expect(await said("help", "nosuch")).toBe(
    "unifluid: USAGE: unknown command 'nosuch' (see unifluid --help)\n",
  );
  expect(await said("generate", "x", "--sed", "3")).toBe(
    "unifluid: USAGE: unknown option '--sed' (Did you mean --seed?) (see unifluid generate --help)\n",
  );
  expect(await said("queue", "stat")).toContain("(see unifluid queue --help)");
  expect(await said("generate", "x", "--max-memory", "-5")).toContain("a number of MiB above 0");
});

test("a group of commands without one of them shows its help", async () => {
  const { code, out, err } = await run(["queue"]);
  expect([code, out]).toEqual([2, ""]);
  expect(err).toMatch(/^Usage: unifluid queue .*status.*retry/s);
  expect((await run(["help", "queue"])).out).toBe(err);
});

test("help names every command and exit code", async () => {
  const { code, out } = await run(["--help"]);
  expect(code).toBe(0);
  for (const word of [
    "generate",
    "edit",
    "caption",
    "answer",
    "complete",
    "tokenizer",
    "info",
    "doctor",
    "build",
    "Exit codes",
  ]) {
    expect(out).toContain(word);
  }
  expect((await run([])).out).toBe(out);
  const { version } = JSON.parse(readFileSync(join(root, "package.json"), "utf8")) as {
    version: string;
  };
  expect((await run(["--version"])).out).toBe(`${version}\n`);
});
