/**
 * Whole models on CUDA, on the simulated device: beside the CPU in both types, in bfloat16 alone and in company, with too
 * little memory, and when the device fails. In float32 they are also held against the reference with the CPU's own
 * tests (`test/model/parity.test.ts`).
 */
import { execFile } from "node:child_process";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { promisify } from "node:util";
import { estimateMemory, UniFluid } from "../../lib";
import { readCheckpoint } from "../../lib/checkpoint/checkpoint";
import { besideCpu } from "../support/beside-cpu";
import { FIXTURES } from "../support/fixtures";
import { expectSameBits, simulate, simulatedLibrary } from "../support/ops";
import { openFixture, relativeError } from "../support/parity";
import { tolerancesOf } from "../support/parity-cases";

const NAMES = ["unifluid-tiny", "unifluid-flow-tiny"] as const;
const directory = (name: string) => join(FIXTURES, name);
const prompt = "a large red circle";
const options = { seed: 7, steps: 4 };

beforeAll(() => {
  process.env.UNIFLUID_CUDA_LIBRARY = simulatedLibrary;
});
afterEach(() => simulate());

async function withModel<T>(
  name: string,
  load: Parameters<typeof UniFluid.load>[1],
  use: (model: UniFluid) => Promise<T>,
): Promise<T> {
  const model = await UniFluid.load(directory(name), load);
  try {
    return await use(model);
  } finally {
    await model.dispose();
  }
}

describe.each(NAMES)("%s", (name) => {
  let cuda: UniFluid;
  let cpu: UniFluid;
  beforeAll(async () => {
    cuda = await UniFluid.load(directory(name), { device: "cuda", maxSequences: 16 });
    cpu = await UniFluid.load(directory(name), { device: "cpu" });
  });
  afterAll(() => Promise.all([cuda.dispose(), cpu.dispose()]));
  const image = openFixture(name);
  const picture = image.imageOf(image.inputs.find(({ task }) => task === "caption")!);

  test("says what it runs on", () => {
    expect(cuda.info.device).toBe("cuda:0 simulated, compute capability 8.6, bfloat16");
    expect(cuda.info.cpuReason).toBeUndefined();
  });

  test("sees what the CPU sees", async () => {
    const logits = (model: UniFluid) => model.logits({ image: picture, task: "caption" });
    const { logits: tolerance } = tolerancesOf(directory(name), "bfloat16");
    expect(relativeError(await logits(cuda), await logits(cpu))).toBeLessThan(tolerance);
  });

  test("one seed, one image: alone, and among others", async () => {
    const alone = await cuda.generateLatents(prompt, options);
    const others = ["two green stars", "", "three orange circles"].map((text, i) =>
      cuda.generateLatents(text, { ...options, seed: 100 + i, guidance: i % 2 ? 1 : 2.5 }),
    );
    const among = cuda.generateLatents(prompt, options);
    const caption = cuda.caption(picture, { maxNewTokens: 4 });
    expectSameBits(await among, alone);
    await Promise.all([...others, caption]);
  });
});

describe.each(
  NAMES.flatMap((name) => (["float32", "bfloat16"] as const).map((dtype) => ({ name, dtype }))),
)("$name in $dtype", ({ name, dtype }) => {
  test("draws, edits and answers beside the CPU", async () => {
    await using cuda = await UniFluid.load(directory(name), { device: "cuda", dtype });
    await using cpu = await UniFluid.load(directory(name), { device: "cpu" });
    const findings = await besideCpu(cuda, cpu, directory(name), dtype);
    expect(findings.map(({ what }) => what)).toEqual(
      expect.arrayContaining(["latents", "an edit's latents", "an answer's logits"]),
    );
    expect(findings.filter(({ error, tolerance }) => !(error <= tolerance))).toEqual([]);
  }, 240_000);
});

test("auto takes the GPU where the model fits it, and the CPU otherwise", async () => {
  const name = "unifluid-tiny";
  await withModel(name, {}, async ({ info }) => expect(info.device).toMatch(/^cuda:0/));
  const { onDevice } = estimateMemory(await readCheckpoint(directory(name)));
  simulate({ memory: onDevice - 1 });
  await withModel(name, {}, async ({ info }) => {
    expect(info.device).toMatch(/^cpu/);
    expect(info.cpuReason).toMatch(/takes at least .* on a GPU/);
  });
  await expect(UniFluid.load(directory(name), { device: "cuda" })).rejects.toMatchObject({
    code: "INSUFFICIENT_MEMORY",
  });
  simulate({ fail: "code" });
  await withModel(name, {}, async ({ info }) =>
    expect(info.cpuReason).toMatch(/compiled for other GPUs than this one/),
  );
  await expect(UniFluid.load(directory(name), { device: "cuda" })).rejects.toMatchObject({
    code: "DEVICE_ERROR",
    message: expect.stringContaining("npx unifluid build --cuda"),
  });
  simulate({ devices: 0 });
  await withModel(name, {}, async ({ info }) => expect(info.cpuReason).toMatch(/no GPU/));
  await expect(UniFluid.load(directory(name), { device: "cuda:0" })).rejects.toMatchObject({
    code: "DEVICE_UNAVAILABLE",
  });
});

// In the simulation both kinds of product round alike; a device is tried for it (cuda/kernels/warpgroup_probe.h).
test("with the products of warpgroups of a Hopper GPU: the same bits", async () => {
  const name = "unifluid-flow-tiny";
  const picture = openFixture(name);
  const image = picture.imageOf(picture.inputs.find(({ task }) => task === "caption")!);
  const work = (model: UniFluid) =>
    Promise.all([
      ...Array.from({ length: 8 }, (_, i) =>
        model.generateLatents(`${prompt}, ${prompt} and ${i} others`, { ...options, seed: i }),
      ),
      model.logits({ image, task: "caption" }),
    ]);
  const expected = await withModel(name, { device: "cuda" }, work);
  simulate({ capability: 90 });
  await withModel(name, { device: "cuda" }, async (model) => {
    expect(model.info.device).toMatch(/compute capability 9\.0, bfloat16, wgmma$/);
    const drawn = await work(model);
    for (const [i, each] of expected.entries()) expectSameBits(drawn[i]!, each, `result ${i}`);
  });
});

test("a second device", async () => {
  const draw = (model: UniFluid) => model.generateLatents(prompt, options);
  const first = await withModel("unifluid-tiny", { device: "cuda" }, draw);
  simulate({ devices: 2 });
  const second = await withModel("unifluid-tiny", { device: "cuda:1" }, async (model) => {
    expect(model.info.device).toMatch(/^cuda:1 /);
    return draw(model);
  });
  expectSameBits(second, first);
});

test("a device that fails rejects what runs and what comes; a model loaded again works", async () => {
  const draw = (model: UniFluid) => model.generateLatents(prompt, options);
  const load = { device: "cuda" } as const;
  const right = await withModel("unifluid-tiny", load, draw);
  await withModel("unifluid-tiny", load, async (model) => {
    simulate({ fail: "launches" });
    await expect(draw(model)).rejects.toMatchObject({ code: "DEVICE_ERROR" });
    simulate();
    await expect(draw(model)).rejects.toMatchObject({
      code: "DEVICE_ERROR",
      message: expect.stringMatching(/must be loaded again/),
    });
  });
  expectSameBits(await withModel("unifluid-tiny", load, draw), right);
});

test("the command line draws, edits and answers on it", async () => {
  const folder = mkdtempSync(join(tmpdir(), "unifluid-cuda-"));
  const main = join(__dirname, "../../dist/cli/main.js");
  const run = async (...args: string[]) =>
    (
      await promisify(execFile)(process.execPath, [main, ...args], {
        env: { ...process.env, UNIFLUID_CUDA_LIBRARY: simulatedLibrary },
      })
    ).stdout;
  const model = ["--model", directory("unifluid-flow-tiny"), "--device", "cuda"];
  try {
    const out = join(folder, "drawn.png");
    await run("generate", "a red circle", ...model, "--steps", "2", "--seed", "1", "--out", out);
    const edited = join(folder, "edited.png");
    await run(
      "edit",
      out,
      "make it blue",
      ...model,
      "--steps",
      "2",
      "--seed",
      "1",
      "--out",
      edited,
    );
    await run("answer", edited, "what color is it?", ...model, "--max-new-tokens", "2");
    expect(await run("doctor")).toMatch(/^cuda:0 +simulated, compute capability 8\.6/m);
  } finally {
    rmSync(folder, { recursive: true, force: true });
  }
});
