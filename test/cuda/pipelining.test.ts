/**
 * The host ahead of the device: a step's tokens are read when the next one has been issued (`core/engine_step.cpp`), and
 * latents stay where they are, so that the host waits for all that the device has to do only where results are handed
 * out. On the simulated device, in float32, beside the CPU, which waits for each step.
 */
import { cpSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { UniFluid } from "../../lib";
import { FIXTURES } from "../support/fixtures";
import { addon, simulate, simulatedLibrary } from "../support/ops";
import { openFixture } from "../support/parity";

const name = "unifluid-flow-tiny";
const fixture = openFixture(name);
const picture = fixture.imageOf(fixture.inputs.find(({ task }) => task === "caption")!);
const CUDA = { device: "cuda", dtype: "float32" } as const;
const PROMPTS = ["a", "three", "of them on the", "blue", "what is", "left"];

beforeAll(() => {
  process.env.UNIFLUID_CUDA_LIBRARY = simulatedLibrary;
});
afterEach(() => simulate());

async function both<T>(directory: string, use: (model: UniFluid) => Promise<T>): Promise<T[]> {
  const results: T[] = [];
  for (const load of [{ device: "cpu" }, CUDA] as const) {
    await using model = await UniFluid.load(directory, load);
    results.push(await use(model));
  }
  return results;
}

describe("waits of the host", () => {
  let model: UniFluid;
  beforeAll(async () => {
    model = await UniFluid.load(join(FIXTURES, name), CUDA);
  });
  afterAll(() => model.dispose());

  async function waits(work: () => Promise<unknown>): Promise<number> {
    await work(); // what grows when it is first needed
    const before = addon.simulationWaits(simulatedLibrary);
    await work();
    return addon.simulationWaits(simulatedLibrary) - before;
  }

  const write = (maxNewTokens: number) => model.caption(picture, { maxNewTokens });
  const draw = (steps: number) =>
    model.generateLatents("a large red circle", { seed: 7, steps, guidance: 2 });

  test("a longer text takes as many as a short one", async () => {
    const text = await write(12);
    expect(text.length).toBeGreaterThan((await write(2)).length);
    expect(await waits(() => write(12))).toBe(await waits(() => write(2)));
  });

  test("a drawing of 16 tokens takes one, for its result", async () => {
    expect(await waits(() => draw(2))).toBe(1);
    expect(await waits(() => Promise.all([draw(2), draw(3), draw(2)]))).toBe(3);
  });

  test("a text beside drawings holds nothing up", async () => {
    const apart = (await waits(() => draw(2))) + (await waits(() => write(12)));
    expect(await waits(() => Promise.all([draw(2), write(12)]))).toBe(apart);
  });
});

test("texts of all lengths beside each other are the CPU's", async () => {
  const [cpu, cuda] = await both(join(FIXTURES, "gemma2-tiny"), (model) =>
    Promise.all(
      PROMPTS.flatMap((prompt) =>
        [1, 2, 3, 9].map((maxNewTokens) =>
          model.complete(prompt, { maxNewTokens, temperature: 0.7, seed: maxNewTokens }),
        ),
      ),
    ),
  );
  expect(cuda).toEqual(cpu);
});

test("a text ends where it stops, whatever was issued behind", async () => {
  const directory = mkdtempSync(join(tmpdir(), "unifluid-stops-"));
  try {
    cpSync(join(FIXTURES, "gemma2-tiny"), directory, { recursive: true });
    const path = join(directory, "generation_config.json");
    const config = JSON.parse(readFileSync(path, "utf8"));
    // Every fifth token, so that texts stop after a few.
    config.eos_token_id = Array.from({ length: 70 }, (_, i) => 5 * i + 1);
    writeFileSync(path, JSON.stringify(config));
    const stopped = new Set<number>();
    const [cpu, cuda] = await both(directory, async (model) => {
      const texts = await Promise.all(
        PROMPTS.map(async (prompt, seed) => {
          const pieces: string[] = [];
          const options = { maxNewTokens: 24, temperature: 1, seed };
          for await (const piece of model.completeStream(prompt, options)) pieces.push(piece);
          stopped.add(pieces.length);
          return [pieces.join(""), await model.complete(prompt, options)];
        }),
      );
      const { completed, failed, running } = model.stats();
      expect({ completed, failed, running }).toEqual({ completed: 12, failed: 0, running: 0 });
      return texts;
    });
    expect(cuda).toEqual(cpu);
    for (const [streamed, whole] of cuda!) expect(streamed).toBe(whole);
    expect(Math.min(...stopped)).toBeLessThan(24);
    expect(stopped.size).toBeGreaterThan(1);
  } finally {
    rmSync(directory, { recursive: true, force: true });
  }
});

test("a text that is given up while its next token is on the way takes nobody along", async () => {
  await using model = await UniFluid.load(join(FIXTURES, "gemma2-tiny"), CUDA);
  const options = { maxNewTokens: 20, temperature: 1, seed: 3 };
  const right = await model.complete("blue", options);
  const other = model.complete("blue", options);
  for await (const _ of model.completeStream("a", { ...options, seed: 4 })) break;
  const given = new AbortController();
  const aborted = model.complete("three", { ...options, signal: given.signal });
  setImmediate(() => given.abort());
  await expect(aborted).rejects.toMatchObject({ name: "AbortError" });
  expect(await other).toBe(right);
  expect(await model.complete("blue", options)).toBe(right);
});

test("a device that fails while tokens are on their way rejects the text", async () => {
  await using model = await UniFluid.load(join(FIXTURES, "gemma2-tiny"), CUDA);
  const pieces: string[] = [];
  const write = async () => {
    for await (const piece of model.completeStream("a", {
      maxNewTokens: 24,
      temperature: 1,
      seed: 1,
    })) {
      pieces.push(piece);
      simulate({ fail: "launches" });
    }
  };
  await expect(write()).rejects.toMatchObject({ code: "DEVICE_ERROR" });
  expect(pieces.length).toBeGreaterThan(0);
});
