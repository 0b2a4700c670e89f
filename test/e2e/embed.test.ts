/** The package inside a program: how a process ends, workers, and two models at once. */

import { execFile } from "node:child_process";
import { join } from "node:path";

const root = join(__dirname, "../..");

interface Ending {
  code: number | string;
  out: string;
  err: string;
}

/** Runs a program of CommonJS source in a process of its own. */
function run(program: string): Promise<Ending> {
  const source = `const { UniFluid } = require(${JSON.stringify(join(root, "dist/index.js"))});\n${program}`;
  return new Promise((resolve) => {
    execFile(process.execPath, ["-e", source], { timeout: 50_000 }, (error, out, err) => {
      resolve({ code: error ? (error.code ?? error.signal ?? "?") : 0, out, err });
    });
  });
}

const DRAWING = `
  const model = await UniFluid.load("shapes-64");
  const drawing = model.generate("a red circle", { steps: 1000 });
  drawing.catch(() => {});
  while (model.stats().running === 0) await new Promise((r) => setTimeout(r, 1));
`;

test.each<[string, string, number, string]>([
  [
    "process.exit in the middle of a drawing",
    `${DRAWING} console.log("at work"); process.exit(3);`,
    3,
    "at work",
  ],
  [
    "an uncaught error in the middle of a drawing",
    `${DRAWING} setTimeout(() => { throw new Error("boom"); }, 1);`,
    1,
    "",
  ],
  [
    "dispose in the middle of a drawing",
    `${DRAWING} await model.dispose(); console.log("free");`,
    0,
    "free",
  ],
  [
    "a model that is never disposed of, at rest",
    `const model = await UniFluid.load("shapes-64"); console.log((await model.generate("a star", { steps: 1 })).width);`,
    0,
    "64",
  ],
  [
    "a drawing that nobody waits for",
    `const model = await UniFluid.load("shapes-64"); model.generate("a star", { steps: 1 }).then((i) => console.log(i.width));`,
    0,
    "64",
  ],
])("%s ends the process as it should", async (_name, program, code, out) => {
  const ending = await run(`(async () => { ${program} })();`);
  expect(ending).toMatchObject({ code, out: out === "" ? "" : `${out}\n` });
  if (code === 1) expect(ending.err).toContain("boom");
  else expect(ending.err).toBe("");
});

test("a model is freed where its block ends (await using)", async () => {
  // Node 20 cannot parse the keyword; this is what compilers make of it.
  const { code, out, err } = await run(`(async () => {
    const model = await UniFluid.load("shapes-64");
    const { asyncDispose } = Symbol;
    await model[asyncDispose]();
    try { await model.generate("a"); } catch (error) { console.log(error.code); }
  })();`);
  expect({ code, out, err }).toEqual({ code: 0, out: "DISPOSED\n", err: "" });
});

test("two models of one process draw at once what each draws alone", async () => {
  const { code, out, err } = await run(`(async () => {
    const { createHash } = require("node:crypto");
    const hash = (image) => createHash("sha256").update(image.pixels).digest("hex");
    const [a, b] = await Promise.all([UniFluid.load("shapes-64"), UniFluid.load("shapes-64")]);
    const draw = (model) => model.generate("a star", { seed: 5, steps: 4 });
    const together = await Promise.all([draw(a), draw(b), draw(a)]);
    const alone = await draw(a);
    console.log(new Set([...together, alone].map(hash)).size);
    await a.dispose();
    console.log(hash(await draw(b)) === hash(alone));
    await b.dispose();
  })();`);
  expect({ code, out, err }).toEqual({ code: 0, out: "1\ntrue\n", err: "" });
});

const WORKER = `
  const { Worker } = require("node:worker_threads");
  const library = ${JSON.stringify(join(root, "dist/index.js"))};
  const work = (body) => new Worker(
    "const { UniFluid } = require(" + JSON.stringify(library) + ");" +
    "const { parentPort } = require('node:worker_threads');(async () => {" + body + "})();",
    { eval: true });
`;

test("worker threads have models of their own", async () => {
  const { code, out, err } = await run(`${WORKER}
    const draw = "const m = await UniFluid.load('shapes-64', { threads: 1 });" +
      "const i = await m.generate('a star', { seed: 5, steps: 4 }); parentPort.postMessage(i.pixels); await m.dispose();";
    const results = [1, 2].map(() => new Promise((resolve, reject) =>
      work(draw).once("message", resolve).once("error", reject)));
    (async () => {
      const model = await UniFluid.load("shapes-64");
      const here = (await model.generate("a star", { seed: 5, steps: 4 })).pixels;
      for (const pixels of await Promise.all(results)) console.log(Buffer.compare(Buffer.from(pixels), here));
      await model.dispose();
    })();`);
  expect({ code, out, err }).toEqual({ code: 0, out: "0\n0\n", err: "" });
});

test("a worker may be terminated in the middle of a drawing", async () => {
  const { code, out, err } = await run(`${WORKER}
    const body = "const m = await UniFluid.load('shapes-64'); m.generate('a star', { steps: 1000 }).catch(() => {});" +
      "while (m.stats().running === 0) await new Promise((r) => setTimeout(r, 1)); parentPort.postMessage('at work');";
    (async () => {
      for (let i = 0; i < 3; i++) {
        const worker = work(body);
        await new Promise((resolve, reject) => worker.once("message", resolve).once("error", reject));
        console.log(await worker.terminate());
      }
      const model = await UniFluid.load("shapes-64");
      console.log((await model.generate("a star", { steps: 1 })).width);
      await model.dispose();
    })();`);
  expect({ code, out, err }).toEqual({ code: 0, out: "1\n1\n1\n64\n", err: "" });
});

// Node completes what an ending worker has begun, when no call into it succeeds any more.
test.each<[string, string]>([
  ["while a model is loaded", `UniFluid.load('shapes-64'); parentPort.postMessage('at work');`],
  [
    "while a model is disposed of",
    `const m = await UniFluid.load('shapes-64'); m.generate('a star', { steps: 1000 }).catch(() => {});
     while (m.stats().running === 0) await new Promise((r) => setTimeout(r, 1));
     m.dispose(); parentPort.postMessage('at work');`,
  ],
  [
    "while large pictures are read",
    `const m = await UniFluid.load('shapes-64');
     const picture = { pixels: new Uint8Array(3 * 4000 * 4000), width: 4000, height: 4000 };
     for (let i = 0; i < 4; i++) m.caption(picture).catch(() => {});
     setImmediate(() => parentPort.postMessage('at work'));`,
  ],
  [
    "while three streams run",
    `const m = await UniFluid.load('shapes-64');
     const loop = async () => { for (;;) for await (const _ of m.generateStream('a star', { steps: 1 })); };
     for (let i = 0; i < 3; i++) loop();
     setTimeout(() => parentPort.postMessage('at work'), 50);`,
  ],
])("a worker may be terminated %s", async (_name, body) => {
  const { code, out, err } = await run(`${WORKER}
    (async () => {
      for (let i = 0; i < 5; i++) {
        const worker = work(${JSON.stringify(body)});
        await new Promise((resolve, reject) => worker.once("message", resolve).once("error", reject));
        console.log(await worker.terminate());
      }
    })();`);
  expect({ code, out, err }).toEqual({ code: 0, out: "1\n".repeat(5), err: "" });
});

test.each<[string, string, string]>([
  ["process.exit", "process.exit(7)", "7"],
  ["an uncaught error", "setTimeout(() => { throw new Error('boom'); }, 0)", "1"],
])("%s ends a worker that reads a large picture, and no more", async (_name, end, code) => {
  const ending = await run(`${WORKER}
    const body = "const m = await UniFluid.load('shapes-64');" +
      "m.caption({ pixels: new Uint8Array(3 * 4000 * 4000), width: 4000, height: 4000 }).catch(() => {});" +
      "setImmediate(() => { " + ${JSON.stringify(end)} + " });";
    work(body).on("error", () => {}).once("exit", (code) => console.log(code));`);
  expect(ending).toEqual({ code: 0, out: `${code}\n`, err: "" });
});
