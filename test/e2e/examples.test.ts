/** Every program of `examples/`, as its page says to run it. */

import { execFile, spawn } from "node:child_process";
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
import { promisify } from "node:util";
import { UniFluid } from "../../lib/index";
import { hasRedis, RedisServer } from "../support/redis";

const execute = promisify(execFile);
const root = join(__dirname, "../..");
const photo = join(root, "test/fixtures/shapes-64/expected/caption0.png");

let project: string;
beforeEach(() => {
  project = mkdtempSync(join(tmpdir(), "unifluid-examples-"));
  mkdirSync(join(project, "node_modules"));
  symlinkSync(root, join(project, "node_modules/unifluid"));
  for (const name of ["fastify", "express", "bullmq", "ioredis"]) {
    symlinkSync(join(root, "node_modules", name), join(project, "node_modules", name));
  }
  for (const name of programs) cpSync(join(root, "examples", name), join(project, name));
  cpSync(photo, join(project, "photo.png"));
});
afterEach(() => rmSync(project, { recursive: true, force: true }));

const programs = readdirSync(join(root, "examples")).filter((name) => name.endsWith(".mjs"));
const tested = new Set<string>();
const run = async (name: string, args: string[] = [], env: Record<string, string> = {}) => {
  tested.add(name);
  return execute(process.execPath, [name, ...args], {
    cwd: project,
    env: { ...process.env, ...env },
  });
};

test("generate.mjs", async () => {
  const { stdout } = await run("generate.mjs", ["a star", "a heart"]);
  expect(stdout).toBe("image-1.png: a star (seed 7)\nimage-2.png: a heart (seed 8)\n");
  expect(existsSync(join(project, "image-2.png"))).toBe(true);
});

test("stream.mjs", async () => {
  const { stderr } = await run("stream.mjs", ["a star", "out.png"]);
  expect(stderr).toContain("16 of 16");
  expect(existsSync(join(project, "out.png"))).toBe(true);
});

test("describe-folder.mjs", async () => {
  mkdirSync(join(project, "photos"));
  cpSync(photo, join(project, "photos/one.png"));
  cpSync(join(project, "generate.mjs"), join(project, "photos/broken.png"));
  const { stdout, stderr } = await run("describe-folder.mjs", ["photos"]);
  const model = await UniFluid.load("shapes-64");
  try {
    expect(stdout).toBe(`photos/one.png\t${await model.caption(photo)}\n`);
  } finally {
    await model.dispose();
  }
  expect(stderr).toMatch(/^photos\/broken.png\tIMAGE_UNDECODABLE/);
});

test("worker-thread.mjs", async () => {
  const { stdout } = await run("worker-thread.mjs", ["a star", "star.png"]);
  expect(stdout).toBe("star.png: a star\n");
  expect(readFileSync(join(project, "star.png")).subarray(1, 4).toString()).toBe("PNG");
});

/** Starts a server, and ends it after `use` has spoken to it. */
async function serving(name: string, use: (url: string) => Promise<void>): Promise<void> {
  tested.add(name);
  const child = spawn(process.execPath, [name], { cwd: project });
  const ended = new Promise<string>((resolve) => {
    child.once("exit", (code, signal) => resolve(`ended with ${code ?? signal}`));
  });
  try {
    const started = new Promise<string>((resolve) => {
      child.stdout.once("data", (line) => resolve(String(line).trim()));
    });
    const url = await Promise.race([started, ended]);
    await use(url.replace(/\[::1?\]|0\.0\.0\.0/, "127.0.0.1"));
    child.kill("SIGTERM");
    expect(await ended).toBe("ended with 0");
  } finally {
    child.kill("SIGKILL");
  }
}

test("fastify-stream.mjs", () =>
  serving("fastify-stream.mjs", async (url) => {
    const response = await fetch(`${url}/draw?prompt=a+star`);
    const events = (await response.text()).trim().split("\n\n");
    const steps = events.map((event) => JSON.parse(event.replace(/^data: /, "")));
    expect(steps.map(({ done }) => done)).toEqual([2, 4, 6, 8, 10, 12, 14, 16]);
    expect(Buffer.from(steps[7].webp, "base64").subarray(8, 12).toString()).toBe("WEBP");
  }));

test("express-upload.mjs", () =>
  serving("express-upload.mjs", async (url) => {
    const send = async (body: Buffer, query = "") => {
      const headers = { "content-type": "image/png", connection: "close" };
      const sent = new Uint8Array(body);
      const response = await fetch(`${url}/describe${query}`, {
        method: "POST",
        headers,
        body: sent,
      });
      return { status: response.status, body: (await response.json()) as Record<string, string> };
    };
    const model = await UniFluid.load("shapes-64");
    try {
      const bytes = readFileSync(photo);
      expect((await send(bytes)).body).toEqual({ text: await model.caption(photo) });
      const question = "how many objects are there?";
      expect((await send(bytes, `?question=${encodeURIComponent(question)}`)).body).toEqual({
        text: await model.answer(photo, question),
      });
    } finally {
      await model.dispose();
    }
    const drawing = '<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"/>';
    for (const other of ["x", drawing]) {
      expect(await send(Buffer.from(other))).toMatchObject({
        status: 422,
        body: { code: "IMAGE_UNDECODABLE" },
      });
    }
  }));

describe("a fault is told as whose it is by", () => {
  // In the place of the package: a model that fails with the code that it is given.
  const FAILING = `
    const fail = (code) => { throw Object.assign(new Error("no"), { code }); };
    let left = 0;
    const model = {
      // Behind what makes it an image.
      caption: async (bytes, { signal }) => {
        const code = String(bytes).slice(12);
        if (code !== "WAIT") fail(code);
        await new Promise((resolve) => signal.addEventListener("abort", resolve));
        left++;
        signal.throwIfAborted();
      },
      answer: async () => String(left),
      async *generateStream(prompt) {
        if (prompt !== "full") yield fail(prompt);
        const image = { toBuffer: async () => Buffer.of(1) };
        const full = async () => fail("QUEUE_FULL");
        yield { done: 1, total: 8, preview: full };
        yield { done: 8, total: 8, preview: async () => image };
      },
      async dispose() {},
    };
    export const UniFluid = { load: async () => model };`;
  beforeEach(() => {
    const folder = join(project, "node_modules/unifluid");
    rmSync(folder);
    mkdirSync(folder);
    writeFileSync(join(folder, "package.json"), '{ "exports": "./index.mjs" }');
    writeFileSync(join(folder, "index.mjs"), FAILING);
  });
  const faults: [string, number][] = [
    ["PROMPT_TOO_LONG", 422],
    ["INVALID_OPTION", 422],
    ["QUEUE_FULL", 429],
    ["INSUFFICIENT_MEMORY", 503],
    ["DISPOSED", 503],
    ["DEVICE_ERROR", 500],
    ["INTERNAL", 500],
    ["ENOENT", 500],
  ];

  test("fastify-stream.mjs", () =>
    serving("fastify-stream.mjs", async (url) => {
      for (const [code, status] of faults) {
        const response = await fetch(`${url}/draw?prompt=${code}`);
        expect([code, response.status]).toEqual([code, status]);
        const told = status === 500 ? "INTERNAL" : code;
        expect(await response.json()).toMatchObject({ code: told });
      }
      // A picture on the way that finds no place in the queue is left out.
      const full = await fetch(`${url}/draw?prompt=full`);
      expect((await full.text()).match(/"done":\d/g)).toEqual(['"done":8']);
    }));

  test("express-upload.mjs", () =>
    serving("express-upload.mjs", async (url) => {
      const headers = { "content-type": "image/png", connection: "close" };
      const send = (code: string, query = "", signal?: AbortSignal) => {
        const body = `RIFF....WEBP${code}`;
        return fetch(`${url}/describe${query}`, { method: "POST", headers, body, signal });
      };
      for (const [code, status] of [...faults, ["IMAGE_UNDECODABLE", 422] as const]) {
        const response = await send(code);
        expect([code, response.status]).toEqual([code, status]);
        if (status !== 500) expect(await response.json()).toMatchObject({ code });
      }
      // Who goes away is waited for no longer.
      await expect(send("WAIT", "", AbortSignal.timeout(300))).rejects.toThrow();
      const left = async () =>
        ((await (await send("", "?question=left")).json()) as { text: string }).text;
      for (let i = 0; i < 100 && (await left()) === "0"; i++) {
        await new Promise((resolve) => setTimeout(resolve, 50));
      }
      expect(await left()).toBe("1");
    }));
});

(hasRedis() ? test : test.skip)("queue-worker.mjs", async () => {
  const redis = await RedisServer.start();
  try {
    const { stdout } = await run("queue-worker.mjs", [], { REDIS_URL: redis.url });
    expect(stdout).toBe("picture-1.png\npicture-2.png\n");
    expect(existsSync(join(project, "picture-2.png"))).toBe(true);
  } finally {
    await redis.stop();
  }
});

test("none is left out, here or on their page", () => {
  const page = readFileSync(join(root, "examples/README.md"), "utf8");
  for (const name of programs) expect(page).toContain(`\`${name}`);
  if (hasRedis()) expect([...tested].sort()).toEqual(programs.sort());
});
