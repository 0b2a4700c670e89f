/**
 * Work for the sanitizers (CONTRIBUTING.md): whatever has threads meet, at random, for so many seconds.
 *
 *   node test/sanitize/threads.mjs [seconds] [seed]
 *
 * Runs what is in dist/. Asserts little: an error that nobody asked for ends it with status 1; races and misuse of
 * memory are the sanitizer's to tell.
 */
import { setTimeout as sleep } from "node:timers/promises";
import { fileURLToPath } from "node:url";
import { isMainThread, Worker } from "node:worker_threads";
import { UniFluid } from "../../dist/index.mjs";

const [seconds = 20, seed = 1] = process.argv.slice(2).map(Number);
const until = performance.now() + seconds * 1000;
const more = () => performance.now() < until;

let state = seed || 1;
/** From 0 to n - 1 (xorshift). */
function random(n) {
  state ^= state << 13;
  state ^= state >>> 17;
  state ^= state << 5;
  return (state >>> 0) % n;
}
const pick = (list) => list[random(list.length)];

const fixture = (name) => new URL(`../fixtures/${name}`, import.meta.url);
const picture = { pixels: new Uint8Array(24 * 24 * 3).fill(100), width: 24, height: 24 };

/** What ends a request here without being wrong. */
const EXPECTED = new Set(["DISPOSED", "QUEUE_FULL"]);
const counts = {};

async function settled(name, call) {
  let how = "ok";
  try {
    await call;
  } catch (error) {
    how = error.name === "TimeoutError" ? "aborted" : error.code;
    if (how !== "aborted" && !EXPECTED.has(how)) throw error;
  }
  const key = `${name} ${how}`;
  counts[key] = (counts[key] ?? 0) + 1;
}

/** Takes some of what a stream gives, and leaves it. */
async function some(stream) {
  let left = random(16);
  for await (const step of stream) {
    if (left % 4 === 0) await step.preview?.();
    if (left-- === 0) break;
  }
}

const requests = {
  generate: (m, o) => m.generate("a red circle", { steps: 1 + random(4), ...o }),
  together: (m, o) => m.generate(["a", "b", "c"], { steps: 2, guidance: 1, ...o }),
  edit: (m, o) => m.edit(picture, "make it red", { steps: 2, ...o }),
  caption: (m, o) => m.caption(picture, { maxNewTokens: 1 + random(8), ...o }),
  answer: (m, o) => m.answer(picture, "what?", { maxNewTokens: 4, temperature: 1, ...o }),
  encode: (m, o) => m.encodeImage(picture, o),
  features: (m, o) => m.imageFeatures(picture, o),
  logits: (m, o) => m.logits({ image: picture, task: "caption", ...o }),
  drawing: (m, o) => some(m.generateStream("a star", { steps: 2, ...o })),
  writing: (m, o) => some(m.captionStream(picture, { maxNewTokens: 8, ...o })),
  bulk: (m, o) => some(m.generateAll(new Array(12).fill("x"), { steps: 1, ...o })),
  stats: async (m) => m.stats(),
};

/** So many requests of any kind, of which a third is aborted at some moment. */
function burst(model, count) {
  return Array.from({ length: count }, () => {
    const name = pick(Object.keys(requests));
    const options = { priority: random(5) - 2 };
    if (random(3) === 0) options.signal = AbortSignal.timeout(random(60));
    if (name === "stats") return settled(name, requests.stats(model));
    // What is disposed of throws at the call.
    return settled(name, (async () => requests[name](model, options))());
  });
}

const load = (name, options) =>
  UniFluid.load(fixture(name), { device: "cpu", threads: 1 + random(3), ...options });

const scenarios = {
  async requests() {
    const model = await load("unifluid-tiny", { maxSequences: 6, maxQueue: 30 });
    while (more()) await Promise.all(burst(model, 1 + random(16)));
    await model.dispose();
  },
  async disposal() {
    while (more()) {
      const model = await load(pick(["unifluid-tiny", "unifluid-flow-tiny"]), { maxSequences: 3 });
      const all = burst(model, 1 + random(10));
      await sleep(random(30));
      await Promise.all([...all, model.dispose(), model.dispose()]);
    }
  },
  /** Many loads at once, some given up, some models left to the collector. */
  async loading() {
    while (more()) {
      const names = ["unifluid-tiny", "paligemma-tiny", "gemma-tiny", "unifluid-flow-tiny"];
      await Promise.all(
        names.map(async (name) => {
          const signal = random(3) ? undefined : AbortSignal.timeout(random(60));
          const model = await load(name, { signal }).catch(() => {});
          if (random(3)) await model?.dispose();
        }),
      );
    }
  },
  /** Threads of JavaScript with models of their own, half of them ended in the middle. */
  async workers() {
    for (let round = 1; more(); round++) {
      const ended = Array.from({ length: 3 }, async (_, i) => {
        const argv = [2, seed + 10 * round + i];
        const worker = new Worker(fileURLToPath(import.meta.url), { argv });
        const end = new Promise((resolve, reject) => {
          worker.once("exit", resolve);
          worker.once("error", reject);
        });
        if (random(2)) await sleep(random(2000)).then(() => worker.terminate());
        await end;
      });
      await Promise.all(ended);
    }
  },
};

const { workers, ...alone } = scenarios;
await Promise.all(Object.values(isMainThread ? scenarios : alone).map((scenario) => scenario()));
if (isMainThread) console.log(counts);
