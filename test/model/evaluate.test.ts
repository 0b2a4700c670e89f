/** The suite on models: what it reports, and that it can tell. */
import { join } from "node:path";
import { UniFluid } from "../../lib";
import { SUITE_PARTS } from "../../lib/evaluate/parts";
import { evaluateScenes, itemsOf } from "../../lib/evaluate/scenes-suite";
import { FIXTURES } from "../support/fixtures";

let model: UniFluid;
beforeAll(async () => {
  model = await UniFluid.load("shapes-64", { threads: 2 });
});
afterAll(() => model.dispose());

test("every part is measured, on as many cases as were asked for, the same again", async () => {
  let items = 0;
  const options = { scenes: 4, seed: 1n, steps: 2 };
  const report = await evaluateScenes(model, { ...options, onItem: () => items++ });
  expect(items).toBe(itemsOf(options));
  expect(Object.keys(report.generation!.tasks)).toHaveLength(6);
  const rates = [
    ...Object.values(report.generation!.tasks),
    report.heldOut!.heldOut,
    report.captions!.exact,
    report.answers!.all,
    report.edits!.all,
    report.vae!.parsed,
  ];
  for (const { rate, n } of rates) {
    expect(n).toBe(4);
    expect(rate).toBeGreaterThanOrEqual(0);
    expect(rate).toBeLessThanOrEqual(1);
  }
  // True pictures are parsed right, a source handed back is no edit, and the autoencoder is a good one.
  expect(report.vae!.parsed.rate).toBe(1);
  expect(report.vae!.psnr).toBeGreaterThan(28);
  expect(report.edits!.copied.rate).toBe(0);
  const { drawn, floor, autoencoder, n, references, width } = report.frechet!;
  expect([n, references, width]).toEqual([4, 16, model.info.vision!.width]);
  // Two steps of diffusion draw blurs: far from true pictures, among each other as far as few are.
  expect(drawn).toBeGreaterThan(floor);
  expect(autoencoder).toBeGreaterThan(0);
  expect(await evaluateScenes(model, options)).toEqual(report);
}, 120_000);

test("another model's tower gives the features, and one is needed", async () => {
  const other = await UniFluid.load(join(FIXTURES, "unifluid-tiny"), { threads: 1 });
  const only = ["frechet"] as const;
  const options = { scenes: 3, seed: 1n, steps: 1, only };
  const report = await evaluateScenes(model, { ...options, features: other });
  expect(report.frechet).toMatchObject({
    width: other.info.vision!.width,
    features: other.info.directory,
  });
  await other.dispose();
  const blind = await UniFluid.load(join(FIXTURES, "gemma-tiny"), { threads: 1 });
  await expect(evaluateScenes(model, { ...options, features: blind })).rejects.toMatchObject({
    code: "UNSUPPORTED_TASK",
    message: expect.stringMatching(/has no vision tower/),
  });
  await blind.dispose();
}, 120_000);

test("parts can be chosen, and an abort ends it", async () => {
  const only = ["captions"] as const;
  const report = await evaluateScenes(model, { scenes: 2, seed: 1n, only });
  expect(Object.keys(report)).toEqual(["seed", "captions"]);
  expect(SUITE_PARTS).toContain("captions");
  const signal = AbortSignal.abort(new Error("enough"));
  await expect(evaluateScenes(model, { scenes: 2, seed: 1n, only, signal })).rejects.toThrow(
    "enough",
  );
});
