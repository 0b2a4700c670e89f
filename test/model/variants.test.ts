/**
 * Models at the edges of the specification against the reference's numbers (test/fixtures/variants), on the CPU and
 * on CUDA: a SigLIP tower whose patches do not divide the image, and plain text through a UniFluid model. Settings at
 * their limits as well.
 */

import { type LoadOptions, UniFluid } from "../../lib/index";
import { CheckpointCopy } from "../support/checkpoints";
import { FIXTURES, fixtureTensors } from "../support/fixtures";
import { simulatedLibrary } from "../support/ops";
import { argmaxRows, relativeError } from "../support/parity";

const LOGITS = 1e-4;
const SIDE = 37;
const expected = fixtureTensors("variants");

beforeAll(() => {
  process.env.UNIFLUID_CUDA_LIBRARY = simulatedLibrary;
});

describe.each<[string, LoadOptions]>([
  ["the CPU", { device: "cpu", threads: 2 }],
  ["simulated CUDA", { device: "cuda", dtype: "float32" }],
])("on %s", (_name, load) => {
  test("pixels behind the last whole patch belong to none", async () => {
    const copy = new CheckpointCopy("paligemma-tiny");
    copy.set("config.json", { "vision_config.image_size": SIDE });
    copy.set("preprocessor_config.json", { size: { width: SIDE, height: SIDE } });
    const model = await UniFluid.load(copy.directory, load);
    const pixels = Uint8Array.from(
      { length: SIDE * SIDE * 3 },
      (_, i) => (31 * i * i + 7 * i) % 251,
    );
    const image = { pixels, width: SIDE, height: SIDE };
    expect(model.info.vision).toEqual({ size: SIDE, rows: 16, width: 24 });
    const features = await model.imageFeatures(image);
    expect(relativeError(features, expected.get("vision.features").data)).toBeLessThan(LOGITS);
    const logits = await model.logits({ image, task: "caption" });
    expect(relativeError(logits, expected.get("vision.logits").data)).toBeLessThan(LOGITS);
    await model.dispose();
    copy.remove();
  });

  test.each(["unifluid-tiny", "unifluid-flow-tiny"])("%s continues a plain text", async (name) => {
    const model = await UniFluid.load(`${FIXTURES}/${name}`, load);
    const [ids, greedy] = ["ids", "greedy"].map((what) => [
      ...(expected.get(`text.${name}.${what}`).data as Int32Array),
    ]) as [number[], number[]];
    const logits = await model.logits({ tokens: ids });
    expect(relativeError(logits, expected.get(`text.${name}.logits`).data)).toBeLessThan(LOGITS);
    expect(argmaxRows(logits, model.info.vocabSize!).at(-1)).toBe(greedy[0]);
    const text = model.detokenize(ids);
    expect([2, ...model.tokenize(text)]).toEqual(ids);
    const written = await model.complete(text, { maxNewTokens: greedy.length });
    expect(written).toBe(model.detokenize(greedy));
    await model.dispose();
  });

  test("a rectified flow takes more steps than timesteps", async () => {
    const copy = new CheckpointCopy("unifluid-flow-tiny");
    copy.set("config.json", { "diffusion_head.timesteps": 4 });
    copy.set("generation_config.json", { "image.steps": 6 });
    const model = await UniFluid.load(copy.directory, load);
    const of = (steps: number) => model.generateLatents("a", { seed: 1, steps });
    const [six, four] = [await of(6), await of(4)];
    expect(six.every(Number.isFinite)).toBe(true);
    expect(relativeError(six, four)).toBeGreaterThan(0);
    await model.dispose();
    copy.remove();
  });

  test("a bound of 0 draws nothing but 0, under a negative guidance too", async () => {
    const model = await UniFluid.load(`${FIXTURES}/unifluid-tiny`, load);
    const options = { seed: 1, steps: 2, guidance: -2, x0Limit: 0 };
    expect((await model.generateLatents("a", options)).every((value) => value === 0)).toBe(true);
    await model.dispose();
  });
});

test("a negative guidance leads elsewhere than a positive one", async () => {
  const model = await UniFluid.load(`${FIXTURES}/unifluid-tiny`, { device: "cpu", threads: 2 });
  const of = (guidance: number) => model.generateLatents("a", { seed: 1, steps: 4, guidance });
  const [away, towards] = [await of(-2), await of(2)];
  expect(away.every(Number.isFinite)).toBe(true);
  expect(relativeError(away, towards)).toBeGreaterThan(1e-3);
  await model.dispose();
});
