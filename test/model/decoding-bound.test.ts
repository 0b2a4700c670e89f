/** However many images a call has, or examples a step, few are decoded at once. */
import files, { mkdtemp, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { setTimeout } from "node:timers/promises";
import sharp from "sharp";
import { stringify } from "yaml";
import { locateCheckpoint, readCheckpoint, UniFluid } from "../../lib";
import { loadAddon } from "../../lib/addon";
import { Semaphore } from "../../lib/decoding";
import { initCheckpoint } from "../../lib/init/init";
import { writeDataset } from "../../lib/scenes/dataset";
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

test("a signal ends the wait for a place, which nobody else loses by it", async () => {
  const places = new Semaphore(1);
  const reason = new Error("enough");
  let finish = () => {};
  const first = places.run(() => new Promise<void>((resolve) => (finish = resolve)));
  const controller = new AbortController();
  const work = jest.fn(async () => {});
  const given = places.run(work, controller.signal);
  const last = places.run(async () => "last", new AbortController().signal);
  controller.abort(reason);
  await expect(given).rejects.toBe(reason);
  await expect(places.run(work, AbortSignal.abort(reason))).rejects.toBe(reason);
  finish();
  await first;
  expect(await last).toBe("last");
  expect(work).not.toHaveBeenCalled();
});

describe("images of calls", () => {
  let model: UniFluid;
  beforeAll(async () => {
    model = await UniFluid.load("shapes-64", { device: "cpu", threads: 2 });
  });
  afterAll(() => model.dispose());

  const image = (i: number) => ({
    pixels: new Uint8Array(90 * 70 * 3).fill(i),
    width: 90,
    height: 70,
  });
  const images = Array.from({ length: 24 }, (_, i) => image(i));

  /** How many images are there at once while `work` runs: each takes a while to resize. */
  async function mostDuring(work: () => Promise<unknown>): Promise<number> {
    const addon = loadAddon();
    const resize = addon.resizeImage;
    let [now, most] = [0, 0];
    const spy = jest.spyOn(addon, "resizeImage").mockImplementation(async (...args) => {
      most = Math.max(most, ++now);
      await setTimeout(20);
      now--;
      return resize(...args);
    });
    try {
      await work();
    } finally {
      spy.mockRestore();
    }
    return most;
  }

  const calls: Record<string, () => Promise<unknown>> = {
    caption: () => model.caption(images, { maxNewTokens: 1 }),
    edit: () =>
      model.edit(
        images,
        images.map(() => "make it blue"),
        { steps: 1 },
      ),
    encodeImage: () => Promise.all(images.map((one) => model.encodeImage(one))),
    imageFeatures: () => Promise.all(images.map((one) => model.imageFeatures(one))),
  };
  test.each(Object.keys(calls))("of %s", async (name) => {
    const most = await mostDuring(calls[name]!);
    expect(most).toBeGreaterThan(1);
    expect(most).toBeLessThanOrEqual(8);
  });

  /** Resizing that goes on until the gate is opened. */
  function gated() {
    const addon = loadAddon();
    const resize = addon.resizeImage;
    let open = () => {};
    const gate = new Promise<void>((resolve) => {
      open = resolve;
    });
    const spy = jest.spyOn(addon, "resizeImage").mockImplementation(async (...args) => {
      await gate;
      return resize(...args);
    });
    const begun = async (count: number) => {
      while (spy.mock.calls.length < count) await setTimeout(5);
    };
    return { spy, open, begun };
  }

  test("a call that ends does not wait for its image, which keeps its place until it is done", async () => {
    const other = await UniFluid.load("shapes-64", { device: "cpu", threads: 1 });
    const { spy, open, begun } = gated();
    try {
      const disposed = other.caption(image(1));
      const run = model.captionAll([image(1)]);
      const left = run.next();
      const controller = new AbortController();
      const { signal } = controller;
      const calls = [
        model.caption(image(1), { signal }),
        model.answerStream(image(1), "how many?", { signal }).next(),
        model.edit(image(1), "make it blue", { signal }),
        model.encodeImage(image(1), { signal }),
        model.imageFeatures(image(1), { signal }),
        model.logits({ image: image(1), task: "caption", signal }),
      ];
      await begun(8);
      const reason = new Error("enough");
      controller.abort(reason);
      for (const call of calls) await expect(call).rejects.toBe(reason);
      await run.return();
      expect(await left).toEqual({ done: true, value: undefined });
      await other.dispose();
      await expect(disposed).rejects.toMatchObject({ code: "DISPOSED" });
      const next = model.caption(image(1), { maxNewTokens: 1 });
      await setTimeout(20);
      expect(spy).toHaveBeenCalledTimes(8);
      open();
      expect(await next).toEqual(expect.any(String));
    } finally {
      open();
      spy.mockRestore();
      await other.dispose();
    }
  });

  test("files are read as their turn comes", async () => {
    const path = join(folder, "large.png");
    await sharp({ create: { width: 90, height: 70, channels: 3, background: "red" } }).toFile(path);
    const reads = jest.spyOn(files, "readFile");
    const { spy, open, begun } = gated();
    try {
      const captions = Array.from({ length: 24 }, () => model.caption(path, { maxNewTokens: 1 }));
      // One that is not there need not wait to be told.
      await expect(model.caption(join(folder, "none.png"))).rejects.toMatchObject({
        code: "IMAGE_NOT_FOUND",
      });
      await begun(8);
      await setTimeout(20);
      expect(reads).toHaveBeenCalledTimes(8);
      open();
      expect(await Promise.all(captions)).toHaveLength(24);
      expect(reads).toHaveBeenCalledTimes(24);
    } finally {
      open();
      spy.mockRestore();
      reads.mockRestore();
    }
  });

  test("one that comes slowly keeps no other waiting", async () => {
    const controller = new AbortController();
    const stalled = { arrayBuffer: () => new Promise<ArrayBuffer>(() => {}) };
    const waiting = Array.from({ length: 9 }, () =>
      model.caption(stalled, { signal: controller.signal }),
    );
    expect(await model.caption(image(1), { maxNewTokens: 1 })).toEqual(expect.any(String));
    controller.abort(new Error("enough"));
    for (const one of waiting) await expect(one).rejects.toThrow("enough");
  });
});
