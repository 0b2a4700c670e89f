/** Models and trainers that were dropped without `dispose`, in a process that collects garbage when told. */

import { execFile } from "node:child_process";
import { join } from "node:path";
import { promisify } from "node:util";
import { FIXTURES } from "../support/fixtures";

const root = join(__dirname, "../..");

/** Runs the body of an async function; what it returns. */
async function collecting(body: string): Promise<unknown> {
  const program = `
    const { readdirSync, readFileSync } = require("node:fs");
    const { UniFluid } = require(${JSON.stringify(join(root, "dist/index.js"))});
    const fixture = ${JSON.stringify(join(FIXTURES, "gemma-tiny"))};
    const held = () => ({
      threads: readdirSync("/proc/self/task").length,
      maps: readFileSync("/proc/self/maps", "utf8").split("\\n").filter((l) => l.includes(fixture)).length,
    });
    // Finalizers run between tasks, some only after another collection.
    const collect = async () => {
      for (let i = 0; i < 10; i++) {
        global.gc();
        await new Promise((resolve) => setImmediate(resolve));
      }
    };
    const load = () => UniFluid.load(fixture, { device: "cpu", threads: 1 });
    (async () => { ${body} })().then((result) => console.log(JSON.stringify(result)));`;
  const { stdout } = await promisify(execFile)(process.execPath, ["--expose-gc", "-e", program]);
  return JSON.parse(stdout);
}

const onLinux = process.platform === "linux" ? test : test.skip;

onLinux("dropped models give back their threads and files", async () => {
  const { before, loaded, after } = (await collecting(`
    await (await load()).dispose(); // the threads of libuv's pool stay
    await collect();
    const before = held();
    const models = [];
    for (let i = 0; i < 4; i++) {
      models.push(await load());
      await models[i].complete("a", { maxNewTokens: 1 });
    }
    const loaded = held();
    models.length = 0;
    await collect();
    return { before, loaded, after: held() };
  `)) as Record<string, { threads: number; maps: number }>;
  expect(loaded!.threads).toBeGreaterThanOrEqual(before!.threads + 4);
  expect(loaded!.maps).toBeGreaterThanOrEqual(4);
  expect(after).toEqual(before);
});

onLinux("a call of a dropped model comes to its end, as does a stream", async () => {
  expect(
    await collecting(`
      const expected = await (await load()).complete("a red", { maxNewTokens: 200 });
      await collect();
      const before = held();
      const work = async () => {
        const call = (await load()).complete("a red", { maxNewTokens: 200 });
        const stream = (await load()).completeStream("a red", { maxNewTokens: 200 });
        let streamed = (await stream.next()).value;
        await collect();
        for await (const piece of stream) streamed += piece;
        return (await call) === expected && streamed === expected;
      };
      const same = await work();
      await collect();
      return { same, text: expected.length > 0, maps: held().maps - before.maps };
    `),
  ).toEqual({ same: true, text: true, maps: 0 });
});

onLinux("a stream that was begun and dropped keeps its model no longer than it runs", async () => {
  expect(
    await collecting(`
      await (await load()).completeStream("a red", { maxNewTokens: 4 }).next();
      while (held().maps > 0) await collect();
      return held().maps;
    `),
  ).toBe(0);
});

onLinux("a worker that drops a model ends", async () => {
  expect(
    await collecting(`
      const { Worker } = require("node:worker_threads");
      const work = \`const { UniFluid } = require(\${JSON.stringify(${JSON.stringify(
        join(root, "dist/index.js"),
      )})});
        (async () => {
          await UniFluid.load(\${JSON.stringify(fixture)}, { device: "cpu", threads: 1 });
          global.gc();
          const model = await UniFluid.load(\${JSON.stringify(fixture)}, { device: "cpu", threads: 1 });
          const text = model.complete("a", { maxNewTokens: 2 });
          global.gc();
          await text;
        })();\`;
      const code = await new Promise((resolve, reject) => {
        const worker = new Worker(work, { eval: true });
        worker.on("exit", resolve).on("error", reject);
      });
      await collect();
      return { code, maps: held().maps };
    `),
  ).toEqual({ code: 0, maps: 0 });
});
