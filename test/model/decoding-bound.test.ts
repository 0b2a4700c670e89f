/** However many examples a step has, few pictures are decoded at once. */
import { mkdtemp, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { setTimeout } from "node:timers/promises";
import { stringify } from "yaml";
import { locateCheckpoint, readCheckpoint } from "../../lib";
import { initCheckpoint } from "../../lib/init/init";
import { writeDataset } from "../../lib/scenes/dataset";
import { Semaphore } from "../../lib/train/decoding";
import { Pictures } from "../../lib/train/pictures";
import { trained } from "../support/runs";

const at = { now: 0, most: 0, all: 0 };
jest.mock("../../lib/image-input", () => {
  const actual = jest.requireActual("../../lib/image-input");
  return {
    ...actual,
    async decodeImage(...args: unknown[]) {
      if (typeof args[0] !== "string") return actual.decodeImage(...args); // no file
      at.all++;
      at.most = Math.max(at.most, ++at.now);
      try {
        return await actual.decodeImage(...args);
      } finally {
        at.now--;
      }
    },
  };
});

let folder: string;
beforeAll(async () => {
  folder = await mkdtemp(join(tmpdir(), "decoding-"));
  await writeDataset(join(folder, "data"), { count: 24, seed: 1n, tasks: ["generate"] });
}, 60_000);
afterAll(() => rm(folder, { recursive: true }));
beforeEach(() => Object.assign(at, { now: 0, most: 0, all: 0 }));

test("pictures that are prepared, which come back in their order", async () => {
  const checkpoint = await readCheckpoint(await locateCheckpoint("shapes-64"));
  const paths = Array.from({ length: 24 }, (_, i) =>
    join(folder, "data", "images", `${String(i).padStart(6, "0")}.png`),
  );
  const pictures = await Pictures.open(folder, checkpoint, {
    threads: 2,
    cache: join(folder, "c"),
  });
  const together = await Promise.all(paths.map((path) => pictures.get(path)));
  expect(at).toMatchObject({ now: 0, all: 24 });
  expect(at.most).toBeLessThanOrEqual(8);
  for (const [i, path] of paths.entries()) expect(await pictures.get(path)).toEqual(together[i]);
  await pictures.close();
});

test("pictures that an autoencoder learns from", async () => {
  const vae = { block_out_channels: [16, 16], norm_num_groups: 4, latent_channels: 3 };
  await writeFile(join(folder, "vae.yaml"), stringify({ vae }));
  const start = join(folder, "start");
  await initCheckpoint(join(folder, "vae.yaml"), start, { seed: 1n, tokenizer: "shapes-64" });
  const run = {
    autoencoder: start,
    imageSize: 16,
    sources: [{ manifest: join(folder, "data", "generate.jsonl"), examples: 24 }],
    steps: 1,
    learningRate: 1e-3,
    latentPictures: 1,
    threads: 2,
  };
  await trained(run, { out: join(folder, "run") });
  expect(at.all).toBeGreaterThanOrEqual(24);
  expect(at.most).toBeLessThanOrEqual(8);
});

test("places are given in the order of asking, also where work fails", async () => {
  const places = new Semaphore(2);
  const begun: number[] = [];
  let now = 0;
  const work = (i: number) => async () => {
    begun.push(i);
    expect(++now).toBeLessThanOrEqual(2);
    await setTimeout(i % 3);
    now--;
    if (i % 2) throw new Error(String(i));
    return i;
  };
  const all = await Promise.allSettled(Array.from({ length: 9 }, (_, i) => places.run(work(i))));
  expect(begun).toEqual([...Array(9).keys()]);
  expect(all.map(({ status }) => status)).toEqual(
    Array.from({ length: 9 }, (_, i) => (i % 2 ? "rejected" : "fulfilled")),
  );
  expect(await places.run(async () => 10)).toBe(10);
});
