/** Data sets that a model draws itself (`unifluid scenes --drawn-by`). */
import { mkdtemp, readdir, readFile, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { check } from "../../lib/evaluate/judge";
import { decodeImage } from "../../lib/image-input";
import { initCheckpoint } from "../../lib/init/init";
import { UniFluid } from "../../lib/model";
import { type DatasetOptions, sceneOf, writeDataset } from "../../lib/scenes/dataset";
import { parseScene } from "../../lib/scenes/parse";
import { FIXTURES } from "../support/fixtures";

const root = join(__dirname, "../..");
let folder: string;
let model: UniFluid;
beforeAll(async () => {
  folder = await mkdtemp(join(tmpdir(), "own-drawings-"));
  model = await UniFluid.load("shapes-64");
});
afterAll(async () => {
  await model.dispose();
  await rm(folder, { recursive: true });
});

const base = { count: 12, seed: 5n, shortPrompts: true } as const;
const write = (name: string, options: Partial<DatasetOptions>) =>
  writeDataset(join(folder, name), { ...base, drawnBy: model, ...options });
const recordsIn = async (name: string) =>
  (await readFile(join(folder, name, "generate.jsonl"), "utf8"))
    .trimEnd()
    .split("\n")
    .map((line) => JSON.parse(line));

test("every record's picture is the model's own and shows its scene", async () => {
  const done: number[] = [];
  const written = await write("own", { onScene: () => done.push(1) });
  expect(done).toHaveLength(base.count);
  expect((await readdir(join(folder, "own"))).sort()).toEqual(["generate.jsonl", "images"]);
  const records = await recordsIn("own");
  expect(records).toHaveLength(written);
  expect(written).toBeGreaterThan(base.count / 2);
  expect(await readdir(join(folder, "own", "images"))).toHaveLength(written);
  for (const { task, image, prompt, scene } of records) {
    expect(task).toBe("generate");
    expect(prompt).not.toMatch(/background|large|small/);
    const index = Number(/\d+/.exec(image)?.[0]);
    expect(scene).toEqual(sceneOf(base.seed, "train", index));
    const { pixels } = await decodeImage(join(folder, "own", image));
    const found = check(parseScene(pixels), scene);
    expect(found.objects && found.relation !== false).toBe(true);
  }
  // The same seed, the same data.
  expect(await write("again", {})).toBe(written);
  expect(await recordsIn("again")).toEqual(records);
}, 120_000);

test("what cannot be drawn or judged is refused, and a model that never gets it right is told", async () => {
  const refused = (options: Partial<DatasetOptions>, message: RegExp) =>
    expect(write("refused", options)).rejects.toMatchObject({
      code: "INVALID_OPTION",
      message: expect.stringMatching(message),
    });
  await refused({ tasks: ["generate", "caption"] }, /generate alone.*received caption/);
  await refused({ size: 128 }, /64 pixels.*received 128/);
  await using other = await UniFluid.load(join(FIXTURES, "unifluid-tiny"));
  await refused({ drawnBy: other }, /pictures of 64 pixels but .*unifluid-tiny draws \d+/);

  const fresh = join(folder, "fresh");
  const sizes = join(root, "examples/train/model.yaml");
  await initCheckpoint(sizes, fresh, { seed: 1n, vae: "shapes-64" });
  await using beginner = await UniFluid.load(fresh);
  await expect(write("none", { drawnBy: beginner, count: 2, attempts: 2 })).rejects.toMatchObject({
    code: "TRAINING_DATA",
    message: expect.stringMatching(/of 2 scenes/),
  });
  expect(await readdir(folder)).toEqual(expect.not.arrayContaining(["none", "none.partial"]));
}, 120_000);
