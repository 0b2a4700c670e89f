/** Files of jobs: what a record means, how it is read, and what a folder remembers. */

import { randomUUID } from "node:crypto";
import { mkdtempSync, readdirSync, readFileSync, rmSync, utimesSync, writeFileSync } from "node:fs";
import files from "node:fs/promises";
import { hostname, tmpdir } from "node:os";
import { join } from "node:path";
import readline from "node:readline";
import { PassThrough, Readable } from "node:stream";
import { readCheckpoint } from "../../lib/checkpoint/checkpoint";
import { JobChecker } from "../../lib/jobs/check";
import { halfWritten, pictureName, RESULT_NAME, resultName } from "../../lib/jobs/names";
import { formatOf, type JobFormat, readRecords } from "../../lib/jobs/reader";
import { fingerprint, imagePath, jobOf } from "../../lib/jobs/record";
import { DoneIndex, ResultsFolder } from "../../lib/jobs/results";
import { enqueueRecords, type QueuedRecord, type RecordQueue } from "../../lib/queue/queue";

const MODELS = join(__dirname, "../../models");
const defaults = { options: { steps: 4, maxNewTokens: 9 }, seed: 100n };
const job = (value: unknown, index = 3) => jobOf(value, index, defaults);

async function read(text: string | Buffer, format: JobFormat): Promise<unknown[]> {
  const out: unknown[] = [];
  const chunks = [...Buffer.from(text as Buffer)].map((byte) => Buffer.of(byte));
  for await (const record of readRecords(Readable.from(chunks), format)) {
    out.push("error" in record ? record.error.code : record.value);
    expect(record.index).toBe(out.length - 1);
  }
  return out;
}

describe("a record's task", () => {
  test.each<[object, string, string]>([
    [{ prompt: "a star" }, "generate", "a star"],
    [{ image: "x.png" }, "caption", ""],
    [{ image: "x.png", question: "how many?" }, "answer", "how many?"],
    [{ image: "x.png", instruction: "make it blue" }, "edit", "make it blue"],
    [{ task: "caption", image: "x.png" }, "caption", ""],
  ])("%j: %s", (record, task, text) => {
    expect(job(record)).toMatchObject({ index: 3, task, text });
  });

  test("numbers may be texts, null is absent, and x0Limit may be infinite", () => {
    const numbers = { steps: "7", guidance: " 1e1", temperature: null, x0Limit: "Infinity" };
    expect(job({ prompt: "a", ...numbers }).options).toEqual({
      seed: 103n,
      steps: 7,
      guidance: 10,
      x0Limit: Infinity,
    });
    expect(job({ prompt: "a", steps: null }).options.steps).toBe(defaults.options.steps);
  });

  test("null is none in every field", () => {
    const fields = ["id", "task", "image", "question", "instruction", "seed", "guidanceSchedule"];
    const nulls = [...fields, "order", "temperature", "maxNewTokens"].map((name) => [name, null]);
    const record = { ...Object.fromEntries(nulls), prompt: "a" };
    expect(job(record)).toEqual(job({ prompt: "a" }));
    expect(job({ image: "x.png", prompt: null })).toEqual(job({ image: "x.png" }));
  });

  test.each<[unknown, RegExp]>([
    [{}, /record 3: generate needs "prompt"/],
    [{ prompt: "a", image: "x.png" }, /caption takes no "prompt"/],
    [{ image: "x.png", question: "a", instruction: "b" }, /edit takes no "question"/],
    [{ task: "answer", image: "x.png" }, /answer needs "question"/],
    [{ task: "sing" }, /task: /],
    [{ prompt: "" }, /prompt: /],
    [{ prompt: 5 }, /prompt: /],
    [{ prompt: "a", foo: 1 }, /"foo"/],
    [{ prompt: "a", foo: null }, /"foo"/],
    [{ prompt: null }, /needs "prompt"/],
    [{ prompt: "a", steps: "many" }, /steps: /],
    [{ prompt: "a", seed: -1 }, /seed: /],
    [{ prompt: "a", id: "../../etc/passwd" }, /id: expected 1 to 100 letters/],
    [{ prompt: "a", id: ".hidden" }, /id: /],
    [{ prompt: "a", id: "" }, /id: /],
    [{ prompt: "a", steps: "" }, /steps: /],
    [{ prompt: "a", steps: [] }, /steps: /],
    [{ prompt: "a", steps: true }, /steps: /],
    [{ prompt: "a", steps: "1.5" }, /steps: /],
    [{ prompt: "a", guidance: " " }, /guidance: /],
    [{ prompt: "a", guidance: "Infinity" }, /guidance: /],
    [{ prompt: "a", temperature: [1] }, /temperature: /],
    [{ prompt: "a", x0Limit: "-Infinity" }, /x0Limit: /],
    [{ image: "x.png", maxNewTokens: false }, /maxNewTokens: /],
    ["a star", /record 3: /],
    [null, /record 3: /],
    [[], /record 3: /],
  ])("%j is refused", (record, message) => {
    expect(() => job(record)).toThrow(
      expect.objectContaining({ code: "INVALID_RECORD", message: expect.stringMatching(message) }),
    );
  });

  test("own options come before the command line's, and only those of the task are taken", () => {
    expect(job({ prompt: "a", steps: "7", guidance: 2 }).options).toEqual({
      steps: 7,
      guidance: 2,
      seed: 103n,
    });
    expect(job({ image: "x.png" }).options).toEqual({ maxNewTokens: 9, seed: 103n });
    expect(job({ prompt: "a", seed: "18446744073709551615" }).options.seed).toBe(2n ** 64n - 1n);
  });

  test("relative images start from the file's folder", () => {
    expect(imagePath("a/b.png", "/jobs")).toBe("/jobs/a/b.png");
    expect(imagePath("/abs/b.png", "/jobs")).toBe("/abs/b.png");
    expect(imagePath("shot-10:30.png", "/jobs")).toBe("/jobs/shot-10:30.png");
    for (const address of ["data:image/png;base64,AA", "FILE:/b.png", "s3://bucket/b.png"]) {
      expect(imagePath(address, "/jobs")).toBe(address);
    }
  });

  test("names are unique by the index and readable by the id", () => {
    expect(pictureName(job({ prompt: "a" }, 12), "png")).toBe("0000012.png");
    expect(pictureName(job({ prompt: "a", id: "cat.1" }, 12), "jpg")).toBe("0000012-cat.1.jpg");
  });

  test("names of half-written files are told from others, and those of a record from others'", () => {
    const half = (index: number, id: string | undefined, extension: string) =>
      `${pictureName({ index, id }, extension)}.0123abcd.tmp`;
    for (const name of [
      half(12, undefined, "png"),
      half(12, "cat.1", "jpg"),
      half(12, undefined, "json"),
    ]) {
      expect(halfWritten().exec(name)?.[1]).toBe("0000012");
      expect(halfWritten(12).test(name)).toBe(true);
      expect(halfWritten(1).test(name)).toBe(false);
    }
    for (const name of [
      half(123, undefined, "png"),
      "0000012.png",
      resultName(12),
      "0000012.txt.0123abcd.tmp",
    ])
      expect(halfWritten(12).test(name)).toBe(false);
    expect([resultName(12), resultName(12_345_678)].every((name) => RESULT_NAME.test(name))).toBe(
      true,
    );
  });

  test("a fingerprint tells jobs apart, and not the order of their fields", () => {
    const mark = fingerprint(job({ prompt: "a", steps: 3, guidance: 2 }));
    expect(fingerprint(job({ guidance: 2, prompt: "a", steps: 3 }))).toBe(mark);
    expect(fingerprint(job({ prompt: "a", steps: 4, guidance: 2 }))).not.toBe(mark);
    expect(fingerprint(job({ prompt: "b", steps: 3, guidance: 2 }))).not.toBe(mark);
    expect(mark).toBeGreaterThan(0);
    expect(fingerprint(job({ prompt: "a" }), ["shapes-64", "png"])).not.toBe(
      fingerprint(job({ prompt: "a" }), ["shapes-64", "webp"]),
    );
  });
});

test("a check takes as many steps as the model does", async () => {
  const checker = new JobChecker(await readCheckpoint(join(MODELS, "shapes-64")));
  const check = async (steps: number) => {
    const record = { index: 0, line: 1, value: { prompt: "a star", steps } };
    return (await checker.check(record, { defaults, images: "." }))?.code;
  };
  expect([await check(1), await check(10_000)]).toEqual([undefined, undefined]);
  expect([await check(0), await check(10_001)]).toEqual(["INVALID_OPTION", "INVALID_OPTION"]);
});

describe("files", () => {
  test.each([
    ["a.jsonl", "jsonl"],
    ["a.NDJSON", "jsonl"],
    ["a.csv", "csv"],
    ["a.txt", "lines"],
    ["a", "lines"],
  ])("%s holds %s", (name, format) => {
    expect(formatOf(name)).toBe(format);
  });

  test(".json is refused, with what is meant instead", () => {
    expect(() => formatOf("jobs.JSON")).toThrow(
      expect.objectContaining({
        code: "INVALID_OPTION",
        message: expect.stringMatching(/\.jsonl.*jobs\.JSON.*--input-format/),
      }),
    );
  });

  /** Lines of the records, and what their errors say. */
  async function places(text: string | Buffer, format: JobFormat): Promise<unknown[]> {
    const found: unknown[] = [];
    for await (const record of readRecords(Readable.from([Buffer.from(text as Buffer)]), format)) {
      found.push("error" in record ? [record.line, record.error.message] : record.line);
    }
    return found;
  }

  test("records are told by their lines too, which count blank ones and headers", async () => {
    expect(await places('\n{"prompt":"a"}\n\n{broken\n', "jsonl")).toEqual([
      2,
      [4, expect.stringMatching(/^record 1 \(line 4\): expected JSON/)],
    ]);
    expect(await places("\n\na star\n", "lines")).toEqual([3]);
    const csv = 'prompt,seed\n"two\nlines",7\n\na star, red,5\n';
    expect(await places(csv, "csv")).toEqual([
      3,
      [5, expect.stringMatching(/^record 1 \(line 5\): expected as many cells/)],
    ]);
    expect(() => jobOf({ steps: 3 }, 4, defaults, 9)).toThrow(/^record 4 \(line 9\): generate/);
  });

  test("a line that is no UTF-8 is no record, and the others are", async () => {
    const latin1 = Buffer.from("a star\n\xe4 star\nä heart\n", "latin1");
    expect(await read(latin1, "lines")).toEqual([
      { prompt: "a star" },
      "INVALID_RECORD",
      "INVALID_RECORD",
    ]);
    await expect(read(Buffer.from("prompt\n\xe4 star\n", "latin1"), "csv")).rejects.toMatchObject({
      code: "INVALID_RECORD",
      message: expect.stringMatching(/^line 2 or later: expected UTF-8/),
    });
  });

  test.each<JobFormat>(["lines", "jsonl", "csv"])(
    "a binary file is refused as %s",
    async (format) => {
      const bytes = Buffer.from("prompt\na\nb\u0000c\n");
      await expect(read(bytes, format)).rejects.toMatchObject({
        code: "INVALID_RECORD",
        message: expect.stringMatching(/^line 3: .*NUL byte/),
      });
    },
  );

  test("of JSON lines", async () => {
    const text = '{"prompt":"ä star"}\n\n  \n{"prompt":"b"}\r\n{broken\n["x"]\n{"prompt":"last"}';
    expect(await read(text, "jsonl")).toEqual([
      { prompt: "ä star" },
      { prompt: "b" },
      "INVALID_RECORD",
      ["x"],
      { prompt: "last" },
    ]);
  });

  test("of prompts", async () => {
    expect(await read("a star\n\ntwo – hearts\r\n", "lines")).toEqual([
      { prompt: "a star" },
      { prompt: "two – hearts" },
    ]);
  });

  test("of CSV", async () => {
    const text =
      '\uFEFFid,prompt,seed\n1,"a star, red",5\n2,a "quoted" word,\n\n3,"two\nlines",7\n';
    expect(await read(text.replace('a "quoted" word', '"a ""quoted"" word"'), "csv")).toEqual([
      { id: "1", prompt: "a star, red", seed: "5" },
      { id: "2", prompt: 'a "quoted" word' },
      { id: "3", prompt: "two\nlines", seed: "7" },
    ]);
    // A comma without quotes must not cut the prompt.
    expect(await read("prompt,seed\na star, red,5\na heart,6\n", "csv")).toEqual([
      "INVALID_RECORD",
      { prompt: "a heart", seed: "6" },
    ]);
    await expect(read('prompt\n"never closed\n', "csv")).rejects.toMatchObject({
      code: "INVALID_RECORD",
    });
    await expect(read('prompt\na heart\na 5" star\n', "csv")).rejects.toMatchObject({
      code: "INVALID_RECORD",
      message: expect.stringMatching(/^not CSV: .*quote.* line 3/),
    });
  });

  test("nothing holds nothing", async () => {
    for (const format of ["jsonl", "csv", "lines"] as const) {
      expect(await read("", format)).toEqual([]);
    }
  });

  test("a million lines take no more memory than a few", async () => {
    const block = Buffer.from(
      '{"prompt":"a red circle left of a blue square","seed":5}\n'.repeat(1000),
    );
    function* blocks() {
      for (let i = 0; i < 1000; i++) yield block;
    }
    const done = new DoneIndex();
    let count = 0;
    let most = 0;
    const before = process.memoryUsage().rss;
    for await (const record of readRecords(Readable.from(blocks()), "jsonl")) {
      done.set(record.index, 7, false);
      if (++count % 10_000 === 0) most = Math.max(most, process.memoryUsage().rss);
    }
    expect(count).toBe(1_000_000);
    expect(done.get(999_999).fingerprint).toBe(7);
    // The text is 56 MB, and as objects several times that.
    expect(most - before).toBeLessThan(150 * 2 ** 20);
  });
});

test("a job that goes through a queue is the same one there", async () => {
  const sent: { data: QueuedRecord }[] = [];
  const queue = { addBulk: async (jobs: typeof sent) => void sent.push(...jobs) };
  const record = { prompt: "a", x0Limit: "Infinity", seed: "18446744073709551615" };
  async function* records() {
    yield { index: 0, line: 1, value: record };
  }
  await enqueueRecords(queue as unknown as RecordQueue, records(), {
    run: "r",
    defaults,
    attempts: 1,
    signal: new AbortController().signal,
    onQueued: () => {},
    onRefused: () => {},
  });
  const { data } = JSON.parse(JSON.stringify(sent[0])) as { data: QueuedRecord };
  const there = jobOf(data.record, 0, { options: {}, seed: 0n });
  expect(there).toEqual(job(record, 0));
  expect(fingerprint(there)).toBe(data.fingerprint);
});

test("a signal ends the reading of a stream on which nothing comes", async () => {
  for (const format of ["jsonl", "csv", "lines"] as const) {
    const controller = new AbortController();
    const stream = new PassThrough();
    const records = readRecords(stream, format, controller.signal);
    const next = records.next();
    const reason = new Error("enough");
    controller.abort(reason);
    await expect(next).rejects.toBe(reason);
    expect(stream.destroyed).toBe(true);
  }
});

describe("a folder of results", () => {
  let path: string;
  beforeEach(() => {
    path = mkdtempSync(join(tmpdir(), "unifluid-results-"));
  });
  afterEach(() => rmSync(path, { recursive: true, force: true }));
  const whole = { index: 0, count: 1 };

  test("remembers what was done and what failed", async () => {
    const folder = await ResultsFolder.open(path, whole);
    await folder.write({ index: 4, fingerprint: 11, seed: 5n });
    await folder.write({ index: 2, fingerprint: 12, error: { code: "X", message: "y" } });
    await folder.close();
    const again = await ResultsFolder.open(path, whole);
    expect(again.done.get(4)).toEqual({ fingerprint: 11, failed: false });
    expect(again.done.get(2)).toEqual({ fingerprint: 12, failed: true });
    expect(again.done.get(3).fingerprint).toBe(0);
    expect(again.done.get(1e6).fingerprint).toBe(0);
    await again.close();
    expect(readdirSync(path)).toEqual(["results.jsonl"]);
  });

  test("a text's line and paragraph separators do not end a line", async () => {
    const folder = await ResultsFolder.open(path, whole);
    await folder.write({ index: 0, fingerprint: 11, text: "two\u2028lines" });
    await folder.write({ index: 1, fingerprint: 12, text: "two\u2029paragraphs" });
    await folder.close();
    // Since Node 24 they do for readline.
    const reading = jest.spyOn(readline, "createInterface").mockImplementation(() => {
      throw new Error("not by readline");
    });
    const again = await ResultsFolder.open(path, whole);
    expect([0, 1].map((index) => again.done.get(index).fingerprint)).toEqual([11, 12]);
    await again.close();
    reading.mockRestore();
  });

  test.each(["", '{"index":9,"finger', '{"index":9', "x".repeat(200_000)])(
    "a last line cut short is cut off (%#)",
    async (rest) => {
      const line = '{"index":1,"fingerprint":5}\n';
      writeFileSync(join(path, "results.jsonl"), line + rest);
      const folder = await ResultsFolder.open(path, whole);
      await folder.write({ index: 2, fingerprint: 6 });
      await folder.close();
      expect(readFileSync(join(path, "results.jsonl"), "utf8")).toBe(
        `${line}{"index":2,"fingerprint":6}\n`,
      );
    },
  );

  test("a last line that lacks only its end is cut off, and its record is done again", async () => {
    const [first, second] = [0, 1].map(
      (index) => `{"index":${index},"fingerprint":${index + 5}}\n`,
    );
    writeFileSync(join(path, "results.jsonl"), `${first}${second!.trimEnd()}`);
    const folder = await ResultsFolder.open(path, whole);
    expect([0, 1].map((index) => folder.done.get(index).fingerprint)).toEqual([5, 0]);
    await folder.close();
    expect(readFileSync(join(path, "results.jsonl"), "utf8")).toBe(first);
  });

  test("long texts are remembered, and what is no result is passed over", async () => {
    const folder = await ResultsFolder.open(path, whole);
    await folder.write({ index: 0, fingerprint: 11, text: "long ".repeat(500_000) });
    await folder.write({ index: 2 ** 28, fingerprint: 12 });
    await folder.write({ index: -1, fingerprint: 12 });
    await folder.write({ index: 1, fingerprint: 13 });
    await folder.close();
    const again = await ResultsFolder.open(path, whole);
    expect([0, 1].map((index) => again.done.get(index).fingerprint)).toEqual([11, 13]);
    expect([-1, 2 ** 28].map((index) => again.done.get(index).fingerprint)).toEqual([0, 0]);
    await again.close();
  });

  test("half-written pictures are removed, and only those of the shard", async () => {
    for (const name of [
      "0000002.png.0123abcd.tmp",
      "0000003-cat.jpg.0123abcd.tmp",
      "0000004.png",
      "mine.tmp",
    ]) {
      writeFileSync(join(path, name), "x");
    }
    await (await ResultsFolder.open(path, { index: 0, count: 2 })).close();
    expect(readdirSync(path).sort()).toEqual([
      "0000003-cat.jpg.0123abcd.tmp",
      "0000004.png",
      "mine.tmp",
      "results-1-of-2.jsonl",
    ]);
  });

  test("belongs to one process, and its shards to several", async () => {
    const folder = await ResultsFolder.open(path, whole);
    await expect(ResultsFolder.open(path, whole)).rejects.toMatchObject({ code: "OUTPUT_LOCKED" });
    // A shard has records of the whole.
    const half = { index: 1, count: 2 };
    await expect(ResultsFolder.open(path, half)).rejects.toMatchObject({ code: "OUTPUT_LOCKED" });
    await folder.close();
    const other = await ResultsFolder.open(path, half);
    const first = await ResultsFolder.open(path, { index: 0, count: 2 });
    const third = ResultsFolder.open(path, { index: 0, count: 3 });
    await expect(third).rejects.toMatchObject({ code: "OUTPUT_LOCKED" });
    await other.write({ index: 1, fingerprint: 3 });
    await other.close();
    await first.close();
    // What a shard did counts for a run over all.
    const again = await ResultsFolder.open(path, whole);
    expect(again.done.get(1).fingerprint).toBe(3);
    await again.close();
  });

  test("the lock of a process that is gone is taken over, one of another machine is not", async () => {
    const lock = join(path, ".results.jsonl.lock");
    const open = async () => (await ResultsFolder.open(path, whole)).close();
    writeFileSync(lock, "cut sho");
    await open();
    // A process of the same number, as containers have them: not this one.
    writeFileSync(lock, JSON.stringify({ pid: process.pid, host: hostname(), shard: whole }));
    await open();
    writeFileSync(lock, JSON.stringify({ pid: 2 ** 30, host: hostname(), shard: whole }));
    await open();
    writeFileSync(lock, JSON.stringify({ pid: process.ppid, host: hostname(), shard: whole }));
    await expect(open()).rejects.toMatchObject({ code: "OUTPUT_LOCKED" });
    writeFileSync(lock, JSON.stringify({ pid: 1, host: "another.example", shard: whole }));
    await expect(ResultsFolder.open(path, whole)).rejects.toMatchObject({
      message: expect.stringContaining("process 1 on another.example"),
    });
  });

  test("what killed processes left beside a lock is removed, what others are writing is not", async () => {
    const beside = (of: unknown) => {
      const name = `.results.jsonl.lock.${randomUUID()}`;
      writeFileSync(join(path, name), typeof of === "string" ? of : JSON.stringify(of));
      return name;
    };
    beside({ pid: 2 ** 30, host: hostname() });
    const old = beside("");
    utimesSync(join(path, old), new Date(0), new Date(0));
    const kept = [
      beside({ pid: process.ppid, host: hostname() }),
      beside({ pid: 2 ** 30, host: "another.example" }),
      beside(""),
    ];
    const folder = await ResultsFolder.open(path, whole);
    await folder.close();
    expect(readdirSync(path).sort()).toEqual([...kept, "results.jsonl"].sort());
  });

  test("a lock that was taken over a moment ago is left to its new owner", async () => {
    const lock = join(path, ".results.jsonl.lock");
    const of = (pid: number) => JSON.stringify({ pid, host: hostname(), shard: whole });
    writeFileSync(lock, of(2 ** 30));
    const { readFile } = files;
    const reading = jest.spyOn(files, "readFile").mockImplementationOnce(async (...args) => {
      const stale = await readFile(...args);
      // Another process does the same, and is quicker.
      writeFileSync(lock, of(process.ppid));
      return stale;
    });
    try {
      await expect(ResultsFolder.open(path, whole)).rejects.toMatchObject({
        code: "OUTPUT_LOCKED",
        message: expect.stringContaining(`process ${process.ppid} `),
      });
      expect(readFileSync(lock, "utf8")).toBe(of(process.ppid));
      expect(readdirSync(path)).toEqual([".results.jsonl.lock"]);
    } finally {
      reading.mockRestore();
    }
  });

  test("what fails as it is opened or closed leaves neither a lock nor an open file", async () => {
    const broken = new Error("EIO");
    const listing = jest.spyOn(files, "readdir").mockRejectedValueOnce(broken);
    await expect(ResultsFolder.open(path, whole)).rejects.toBe(broken);
    listing.mockRestore();
    expect(readdirSync(path)).toEqual([]);

    const { open } = files;
    const handles: files.FileHandle[] = [];
    const opening = jest.spyOn(files, "open").mockImplementation(async (...args) => {
      const handle = await open(...args);
      handles.push(handle);
      jest.spyOn(handle, "stat").mockRejectedValueOnce(broken);
      return handle;
    });
    await expect(ResultsFolder.open(path, whole)).rejects.toBe(broken);
    opening.mockRestore();
    expect(handles.map(({ fd }) => fd)).toEqual([-1]);
    expect(readdirSync(path)).toEqual(["results.jsonl"]);

    const folder = await ResultsFolder.open(path, whole);
    const handle: files.FileHandle = Reflect.get(folder, "file");
    const { close } = handle;
    jest.spyOn(handle, "close").mockImplementationOnce(async () => {
      await close.call(handle);
      throw broken;
    });
    await expect(folder.close()).rejects.toBe(broken);
    expect(readdirSync(path)).toEqual(["results.jsonl"]);
  });

  test("a success stands, whatever another file says", async () => {
    const line = (index: number, error?: object) =>
      `${JSON.stringify({ index, fingerprint: 7, error })}\n`;
    const failure = { code: "INSUFFICIENT_MEMORY", message: "" };
    writeFileSync(join(path, "results-1-of-2.jsonl"), line(0) + line(2, failure));
    writeFileSync(join(path, "results.jsonl"), line(0, failure) + line(2) + line(4, failure));
    const folder = await ResultsFolder.open(path, whole);
    expect([0, 2, 4].map((index) => folder.done.get(index).failed)).toEqual([false, false, true]);
    await folder.close();
  });
});
