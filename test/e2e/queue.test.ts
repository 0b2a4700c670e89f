/** Workers on a queue, as people run them: against a real Redis, through kills and restarts. */

import { type ChildProcess, spawn } from "node:child_process";
import { getEventListeners } from "node:events";
import {
  cpSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  symlinkSync,
  writeFileSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { Queue, Worker } from "bullmq";
import sharp from "sharp";
import { InvalidImageError, UniFluid } from "../../lib/index";
import { parseRedisUrl } from "../../lib/queue/connection";
import { openQueue, queueStatus, retryDead } from "../../lib/queue/queue";
import { type WorkerOptions, work } from "../../lib/queue/worker";
import { hasRedis, RedisServer } from "../support/redis";

const root = join(__dirname, "../..");
const main = join(root, "dist/cli/main.js");
const photo = join(root, "test/fixtures/shapes-64/expected/caption0.png");

let folder: string;
let redis: RedisServer;
const onLinux = process.platform === "linux" ? test : test.skip;
const withRedis = hasRedis() ? describe : describe.skip;

interface Ending {
  code: number | null;
  out: string;
  err: string;
}

function run(
  args: string[],
  started: (child: ChildProcess) => unknown = () => {},
): Promise<Ending> {
  const child = spawn(process.execPath, [main, ...args], {
    cwd: folder,
    env: { ...process.env, UNIFLUID_QUEUE: redis?.url ?? "redis://127.0.0.1:1" },
  });
  started(child);
  let [out, err] = ["", ""];
  child.stdout.on("data", (chunk) => {
    out += chunk;
  });
  child.stderr.on("data", (chunk) => {
    err += chunk;
  });
  return new Promise((resolve, reject) => {
    child.once("error", reject);
    child.once("close", (code) => resolve({ code, out, err }));
  });
}

const lines = (text: string) =>
  text
    .trimEnd()
    .split("\n")
    .map((line) => JSON.parse(line) as Record<string, unknown>);
const status = async () => JSON.parse((await run(["queue", "status", "--json"])).out);
const sleep = (ms: number) => new Promise((resolve) => setTimeout(resolve, ms));
const worker = ["worker", "--out", "out", "--until-empty"];

beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), "unifluid-queue-"));
});
afterEach(() => rmSync(folder, { recursive: true, force: true }));

withRedis("a queue", () => {
  beforeEach(async () => {
    redis = await RedisServer.start();
  });
  afterEach(() => redis.stop());

  test("does every job once, though a worker is killed and the server restarted", async () => {
    const count = 60;
    writeFileSync(
      join(folder, "stars.txt"),
      Array.from({ length: count }, (_, i) => `a star ${i}\n`).join(""),
    );
    const enqueued = await run([
      "enqueue",
      "stars.txt",
      "--run",
      "stars",
      "--steps",
      "40",
      "--json",
    ]);
    expect(JSON.parse(enqueued.out)).toEqual({ run: "stars", queued: count, failed: 0 });
    const options = [...worker, "--lock-seconds", "2", "--concurrency", "2", "--threads", "1"];
    let victim: ChildProcess | undefined;
    const first = run(options, (child) => {
      victim = child;
    });
    const others = [run(options), run(options)];
    const results = () => {
      try {
        return readdirSync(join(folder, "out/stars")).filter((name) => name.endsWith(".json"));
      } catch {
        return [];
      }
    };
    while (results().length < 6) await sleep(20);
    victim!.kill("SIGKILL");
    expect((await first).code).toBeNull();
    expect(results().length).toBeLessThan(count);
    while (results().length < 15) await sleep(20);
    await redis.restart(700);
    expect(results().length).toBeLessThan(count);
    const endings = await Promise.all(others);
    expect(endings.map(({ code }) => code)).toEqual([0, 0]);

    const collected = await run(["queue", "results", "out/stars"]);
    const found = lines(collected.out);
    expect(found.map(({ index }) => index)).toEqual(Array.from({ length: count }, (_, i) => i));
    expect(found.filter(({ error }) => error !== undefined)).toEqual([]);
    // Nothing half-written, nothing twice.
    expect(readdirSync(join(folder, "out/stars"))).toHaveLength(2 * count);
    for (const { file } of found) {
      await sharp(join(folder, "out/stars", String(file)))
        .raw()
        .toBuffer();
    }
    expect(await status()).toMatchObject({ waiting: 0, active: 0, delayed: 0, dead: 0 });
    const model = await UniFluid.load("shapes-64");
    try {
      const drawn = await model.generate("a star 31", { seed: 31, steps: 40 });
      const read = sharp(join(folder, "out/stars/0000031.png")).removeAlpha().raw();
      expect(Buffer.compare(await read.toBuffer(), Buffer.from(drawn.pixels))).toBe(0);
    } finally {
      await model.dispose();
    }
  });

  test("jobs that cannot be done are told of, listed, and tried again when asked", async () => {
    const records = [
      { prompt: "a star", steps: 1 },
      { id: "late", image: "late.png", maxNewTokens: 2 },
      { prompt: "a", wrong: 1 },
    ];
    writeFileSync(join(folder, "jobs.jsonl"), records.map((r) => JSON.stringify(r)).join("\n"));
    const enqueued = await run(["enqueue", "jobs.jsonl", "--run", "first"]);
    expect(enqueued).toMatchObject({
      code: 7,
      err: expect.stringMatching(/record 2 \(line 3\): .*"wrong"/),
    });
    const worked = await run(worker);
    expect(worked.code).toBe(0);
    expect(worked.err).toMatch(/first-1-[0-9a-f]{8} failed: IMAGE_NOT_FOUND/);
    expect(await status()).toEqual({ waiting: 0, active: 0, delayed: 0, completed: 1, dead: 1 });
    const dead = lines((await run(["queue", "dead", "--json"])).out);
    expect(dead).toEqual([
      {
        id: expect.stringMatching(/^first-1-/),
        run: "first",
        index: 1,
        attempts: 1,
        reason: expect.any(String),
      },
    ]);
    expect(lines((await run(["queue", "results", "out/first"])).out)[1]).toEqual({
      index: 1,
      fingerprint: expect.any(Number),
      enqueued: expect.any(Number),
      id: "late",
      task: "caption",
      seed: 1,
      error: { code: "IMAGE_NOT_FOUND", message: expect.stringContaining("late.png") },
    });

    cpSync(photo, join(folder, "late.png"));
    expect(JSON.parse((await run(["queue", "retry", "--json"])).out)).toEqual({ retried: 1 });
    expect((await run(worker)).code).toBe(0);
    const model = await UniFluid.load("shapes-64");
    try {
      expect(lines((await run(["queue", "results", "out/first"])).out)[1]).toMatchObject({
        index: 1,
        task: "caption",
        text: await model.caption(photo, { maxNewTokens: 2 }),
      });
    } finally {
      await model.dispose();
    }
    expect(await status()).toMatchObject({ completed: 2, dead: 0 });
  });

  test.each([
    [["--json"], '{"error":{"code":"INVALID_RECORD","message":"record 1 (line 2): generate needs'],
    [["--quiet"], "unifluid: INVALID_RECORD: record 1 (line 2): generate needs"],
  ])("with %j too it is told which records are none", async (args, told) => {
    writeFileSync(join(folder, "jobs.jsonl"), '{"prompt":"a"}\n{"id":"b"}\n');
    const { code, err } = await run(["enqueue", "jobs.jsonl", ...args]);
    expect([code, err.slice(0, told.length), err.split("\n").length]).toEqual([7, told, 2]);
    if (args[0] === "--json") expect(JSON.parse(err)).toMatchObject({ record: 1, line: 2 });
  });

  test("results have seeds as batch has them", async () => {
    const seeds = [7, "18446744073709551615", null];
    const records = seeds.map((seed) => JSON.stringify({ prompt: "a", steps: 1, seed }));
    writeFileSync(join(folder, "jobs.jsonl"), records.join("\n"));
    await run(["enqueue", "jobs.jsonl", "--run", "jobs", "--seed", "40"]);
    expect((await run(worker)).code).toBe(0);
    const found = lines((await run(["queue", "results", "out/jobs"])).out);
    expect(found.map(({ seed }) => seed)).toEqual([7, "18446744073709551615", 42]);
  });

  describe("a worker that cannot write its results ends, and others have its jobs", () => {
    const enqueue = async () => {
      writeFileSync(join(folder, "jobs.txt"), "a star\n".repeat(20));
      await run(["enqueue", "jobs.txt", "--run", "jobs", "--steps", "1", "--attempts", "1"]);
    };

    onLinux("before it takes any", async () => {
      await enqueue();
      const { code, err } = await run(["worker", "--out", "/proc/none", "--until-empty"]);
      expect([code, err]).toEqual([
        6,
        expect.stringMatching(/^unifluid: OUTPUT: cannot write to \/proc\/none: .+\n$/),
      ]);
      expect(await status()).toMatchObject({ waiting: 20, dead: 0 });
    });

    onLinux.each([
      ["a folder that takes nothing", "/proc/self"],
      ["nothing", "gone"],
      ["a file", "jobs.txt"],
    ])("while it works, as its folder has become %s", async (_name, place) => {
      const out = join(folder, "out");
      mkdirSync(join(folder, "real"));
      symlinkSync(join(folder, "real"), out);
      const { code, err } = await run(["worker", "--out", "out"], (child) => {
        const late = setTimeout(() => child.kill(), 30_000);
        child.once("exit", () => clearTimeout(late));
        child.stderr!.once("data", () => {
          // What no folder can be made in, whoever the user is.
          rmSync(out);
          symlinkSync(place, out);
          void enqueue();
        });
      });
      expect([code, err]).toEqual([6, expect.stringMatching(/OUTPUT: cannot write to out: /)]);
      expect(await status()).toMatchObject({ waiting: 20, active: 0, delayed: 0, dead: 0 });
    });
  });

  test("a database of the server's, and no other", async () => {
    writeFileSync(join(folder, "jobs.txt"), "a star\n");
    const { code, err } = await run(["enqueue", "jobs.txt", "--queue", `${redis.url}/99`]);
    expect([code, err]).toEqual([
      5,
      expect.stringMatching(/QUEUE_UNREACHABLE: the Redis server refuses .*\/99: .*index/),
    ]);
    expect((await run(["enqueue", "jobs.txt", "--queue", `${redis.url}/3`])).code).toBe(0);
    expect((await status()).waiting).toBe(0);
    const third = await run(["queue", "status", "--json", "--queue", `${redis.url}/3`]);
    expect(JSON.parse(third.out).waiting).toBe(1);
  });

  /** A worker in this process, whose model is what the test makes of one. */
  const workWith = (model: object, options: Partial<WorkerOptions>) =>
    work(model as UniFluid, {
      redis: parseRedisUrl(redis.url),
      name: "unifluid",
      out: join(folder, "out"),
      images: folder,
      format: "png",
      concurrency: 1,
      lockSeconds: 30,
      drainSeconds: 1,
      untilEmpty: true,
      signal: new AbortController().signal,
      onJob: () => {},
      onTrouble: () => {},
      ...options,
    });
  const enqueueOne = async (record: object) => {
    writeFileSync(join(folder, "jobs.jsonl"), JSON.stringify(record));
    expect((await run(["enqueue", "jobs.jsonl", "--run", "mine"])).code).toBe(0);
  };

  describe("jobs from a pipe", () => {
    const piped = (started: (child: ChildProcess) => unknown) =>
      run(["enqueue", "-", "--run", "mine"], (child) => {
        const late = setTimeout(() => child.kill("SIGKILL"), 40_000);
        child.once("exit", () => clearTimeout(late));
        child.stdin!.on("error", () => {});
        return started(child);
      });
    const record = (i: number) => `{"prompt":"a star ${i}"}\n`;
    /** Until the server has so many jobs, or the command has ended. */
    const waiting = async (count: number, child: ChildProcess) => {
      const queue = openQueue({ redis: parseRedisUrl(redis.url), name: "unifluid" });
      let ended = false;
      child.once("exit", () => {
        ended = true;
      });
      while ((await queueStatus(queue)).waiting < count && !ended) await sleep(20);
      await queue.close();
    };

    test("are put in soon, however few have come", async () => {
      const ending = await piped(async (child) => {
        for (const i of [1, 2]) {
          child.stdin!.write(record(i));
          await waiting(i, child);
        }
        child.stdin!.end();
      });
      expect(ending.code).toBe(0);
      expect(ending.err).toMatch(/run mine: 2 jobs queued/);
    });

    test("are put in though SIGTERM ends the reading", async () => {
      const ending = await piped(async (child) => {
        child.stdin!.write(record(1));
        await waiting(1, child);
        // What is no record is told as it is read, and record 2 was read before.
        const told = new Promise<void>((resolve) => {
          child.stderr!.on("data", (text) => /INVALID_RECORD/.test(String(text)) && resolve());
        });
        child.stdin!.write(`${record(2)}nothing\n`);
        await told;
        child.kill("SIGTERM");
      });
      expect([ending.code, ending.err]).toEqual([
        143,
        expect.stringMatching(/run mine: 2 jobs are queued; .*\nunifluid: INTERRUPTED: terminated/),
      ]);
      expect((await status()).waiting).toBe(2);
    });

    test("stay there where the server then refuses others", async () => {
      const ending = await piped(async (child) => {
        child.stdin!.write(record(1));
        await waiting(1, child);
        await redis.call("CONFIG", "SET", "maxmemory", "1");
        // It is refused though nothing comes behind it.
        child.stdin!.write(record(2));
      });
      expect([ending.code, ending.err]).toEqual([
        5,
        expect.stringMatching(
          /run mine: 1 jobs are queued; .*\nunifluid: QUEUE_UNREACHABLE: the Redis server refuses redis:\S+: .*OOM/,
        ),
      ]);
      await redis.call("CONFIG", "SET", "maxmemory", "0");
      expect((await status()).waiting).toBe(1);
    });

    test("do not keep the command after SIGTERM while the server is away", async () => {
      const ending = await piped(async (child) => {
        child.stdin!.write(record(1));
        await waiting(1, child);
        await redis.stop();
        child.stdin!.write(record(2));
        await sleep(1500);
        child.kill("SIGTERM");
      });
      expect([ending.code, ending.err]).toEqual([
        143,
        expect.stringMatching(
          /run mine: 1 jobs are queued; .*\nunifluid: INTERRUPTED: terminated\n$/,
        ),
      ]);
    });
  });

  test("what a user may not do the server refuses", async () => {
    writeFileSync(join(folder, "jobs.txt"), "a star\n");
    await redis.call(
      "ACL",
      "SETUSER",
      "reader",
      "on",
      ">secret",
      "~*",
      "+@read",
      "+@connection",
      "+info",
    );
    const url = redis.url.replace("//", "//reader:secret@");
    const { code, err } = await run(["enqueue", "jobs.txt", "--queue", url]);
    expect([code, err]).toEqual([
      5,
      expect.stringMatching(/QUEUE_UNREACHABLE: the Redis server refuses redis:\S+: .*NOPERM/),
    ]);
    expect(err).not.toContain("secret");
  });

  test.each([
    ["picture", { prompt: "a star" }],
    ["text", { image: "a.png" }],
  ])("a %s that is ready after the result of a newer record leaves that alone", async (...row) => {
    await enqueueOne(row[1]);
    const newer = JSON.stringify({ index: 0, fingerprint: 1, enqueued: Date.now() + 60_000 });
    const file = join(folder, "out/mine/0000000.json");
    const save = jest.fn();
    const meanwhile = <T>(made: T) => {
      writeFileSync(file, newer);
      return Promise.resolve(made);
    };
    const model = {
      generate: () => meanwhile({ width: 1, height: 1, save }),
      caption: () => meanwhile("a star"),
    };
    const onJob = jest.fn();
    expect(await workWith(model, { onJob })).toBe(true);
    expect(onJob.mock.calls).toEqual([["done", expect.stringMatching(/^mine-0-/)]]);
    expect(readFileSync(file, "utf8")).toBe(newer);
    expect(save).not.toHaveBeenCalled();
  });

  describe("a worker that cannot see its images gives up no jobs", () => {
    test("before it takes any", async () => {
      await enqueueOne({ image: "a.png" });
      const { code, err } = await run([...worker, "--images", "none"]);
      expect([code, err]).toEqual([
        2,
        "unifluid: USAGE: expected a folder for --images but none is none\n",
      ]);
      expect(existsSync(join(folder, "out"))).toBe(false);
      expect(await status()).toMatchObject({ waiting: 1, dead: 0 });
    });

    const cannotRead = (code: string) => ({
      caption: () => {
        const cause = Object.assign(new Error(code), { code, errno: -1, syscall: "open" });
        throw new InvalidImageError("IMAGE_NOT_FOUND", `cannot read a.png: ${code}`, { cause });
      },
    });

    test("while it works, as their folder has gone", async () => {
      await enqueueOne({ image: "a.png" });
      const images = join(folder, "gone");
      await expect(workWith(cannotRead("ENOENT"), { images })).rejects.toMatchObject({
        code: "IMAGE_NOT_FOUND",
        message: `the folder of images, ${images}, is there no more: cannot read a.png: ENOENT`,
      });
      expect(await status()).toMatchObject({ waiting: 1, active: 0, delayed: 0, dead: 0 });
    });

    test("while it works, as the machine fails", async () => {
      await enqueueOne({ image: "a.png" });
      const end = new AbortController();
      const onJob = jest.fn(() => end.abort());
      expect(await workWith(cannotRead("EMFILE"), { signal: end.signal, onJob })).toBe(true);
      expect(onJob.mock.calls).toEqual([["retried", expect.anything(), expect.anything()]]);
      expect(await status()).toMatchObject({ waiting: 0, active: 0, delayed: 1, dead: 0 });
    });
  });

  test("waiting for the end of a queue keeps no listener", async () => {
    const queue = new Queue("unifluid", { connection: { host: "127.0.0.1", port: redis.port } });
    await queue.add("generate", {}, { delay: 60_000 });
    await queue.close();
    const counts = jest.spyOn(Queue.prototype, "getJobCounts");
    const end = new AbortController();
    const ended = workWith({}, { signal: end.signal });
    // It has looked, and waited, again and again.
    while (counts.mock.calls.length < 5) await sleep(20);
    counts.mockRestore();
    const listeners = getEventListeners(end.signal, "abort").length;
    end.abort();
    expect([await ended, listeners < 3]).toEqual([true, true]);
  });

  test("a file that is put in twice is one run, and another of its name is another", async () => {
    const enqueue = async (text: string, ...args: string[]) => {
      writeFileSync(join(folder, "jobs.txt"), text);
      const { out } = await run(["enqueue", "jobs.txt", "--steps", "1", "--json", ...args]);
      return (JSON.parse(out) as { run: string }).run;
    };
    const first = await enqueue("a star\na heart\n");
    expect(first).toMatch(/^jobs-[0-9a-f]{8}$/);
    expect(await enqueue("a star\na heart\n")).toBe(first);
    expect((await status()).waiting).toBe(2);
    const other = await enqueue("a circle\n");
    expect(other).not.toBe(first);
    // Under a name of one's own, a changed record is done anew.
    await enqueue("a star\n", "--run", "mine");
    await run(worker);
    const before = lines((await run(["queue", "results", "out/mine"])).out)[0]!;
    await enqueue("a heart\n", "--run", "mine");
    await run(worker);
    const after = lines((await run(["queue", "results", "out/mine"])).out)[0]!;
    expect(after.fingerprint).not.toBe(before.fingerprint);
    expect(readdirSync(join(folder, "out")).sort()).toEqual([first, other, "mine"].sort());
  });

  test("a job tried again leaves the result of a newer record of its number alone", async () => {
    const enqueue = async (record: object) => {
      writeFileSync(join(folder, "jobs.jsonl"), JSON.stringify(record));
      await run(["enqueue", "jobs.jsonl", "--run", "mine"]);
      await run(worker);
    };
    await enqueue({ image: "late.png", maxNewTokens: 2 });
    await enqueue({ prompt: "a star", steps: 1 });
    const results = async () => (await run(["queue", "results", "out/mine"])).out;
    const newer = await results();
    expect(lines(newer)).toEqual([
      expect.objectContaining({ task: "generate", file: "0000000.png" }),
    ]);
    // What was given up could be done now.
    cpSync(photo, join(folder, "late.png"));
    expect(JSON.parse((await run(["queue", "retry", "--json"])).out)).toEqual({ retried: 1 });
    await run(worker);
    expect(await status()).toMatchObject({ completed: 2, dead: 0 });
    expect(await results()).toBe(newer);
  });

  test("jobs are tried again as often as at first", async () => {
    const connection = { host: "127.0.0.1", port: redis.port };
    const queue = openQueue({ redis: parseRedisUrl(redis.url), name: "unifluid" });
    const failing = new Worker("unifluid", () => Promise.reject(new Error("no")), { connection });
    try {
      const record = { run: "a", index: 0, fingerprint: 1, record: {} };
      const options = { attempts: 3, backoff: 1 };
      const jobs = [1, 2].map((id) => ({
        name: "a",
        data: record,
        opts: { ...options, jobId: `j${id}` },
      }));
      await queue.addBulk(jobs);
      while ((await queue.getFailedCount()) < 2) await sleep(20);
      await failing.close();
      const client = await queue.getBackend().client;
      await client.hset(queue.toKey("j1"), { stc: 6 });
      expect(await retryDead(queue)).toBe(2);
      expect(await queueStatus(queue)).toMatchObject({ waiting: 2, dead: 0 });
      const job = await queue.getJob("j1");
      expect([job!.attemptsMade, job!.stalledCounter]).toEqual([0, 0]);
      expect(await retryDead(queue)).toBe(0);
    } finally {
      await failing.close();
      await queue.close();
    }
  });

  test("SIGTERM lets what runs finish, and leaves the rest to others", async () => {
    writeFileSync(join(folder, "jobs.txt"), "a star\n".repeat(30));
    await run(["enqueue", "jobs.txt", "--run", "jobs", "--steps", "60"]);
    const ending = await run(["worker", "--out", "out", "--concurrency", "2"], async (child) => {
      while (!existsSync(join(folder, "out/jobs")) && child.exitCode === null) await sleep(20);
      child.kill("SIGTERM");
    });
    expect(ending.code).toBe(0);
    const { waiting, active, completed, dead } = await status();
    expect({ active, dead }).toEqual({ active: 0, dead: 0 });
    expect(waiting).toBeGreaterThan(0);
    expect(waiting + completed).toBe(30);
    expect(readdirSync(join(folder, "out/jobs"))).toHaveLength(2 * completed);
  });

  test("what cannot finish in time waits again, with all its attempts", async () => {
    writeFileSync(join(folder, "jobs.txt"), "a star\na heart\n");
    await run(["enqueue", "jobs.txt", "--run", "jobs", "--attempts", "1", "--steps", "1000"]);
    const queue = new Queue("unifluid", { connection: { host: "127.0.0.1", port: redis.port } });
    const args = ["worker", "--out", "out", "--drain-timeout", "1", "--threads", "1"];
    const ending = await run(args, async (child) => {
      while ((await queue.getActiveCount()) < 2 && child.exitCode === null) await sleep(20);
      child.kill("SIGTERM");
    });
    await queue.close();
    expect(ending.code).toBe(0);
    expect(await status()).toMatchObject({ waiting: 2, active: 0, completed: 0, dead: 0 });
  });

  test("a worker ends though its server is away", async () => {
    const ending = await run(["worker", "--out", "out", "--drain-timeout", "1"], (child) => {
      child.stderr!.once("data", () => {
        void redis.stop().then(() => child.kill("SIGTERM"));
      });
    });
    expect(ending.code).toBe(0);
    expect(ending.err).toMatch(/0 done/);
  });

  test("what others put into the queue cannot lead out of the folder", async () => {
    const queue = new Queue("unifluid", { connection: { host: "127.0.0.1", port: redis.port } });
    const record = { prompt: "a", steps: 1 };
    await queue.add(
      "generate",
      { run: "../../evil", index: 0, fingerprint: 1, record },
      { jobId: "evil-0" },
    );
    await queue.add(
      "generate",
      { run: "good", index: -1, fingerprint: 1, record },
      { jobId: "evil-1" },
    );
    await queue.add("generate", {
      run: "good",
      index: 1,
      fingerprint: 1,
      record: { ...record, id: "../x" },
    });
    await queue.close();
    expect((await run(worker)).code).toBe(0);
    expect((await status()).dead).toBe(3);
    expect(readdirSync(join(folder, "out"))).toEqual(["good"]);
    expect(readdirSync(join(folder, "out/good"))).toEqual(["0000001.json"]);
    // What is no job has nothing to be told of.
    expect(lines((await run(["queue", "results", "out/good"])).out)).toEqual([
      {
        index: 1,
        fingerprint: 1,
        enqueued: expect.any(Number),
        error: { code: "INVALID_RECORD", message: expect.any(String) },
      },
    ]);
  });
});

test.each<[string, string, number, RegExp]>([
  [
    "no server",
    "redis://:secret@127.0.0.1:1",
    5,
    /QUEUE_UNREACHABLE: no Redis server answers at redis:\/\/127.0.0.1:1\/0/,
  ],
  ["another protocol", "http://:secret@127.0.0.1:1", 2, /expected redis:\/\/host:port/],
  ["no URL", "secret", 2, /expected redis:\/\/host:port/],
  ["a password that is not encoded", "redis://u:secret%zz@127.0.0.1:1", 2, /INVALID_OPTION: expec/],
  ["no database", "redis://:secret@127.0.0.1:1/secret", 2, /expected redis:\/\/host:port/],
])("%s is refused, and no password is told", async (_name, url, code, message) => {
  writeFileSync(join(folder, "jobs.txt"), "a star\n");
  for (const args of [
    ["enqueue", "jobs.txt"],
    ["worker", "--out", "out"],
    ["queue", "status"],
  ]) {
    const ending = await run([...args, "--queue", url]);
    expect(ending.code).toBe(code);
    expect(ending.err).toMatch(message);
    expect(ending.err).not.toContain("secret");
  }
});

test.each(["", "a:b"])("%j is no name of a queue", async (name) => {
  writeFileSync(join(folder, "jobs.txt"), "a star\n");
  for (const args of [
    ["enqueue", "jobs.txt"],
    ["worker", "--out", "out"],
    ["queue", "status"],
  ]) {
    const { code, err } = await run([...args, "--queue-name", name]);
    expect([code, err]).toEqual([2, expect.stringMatching(/INVALID_OPTION: .* for queue-name/)]);
  }
});
