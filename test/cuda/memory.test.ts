/**
 * A model and the memory of its GPU, on the simulated device: which device "auto" takes, what `maxMemory` bounds, who
 * fails where memory goes while requests run, faults that are told late, and steps as graphs.
 */
import { execFile } from "node:child_process";
import { join } from "node:path";
import { setTimeout } from "node:timers/promises";
import { promisify } from "node:util";
import { estimateMemory, UniFluid, type UniFluidError } from "../../lib";
import { loadAddon } from "../../lib/addon";
import { readCheckpoint } from "../../lib/checkpoint/checkpoint";
import { weightsOnDevice } from "../../lib/memory";
import { createTrainer } from "../../lib/train/native-trainer";
import { FIXTURES } from "../support/fixtures";
import { expectSameBits, simulate, simulatedLibrary, withBackend } from "../support/ops";
import { trainerOptions } from "../support/training";

const directory = join(FIXTURES, "unifluid-flow-tiny");
const prompt = "a large red circle";
const options = { seed: 7, steps: 2 };
/** Sampling steps whose modulations take more than a MiB. */
const STEPS = 1000;
/** What a backend takes for staging, whatever the model. */
const STAGING = 4 << 20;
const MiB = 1 << 20;

beforeAll(() => {
  process.env.UNIFLUID_CUDA_LIBRARY = simulatedLibrary;
});
afterEach(() => simulate());

const until = async (condition: () => boolean) => {
  while (!condition()) await setTimeout(1);
};
const draw = (model: UniFluid) => model.generateLatents(prompt, options);
/** A drawing of which a step is done. */
async function drawing(model: UniFluid): Promise<{ running: Promise<Float32Array> }> {
  const { steps } = model.stats();
  const running = draw(model);
  await until(() => model.stats().steps > steps);
  return { running };
}
async function needed(): Promise<number> {
  return STAGING + estimateMemory(await readCheckpoint(directory)).onDevice;
}

describe("the device that auto takes", () => {
  test.each([0.2, 0.3, 3, 5, 9, 14, 40])("of %d MB", async (megabytes) => {
    simulate({ memory: megabytes * 1e6 });
    await using model = await UniFluid.load(directory);
    // Half of so small a device is left to the driver.
    if ((megabytes * 1e6) / 2 >= (await needed())) {
      expect(model.info.device).toMatch(/^cuda:0/);
      await draw(model);
    } else {
      expect(model.info.device).toMatch(/^cpu/);
      const mebibytes = Math.floor((megabytes * 1e6) / 2 ** 20);
      expect(model.info.cpuReason).toMatch(
        new RegExp(`takes at least \\d+ MiB on a GPU, but \\d+ MiB .*, of ${mebibytes} MiB free$`),
      );
    }
  });

  test("from the least that it asks for on, one that draws", async () => {
    const least = await needed();
    simulate({ memory: 2 * least - 2 });
    await using below = await UniFluid.load(directory);
    expect(below.info.device).toMatch(/^cpu/);
    simulate({ memory: 2 * least });
    await using model = await UniFluid.load(directory);
    expect(model.info).toMatchObject({
      device: expect.stringMatching(/^cuda:0/),
      gpu: { name: "simulated", driver: "13.0", freeMemory: 2 * least, totalMemory: 2 * least },
    });
    const image = await model.generate(prompt, options);
    expect(image.width).toBe(model.info.image!.size);
  });

  test("the CPU, where memory goes while the weights are loaded", async () => {
    simulate({ memory: 64e6, taken: 60e6 });
    await using model = await UniFluid.load(directory);
    expect(model.info.device).toMatch(/^cpu/);
    expect(model.info.cpuReason).toMatch(
      /takes at least \d+ MiB on a GPU, and could not be loaded on simulated, of whose memory 62 MiB seemed free: expected to allocate \d+ bytes of GPU memory for .* but \d+ are available/,
    );
    await draw(model);
  });

  test("the CPU for a trainer, too", async () => {
    const { spec } = await readCheckpoint(directory);
    const place = async () => {
      const native = await createTrainer("training", spec, "auto", trainerOptions());
      const description = native.description();
      native.dispose();
      return description;
    };
    simulate({ memory: 64e6, taken: 60e6 });
    expect(await place()).toMatch(/^cpu/);
    simulate();
    expect(await place()).toMatch(/^simulated|^cuda/);
  });

  test.each([
    ["staging", 62e6],
    ["weights", 64e6 - STAGING - 2e5],
  ])("cuda is refused where there is no memory for %s", async (what, taken) => {
    simulate({ memory: 64e6, taken });
    await expect(UniFluid.load(directory, { device: "cuda" })).rejects.toMatchObject({
      code: "INSUFFICIENT_MEMORY",
      message: expect.stringMatching(
        new RegExp(`^expected to allocate \\d+ bytes of GPU memory for ${what} but \\d+ are`),
      ),
    });
  });
});

test("what a model has allocated is what the driver has taken for it: its weights in one block", async () => {
  const source = join(__dirname, "../../models/shapes-64");
  const { free } = await loadAddon().cudaMemory(simulatedLibrary, 0);
  await using model = await UniFluid.load(source, { device: "cuda" });
  const { allocatedBytes } = model.stats();
  expect(free - (await loadAddon().cudaMemory(simulatedLibrary, 0)).free).toBe(allocatedBytes);
  const weights = weightsOnDevice(await readCheckpoint(source), "bfloat16");
  const block = Math.ceil(weights / (2 * MiB)) * 2 * MiB;
  // Beside them there are token ids.
  expect(allocatedBytes - STAGING - block).toBeGreaterThan(0);
  expect(allocatedBytes - STAGING - block).toBeLessThan(4096);
});

test("maxMemory bounds all that a model takes of the GPU", async () => {
  const maxMemory = await needed();
  await using model = await UniFluid.load(directory, { device: "cuda", maxMemory });
  await Promise.all([
    model.generate(prompt, options),
    ...[1, 2].map((seed) => model.generateLatents(prompt, { ...options, seed })),
  ]);
  const { allocatedBytes, availableBytes } = model.stats();
  expect(allocatedBytes).toBeGreaterThan(STAGING);
  expect(allocatedBytes + availableBytes).toBe(maxMemory);
});

/** A block takes more than is asked for, which admission has to know: else a request is begun that finds no memory. */
test("below the least memory that a request runs in it is refused before it begins", async () => {
  const outcome = async (maxMemory: number) => {
    const source = join(FIXTURES, "gemma2-tiny");
    await using model = await UniFluid.load(source, { device: "cuda", maxMemory });
    const request = model.complete("a red circle ".repeat(20), { maxNewTokens: 2 });
    return await request.then(
      () => "runs",
      (error: Error) => error.message,
    );
  };
  let [least, most] = [STAGING, 4 * STAGING];
  while (most - least > 256) {
    const middle = Math.floor((least + most) / 2);
    const runs = (await outcome(middle).catch(() => "not loaded")) === "runs";
    [least, most] = runs ? [least, middle] : [middle, most];
  }
  for (let below = 256; below <= 8192; below *= 2)
    expect(await outcome(most - below)).toMatch(/^the request needs \d+ bytes of cache/);
});

test("a drawing whose steps would lack memory fails alone, and before any of them", async () => {
  await using model = await UniFluid.load(directory, { device: "cuda" });
  const alone = await draw(model);
  const { running } = await drawing(model);
  // What others leave is enough for the cache of the next drawing, and not for the scratch of its many steps.
  simulate({ memory: model.stats().allocatedBytes + (1 << 19) });
  const before = model.stats().rows;
  await expect(model.generateLatents("", { seed: 8, steps: STEPS })).rejects.toMatchObject({
    code: "INSUFFICIENT_MEMORY",
    message: expect.stringMatching(/GPU memory for an operation's scratch but \d+ are available/),
  });
  expectSameBits(await running, alone);
  // None of its rows was run.
  expect(model.stats().rows - before).toBeLessThanOrEqual(2 * model.info.image!.grid ** 2);
  expect(model.stats()).toMatchObject({ completed: 2, failed: 1 });
  expectSameBits(await draw(model), alone);
});

test("a request that would fit waits for what runs, where others have taken the memory", async () => {
  await using model = await UniFluid.load(directory, { device: "cuda" });
  const alone = await draw(model);
  const { running } = await drawing(model);
  simulate({ memory: model.stats().allocatedBytes });
  const second = draw(model);
  expectSameBits(await running, alone);
  expectSameBits(await second, alone);
  expect(model.stats()).toMatchObject({ completed: 3, failed: 0 });
});

test("a workspace takes no more than it needs, and stays untidy, where others have taken the memory", () => {
  withBackend({ library: simulatedLibrary, compute: "f32" }, (backend) => {
    const { grown, tidied } = backend.workspace({
      pieces: [(72 * MiB) / 4, (10 * MiB) / 4],
      // Beside the second piece there is no room for what would be of use later. As one block, both would be rounded up
      // to 88 MiB.
      between: (allocated) => simulate({ memory: allocated + 12 * MiB }),
    });
    expect(grown).toBe(82 * MiB);
    expect(tidied).toBe(0);
  });
});

test("scratch that is made smaller is not given away before there is another", () => {
  withBackend({ library: simulatedLibrary, compute: "f32" }, (backend) => {
    backend.resizeScratch(16 * MiB);
    simulate({ memory: 32 * MiB, greed: true });
    expect(backend.resizeScratch(4 * MiB)).toBe(4 * MiB);
  });
});

/** A kernel takes memory when it is launched for the first time. */
test.each([7, 50, 111])(
  "where every launch of %d finds no memory, requests fail for that or draw what is right",
  async (shortage) => {
    await using model = await UniFluid.load(directory, { device: "cuda" });
    const alone = await draw(model);
    const outcomes = async () => {
      const drawings = [draw(model), draw(model), draw(model)];
      return Promise.all(
        drawings.map((drawing) => drawing.catch((error: UniFluidError) => error.code)),
      );
    };
    simulate({ shortage });
    const short = [...(await outcomes()), ...(await outcomes())];
    expect(short).toContain("INSUFFICIENT_MEMORY");
    for (const outcome of short)
      if (outcome !== "INSUFFICIENT_MEMORY") expectSameBits(outcome as Float32Array, alone);
    simulate();
    for (const outcome of await outcomes()) expectSameBits(outcome as Float32Array, alone);
  },
);

test("a fault that is told late rejects what runs and what comes", async () => {
  const model = await UniFluid.load(directory, { device: "cuda" });
  try {
    const right = await draw(model);
    const { running } = await drawing(model);
    // No more waits are due until the latents are copied to the host.
    simulate({ fail: "waits" });
    await expect(running).rejects.toMatchObject({
      code: "DEVICE_ERROR",
      message: expect.stringMatching(/CUDA error while copying from the device: the late fault/),
    });
    simulate();
    await expect(draw(model)).rejects.toMatchObject({
      code: "DEVICE_ERROR",
      message: expect.stringMatching(/must be loaded again/),
    });
    await using again = await UniFluid.load(directory, { device: "cuda" });
    expectSameBits(await draw(again), right);
  } finally {
    await model.dispose();
  }
});

test("the steps of a drawing are replayed as graphs", async () => {
  const larger = join(FIXTURES, "unifluid-tiny");
  const few = { seed: 7, steps: 1, guidance: 1 };
  await using model = await UniFluid.load(larger, { device: "cuda" });
  const tokens = model.info.image!.grid ** 2;
  await model.generateLatents(prompt, few);
  // A step for the prompt and one for each token. The first token's list comes once; the second time it is captured.
  expect(model.stats()).toMatchObject({ steps: tokens + 1, graphsReplayed: tokens - 1 });
  expect(model.stats().listsLaunched).toBeGreaterThanOrEqual(2);
  await using cpu = await UniFluid.load(larger, { device: "cpu" });
  await cpu.generateLatents(prompt, few);
  expect(cpu.stats()).toMatchObject({ steps: tokens + 1, graphsReplayed: 0, listsLaunched: 0 });
});

describe("unifluid info", () => {
  const main = join(__dirname, "../../dist/cli/main.js");
  const info = async (memory: number, ...args: string[]) =>
    (
      await promisify(execFile)(process.execPath, [main, "info", directory, ...args], {
        env: {
          ...process.env,
          UNIFLUID_CUDA_LIBRARY: simulatedLibrary,
          UNIFLUID_SIMT_MEMORY: String(memory),
        },
      })
    ).stdout;

  test("names the GPU, its driver, its memory and the device of this model", async () => {
    const text = await info(64 << 20);
    expect(text).toMatch(/^device +cuda:0$/m);
    expect(text).toMatch(
      /^cuda:0 +simulated, compute capability 8\.6, 64\.0 MiB free of 64\.0 MiB, driver for CUDA 13\.0, library for 13\.0; this model takes at least [\d.]+ MiB$/m,
    );
    const { device, gpus } = JSON.parse(await info(64 << 20, "--json"));
    expect(device).toEqual({ kind: "cuda:0", library: simulatedLibrary });
    expect(gpus).toEqual([
      {
        name: "simulated",
        capability: "8.6",
        driver: "13.0",
        runtime: "13.0",
        totalMemory: 64 << 20,
        freeMemory: 64 << 20,
        needed: await needed(),
        fits: true,
      },
    ]);
  });

  test("says why it is the CPU", async () => {
    const text = await info(5 << 20);
    expect(text).toMatch(
      /^device +cpu; .*takes at least \d+ MiB on a GPU, but 2 MiB are available/m,
    );
    expect(text).toMatch(
      /^cuda:0 .*; this model takes at least .* MiB, more than it has room for$/m,
    );
    const { device, gpus } = JSON.parse(await info(5 << 20, "--json"));
    expect(device).toMatchObject({ kind: "cpu", reason: expect.stringMatching(/of 5 MiB free/) });
    expect(gpus).toMatchObject([{ fits: false }]);
  });
});
