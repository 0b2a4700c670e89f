/** What a run's sources give together, and which of their records are counted as broken. */
import { mkdir, mkdtemp, readFile, rename, rm, truncate, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { InvalidRecordError } from "../../lib/errors";
import { Random } from "../../lib/philox";
import { BrokenRecords } from "../../lib/train/broken-records";
import { parseRunConfig } from "../../lib/train/config";
import { Mixture } from "../../lib/train/mixture";
import { captionManifest, captionShards } from "../support/sources";

let folder: string;
beforeEach(async () => {
  folder = await mkdtemp(join(tmpdir(), "mixture-"));
});
afterEach(() => rm(folder, { recursive: true }));

test("a run counts an empty shard as a broken record, and remarks once on one without an end", async () => {
  const pattern = await captionShards(folder, [3, 3]);
  await truncate(join(folder, "a-0.tar"), 3 * 4 * 512);
  await writeFile(join(folder, "a-1.tar"), "");
  const told: string[] = [];
  const broken = new BrokenRecords(0.01, (message) => told.push(message));
  const run = {
    model: "shapes-64",
    steps: 1,
    learningRate: 1,
    sources: [{ shards: pattern, examples: 3 }],
  };
  const mixture = await Mixture.open(parseRunConfig(run, "run.yaml", folder), broken);
  for (let step = 1; step <= 4; step++) {
    const { examples } = await mixture.draw(
      step,
      async (record) => record.example(new Random(0n, 0, 0)).text,
    );
    expect(examples).toHaveLength(3);
  }
  await mixture.close();
  expect(told.sort()).toEqual([
    expect.stringMatching(/^.*a-0\.tar lacks the blocks of zeros/),
    expect.stringMatching(/^skipped .*a-1\.tar: sample 0 \(its beginning\): the archive is empty/),
  ]);
  expect(broken.counts.broken).toBe(1);
});

test("a run is stopped by a share of the records that there are, not of those that epochs read", async () => {
  const path = await captionManifest(folder, 300);
  const run = {
    model: "shapes-64",
    steps: 1,
    learningRate: 1,
    sources: [{ manifest: path, examples: 100 }],
  };
  const broken = new BrokenRecords(0.01, () => {});
  const mixture = await Mixture.open(parseRunConfig(run, "run.yaml", folder), broken);
  const bad = new Set<string>();
  const draw = (step: number, count: number) =>
    mixture.draw(step, async (record) => {
      if (bad.size < count) bad.add(record.counted);
      if (bad.has(record.counted)) throw new InvalidRecordError("broken by now");
    });
  for (let step = 1; step <= 15; step++) await draw(step, Math.min(3, Math.floor(step / 4)));
  expect(broken.counts.broken).toBe(3);
  await expect(draw(16, 4)).rejects.toMatchObject({
    code: "TRAINING_DATA",
    message: expect.stringMatching(/^4 of 300 records seen are broken/),
  });
  await mixture.close();
});

test("broken records of a source that begins anew are not counted any more", async () => {
  const run = {
    model: "shapes-64",
    steps: 1,
    learningRate: 1,
    sources: [
      { manifest: await captionManifest(folder, 4), examples: 1 },
      { shards: await captionShards(folder, [3]), examples: 1 },
    ],
  };
  const open = () =>
    Mixture.open(parseRunConfig(run, "run.yaml", folder), new BrokenRecords(0.01, () => {}));
  const before = await open();
  const names: string[] = [];
  const { positions } = await before.draw(1, async (record) => names.push(record.counted));
  const after = await open();
  expect(names.map((name) => after.countedAs(name))).toEqual(names);
  await after.restore(1, JSON.parse(JSON.stringify([positions[0], {}])), () => {});
  expect(names.map((name) => after.countedAs(name))).toEqual([names[0], undefined]);
  await Promise.all([before.close(), after.close()]);
});

test("broken records stay counted after data were moved, also where two manifests have one name", async () => {
  const [old, moved] = [join(folder, "old"), join(folder, "new")];
  for (const name of ["a", "b"]) await mkdir(join(old, name), { recursive: true });
  const told: string[] = [];
  const open = (parent: string) => {
    const manifest = (name: string) => ({ manifest: join(parent, name, "a.jsonl"), examples: 4 });
    const sources = [manifest("a"), manifest("b"), manifest("b")];
    const run = { model: "shapes-64", steps: 1, learningRate: 1, brokenShare: 1 };
    const shards = { shards: join(parent, "a-{0..1}.tar"), examples: 4 };
    const config = parseRunConfig({ ...run, sources: [...sources, shards] }, "run.yaml", "/");
    return Mixture.open(config, new BrokenRecords(1, (message) => told.push(message)));
  };
  await captionManifest(join(old, "a"), 4);
  await captionManifest(join(old, "b"), 4);
  await captionShards(old, [2, 2]);
  /** Broken are the third record of a, the first of b, and the second of the shards. */
  const broken = [/a\/a\.jsonl: record 2 /, /b\/a\.jsonl: record 0 /, /a-0\.tar: sample 1 /];
  const draw = (mixture: Mixture, step: number) =>
    mixture.draw(step, async ({ name }) => {
      if (broken.some((pattern) => pattern.test(name))) throw new InvalidRecordError("broken");
    });
  const before = await open(old);
  const { positions, records } = await draw(before, 1);
  const state = JSON.parse(JSON.stringify(before.broken.stateAt(records)));
  // A manifest that is there twice has one.
  expect(state.broken).toHaveLength(3);
  expect(told).toHaveLength(3);
  await before.close();
  await rename(old, moved);
  const after = await open(moved);
  await after.restore(1, JSON.parse(JSON.stringify(positions)), () => {});
  after.broken.restore(state, (kept) => after.countedAs(kept));
  expect(after.broken.counts.broken).toBe(3);
  await draw(after, 2);
  expect(after.broken.counts.broken).toBe(3);
  expect(told).toHaveLength(3);
  await after.close();
});

test("sources of the same shards share their broken records where plain texts are the same to both", async () => {
  const shards = await captionShards(folder, [3]);
  const source = (task: string) => ({ shards, task, examples: 3, shuffle: 1 });
  const sources = ["caption", "generate", "caption"].map(source);
  const run = { model: "shapes-64", steps: 1, learningRate: 1, brokenShare: 1, sources };
  const broken = new BrokenRecords(1, () => {});
  const mixture = await Mixture.open(parseRunConfig(run, "run.yaml", folder), broken);
  const names: string[][] = [[], [], []];
  await mixture.draw(1, async ({ counted }, _, place) => names[place]!.push(counted));
  expect(names[2]!.sort()).toEqual(names[0]!.sort());
  expect(new Set([...names[0]!, ...names[1]!]).size).toBe(6);
  await mixture.close();
});

test("a shard that was damaged at its beginning is not counted any more once it was mended", async () => {
  const pattern = await captionShards(folder, [2, 2, 2]);
  const path = join(folder, "a-1.tar");
  const whole = await readFile(path);
  await writeFile(path, "");
  const run = { model: "shapes-64", steps: 1, learningRate: 1, brokenShare: 1 };
  const sources = [{ shards: pattern, examples: 6 }];
  const config = parseRunConfig({ ...run, sources }, "run.yaml", folder);
  const open = () => Mixture.open(config, new BrokenRecords(1, () => {}));
  const draw = (mixture: Mixture, step: number) =>
    mixture.draw(step, async (record) => record.example(new Random(0n, 0, 0)).text);
  const before = await open();
  const { positions, records } = await draw(before, 1);
  const state = before.broken.stateAt(records);
  await before.close();
  expect(state.broken).toHaveLength(1);
  await writeFile(path, whole);
  // Earlier versions kept it with its key.
  for (const broken of [state.broken, [`${path}: sample 0 (its beginning)`]]) {
    const after = await open();
    await after.restore(1, JSON.parse(JSON.stringify(positions)), () => {});
    after.broken.restore({ ...state, broken }, (kept) => after.countedAs(kept));
    expect(after.broken.counts.broken).toBe(1);
    for (let step = 2; step <= 4; step++) await draw(after, step);
    expect(after.broken.counts.broken).toBe(0);
    await after.close();
  }
});
