/** The cache of prepared pictures: what is in it is right, whoever filled it and however it was left. */
import { execFile } from "node:child_process";
import { promises } from "node:fs";
import {
  appendFile,
  cp,
  type FileHandle,
  mkdtemp,
  readdir,
  readFile,
  rename,
  rm,
  truncate,
  writeFile,
} from "node:fs/promises";
import { tmpdir } from "node:os";
import { join, relative, resolve } from "node:path";
import { setImmediate } from "node:timers/promises";
import { promisify } from "node:util";
import { stringify } from "yaml";
import { type Checkpoint, locateCheckpoint, readCheckpoint, UniFluid } from "../../lib";
import { loadAddon } from "../../lib/addon";
import { writeDataset } from "../../lib/scenes/dataset";
import { Batches } from "../../lib/train/batches";
import { BrokenRecords } from "../../lib/train/broken-records";
import { parseRunConfig, readRunConfig, type UnifiedRunConfig } from "../../lib/train/config";
import { LatentEncoder } from "../../lib/train/latent-encoder";
import { CACHE_FOLDER, Pictures } from "../../lib/train/pictures";

const execute = promisify(execFile);
const SCENES = 24;

let folder: string;
let checkpoint: Checkpoint;
/** Of each image as a process that is alone prepares it. */
let right: Buffer[];

const paths = (data: string) =>
  Array.from({ length: SCENES }, (_, i) =>
    join(data, "images", `${String(i).padStart(6, "0")}.png`),
  );

async function using<T>(
  data: string,
  work: (pictures: Pictures) => Promise<T>,
  of = checkpoint,
): Promise<T> {
  const pictures = await Pictures.open(data, of, { threads: 2 });
  try {
    return await work(pictures);
  } finally {
    await pictures.close();
  }
}

async function bytesOf(pictures: Pictures, path: string): Promise<Buffer> {
  const { pixels, latents } = await pictures.get(path);
  return Buffer.concat([pixels, Buffer.from(latents.buffer)]);
}

const read = (data: string, of = checkpoint) =>
  using(data, (pictures) => Promise.all(paths(data).map((path) => bytesOf(pictures, path))), of);

const filesOf = async (data: string, extension: string) =>
  (await readdir(join(data, CACHE_FOLDER))).filter((name) => name.endsWith(extension)).sort();

async function entriesOf(data: string): Promise<number> {
  let count = 0;
  for (const name of await filesOf(data, ".jsonl"))
    count += (await readFile(join(data, CACHE_FOLDER, name), "utf8")).trimEnd().split("\n").length;
  return count;
}

/** A copy of the data with nothing prepared. */
async function fresh(name: string): Promise<string> {
  const data = join(folder, name);
  await cp(join(folder, "data"), data, { recursive: true });
  return data;
}

beforeAll(async () => {
  folder = await mkdtemp(join(tmpdir(), "pictures-"));
  checkpoint = await readCheckpoint(await locateCheckpoint("shapes-64"));
  await writeDataset(join(folder, "data"), { count: SCENES, seed: 1n, tasks: ["caption"] });
  right = await read(await fresh("alone"));
}, 60_000);
afterAll(() => rm(folder, { recursive: true }));

test("what is kept is what was computed, and is computed once", async () => {
  const data = join(folder, "alone");
  expect(new Set(right.map((bytes) => bytes.toString("base64"))).size).toBe(SCENES);
  expect(await read(data)).toEqual(right);
  expect(await entriesOf(data)).toBe(SCENES);
  expect(await filesOf(data, ".bin")).toHaveLength(1);
});

test("closing waits for what nobody waits for any more, and lets nothing begin", async () => {
  const data = await fresh("closed");
  const pictures = await Pictures.open(data, checkpoint, { threads: 2 });
  const files = paths(data);
  let prepared = 0;
  // As a batch that fails leaves them: some are being read, some are not yet looked at.
  const all = files.map((path) => pictures.prepare(path).then(() => prepared++));
  while (Reflect.get(pictures, "waiting").size === 0) await setImmediate();
  await pictures.close();
  const at = prepared;
  const told = await Promise.allSettled(all);
  expect(prepared).toBe(at);
  expect(await entriesOf(data)).toBe(at);
  const failed = told.filter((one) => one.status === "rejected");
  expect(failed).toHaveLength(SCENES - at);
  for (const { reason } of failed) expect(reason).toMatchObject({ code: "DISPOSED" });
  const late = { path: "late.png", bytes: new Uint8Array(1), modified: 0 };
  await expect(pictures.prepare(late)).rejects.toMatchObject({ code: "DISPOSED" });
});

test("two at once, in turns, do not touch what the other writes", async () => {
  const data = await fresh("turns");
  await using(data, (first) =>
    using(data, async (second) => {
      for (const [i, path] of paths(data).entries()) await (i % 2 ? first : second).prepare(path);
      // Neither knows what the other added; what both have is right.
      for (const pictures of [first, second])
        for (const [i, path] of paths(data).entries())
          expect(await bytesOf(pictures, path)).toEqual(right[i]);
    }),
  );
  expect(await read(data)).toEqual(right);
  expect(await filesOf(data, ".bin")).toHaveLength(2);
});

test("two processes fill one cache, and both leave it whole", async () => {
  const data = await fresh("processes");
  const run = {
    model: "shapes-64",
    sources: [{ manifest: "processes/caption.jsonl", examples: 1 }],
    steps: 1,
    learningRate: 1,
    threads: 1,
  };
  await writeFile(join(folder, "run.yaml"), stringify(run));
  const main = resolve(__dirname, "../../dist/cli/main.js");
  const prepare = () =>
    execute(process.execPath, [main, "prepare", join(folder, "run.yaml"), "--json"]);
  for (const { stdout } of await Promise.all([prepare(), prepare()]))
    expect(JSON.parse(stdout)).toEqual({ pictures: SCENES, brokenRecords: 0 });
  const before = await entriesOf(data);
  expect(await read(data)).toEqual(right);
  // All was there.
  expect(await entriesOf(data)).toBe(before);
}, 120_000);

test("a pack that a kill left half-written is read as far as it goes", async () => {
  const data = await fresh("killed");
  await read(data);
  const [bin] = await filesOf(data, ".bin");
  const [index] = await filesOf(data, ".jsonl");
  const at = (name: string) => join(data, CACHE_FOLDER, name);
  const slot = (await readFile(at(bin!))).length / SCENES;
  // The last two pictures are cut off, one of them in the middle; the index ends in half a line.
  await truncate(at(bin!), (SCENES - 2) * slot + 100);
  await appendFile(at(index!), '{"path": "/a');
  expect(await read(data)).toEqual(right);
  expect(await filesOf(data, ".bin")).toHaveLength(2);
  expect(await entriesOf(data)).toBe(SCENES + 1 + 2);
});

test("the index of a pack may be larger than the longest string", async () => {
  const data = await fresh("large");
  await read(data);
  const [index] = await filesOf(data, ".jsonl");
  const path = join(data, CACHE_FOLDER, index!);
  const lines = (await readFile(path, "utf8")).split("\n");
  // Behind half the lines zeros, which take no room on the disk; what is no object is no entry either.
  await writeFile(
    path,
    lines
      .slice(0, SCENES / 2)
      .join("\n")
      .concat("\n"),
  );
  await truncate(path, 520 * 2 ** 20);
  await appendFile(path, ["", "null", "3", ...lines.slice(SCENES / 2)].join("\n"));
  expect(await read(data)).toEqual(right);
  // All was there.
  expect(await filesOf(data, ".bin")).toHaveLength(1);
  await rm(path);
});

test("a cache of one file, as it was before, is still read", async () => {
  const data = await fresh("old");
  await read(data);
  for (const name of [...(await filesOf(data, ".bin")), ...(await filesOf(data, ".jsonl"))]) {
    const old = name.replace(/-[0-9a-f]{8}\./, ".");
    expect(old).not.toBe(name);
    await rename(join(data, CACHE_FOLDER, name), join(data, CACHE_FOLDER, old));
  }
  expect(await read(data)).toEqual(right);
  expect(await entriesOf(data)).toBe(SCENES);
});

test("latents are the model's own bits, for which its autoencoder alone is loaded", async () => {
  const data = await fresh("encoder");
  const loading = jest.spyOn(loadAddon(), "loadModel");
  try {
    await read(data);
    expect(loading).toHaveBeenCalledTimes(1);
    const [{ tensors, text }] = loading.mock.calls[0]!;
    expect(text).toBeUndefined();
    expect(tensors.filter(({ name }) => !name.startsWith("vae."))).toEqual([]);
  } finally {
    loading.mockRestore();
  }
  // Several of its cells are a token of the model.
  expect(checkpoint.spec.image!.latentPatch).toBeGreaterThan(1);
  await using model = await UniFluid.load(checkpoint.directory, { threads: 2, dtype: "float32" });
  await using(data, async (pictures) => {
    for (const path of paths(data).slice(0, 4))
      expect((await pictures.get(path)).latents).toEqual(await model.encodeImage(path));
  });
});

test("a pack that is cut off while it is read is told, and not read as zeros", async () => {
  const data = await fresh("cut");
  await read(data);
  const [bin] = await filesOf(data, ".bin");
  await using(data, async (pictures) => {
    await truncate(join(data, CACHE_FOLDER, bin!), 1000);
    await expect(pictures.get(paths(data)[0]!)).rejects.toMatchObject({
      code: "TRAINING_DATA",
      message: expect.stringMatching(
        /^cannot read prepared pictures: .*\.bin has 1000 bytes; expected it to reach byte \d+; /,
      ),
    });
  });
});

test("closing closes all, also where some of it fails", async () => {
  const data = await fresh("closing");
  await read(data);
  const pictures = await Pictures.open(data, checkpoint, { threads: 2 });
  await pictures.prepare({ path: "new.png", bytes: await readFile(paths(data)[0]!), modified: 0 });
  const packs: { data: FileHandle }[] = Reflect.get(pictures, "packs");
  const handles = packs.map(({ data }) => data);
  expect(handles).toHaveLength(2);
  const { close } = handles[0]!;
  const closings = handles.map((handle) => jest.spyOn(handle, "close"));
  closings[0]!.mockImplementationOnce(async () => {
    await close.call(handles[0]!);
    throw new Error("EIO");
  });
  const dispose = jest.spyOn(LatentEncoder.prototype, "dispose");
  try {
    await expect(pictures.close()).rejects.toThrow("EIO");
    for (const closing of closings) expect(closing).toHaveBeenCalledTimes(1);
    expect(dispose).toHaveBeenCalledTimes(1);
  } finally {
    dispose.mockRestore();
  }
  const batches = await Batches.open(checkpoint, runOf(join(data, "caption.jsonl")), () => {});
  jest.spyOn(batches.mixture, "close").mockRejectedValueOnce(new Error("EIO"));
  const closed = jest.spyOn(Pictures.prototype, "close");
  try {
    await expect(batches.close()).rejects.toThrow("EIO");
    expect(closed).toHaveBeenCalledTimes(1);
  } finally {
    closed.mockRestore();
  }
});

/** A run of one manifest in `data`. */
const runOf = (manifest: string, change: object = {}) =>
  parseRunConfig(
    {
      model: "shapes-64",
      steps: 1,
      learningRate: 1,
      threads: 2,
      sources: [{ manifest, examples: 1 }],
      ...change,
    },
    "",
    "/",
  ) as UnifiedRunConfig;

test("before training, too many broken records are a share of those that were read", async () => {
  const data = await fresh("many");
  const manifest = join(data, "many.jsonl");
  const prepare = async (broken: number) => {
    const record = (i: number) => ({
      task: "caption",
      image: i < 420 - broken ? "images/000000.png" : "images/none.png",
      text: "a",
    });
    const lines = Array.from({ length: 420 }, (_, i) => JSON.stringify(record(i)));
    await writeFile(manifest, lines.join("\n"));
    const batches = await Batches.open(checkpoint, runOf(manifest), () => {});
    try {
      return [await batches.prepare(() => {}), batches.mixture.broken.counts.broken];
    } finally {
      await batches.close();
    }
  };
  expect(await prepare(4)).toEqual([1, 4]);
  await expect(prepare(5)).rejects.toMatchObject({
    code: "TRAINING_DATA",
    message: expect.stringMatching(/^5 of 420 records seen are broken/),
  });
});

test("a model with another decoder reads what was prepared, one with another encoder does not", async () => {
  const data = await fresh("decoders");
  await read(data);
  /** The shipped model, but for one weight of the named tensor. */
  const changed = async (tensor: string) => {
    const copy = join(folder, `other-${tensor}`);
    await cp(checkpoint.directory, copy, { recursive: true });
    const { files, tensors } = checkpoint.spec;
    const { file, offset } = tensors.find(({ name }) => name === tensor)!;
    const path = join(copy, relative(checkpoint.directory, files[file]!));
    const bytes = await readFile(path);
    bytes.writeUInt16LE(bytes.readUInt16LE(offset) ^ 0x40, offset); // half of a bfloat16 at most
    await writeFile(path, bytes);
    return readCheckpoint(await locateCheckpoint(copy));
  };
  expect(await read(data, await changed("vae.decoder.conv_in.weight"))).toEqual(right);
  expect(await entriesOf(data)).toBe(SCENES);
  for (const [i, tensor] of ["vae.encoder.conv_in.weight", "vae.quant_conv.bias"].entries()) {
    expect(await read(data, await changed(tensor))).not.toEqual(right);
    expect(await entriesOf(data)).toBe((i + 2) * SCENES);
  }
});

test("a cache that goes away is no picture's fault, before the first is kept or after", async () => {
  for (const first of [0, 1]) {
    const data = await fresh(`gone-${first}`);
    await using(data, async (pictures) => {
      const told: string[] = [];
      const broken = new BrokenRecords(1, (message) => told.push(message));
      for (const path of paths(data).slice(0, first)) await pictures.prepare(path);
      await rm(join(data, CACHE_FOLDER), { recursive: true });
      const path = paths(data)[first]!;
      const attempt = broken.attempt({ name: path, counted: path }, async () => {
        await pictures.prepare(path);
      });
      await expect(attempt).rejects.toMatchObject({
        code: "TRAINING_DATA",
        message: expect.stringMatching(/^cannot keep prepared pictures: ENOENT.*"cache"/),
      });
      expect(told).toEqual([]);
      expect(broken.counts.broken).toBe(0);
    });
  }
});

test("a disk that fails at a picture that is kept is no record's fault, one that is gone is", async () => {
  const data = await fresh("failing");
  await read(data);
  const [path] = paths(data) as [string];
  const attempt = (pictures: Pictures, broken: BrokenRecords) =>
    broken.attempt({ name: "record 0", counted: "record 0" }, async () => {
      await pictures.get(path);
    });
  await using(data, async (pictures) => {
    const cause = Object.assign(new Error("EIO: i/o error, stat"), {
      code: "EIO",
      errno: -5,
      syscall: "stat",
    });
    const statting = jest.spyOn(promises, "stat").mockRejectedValueOnce(cause);
    try {
      await expect(attempt(pictures, new BrokenRecords(1, () => {}))).rejects.toMatchObject({
        code: "TRAINING_DATA",
        message: `record 0: cannot read ${path}: EIO: i/o error, stat`,
        cause,
      });
    } finally {
      statting.mockRestore();
    }
    await rm(path);
    const told: string[] = [];
    await attempt(pictures, new BrokenRecords(1, (message) => told.push(message)));
    expect(told).toEqual([`skipped record 0: there is no file ${path}`]);
  });
});

test("pictures of several folders may be kept in one that is named, by a run and by prepare", async () => {
  const [cache, data] = [join(folder, "kept"), await fresh("apart")];
  await fresh("apart-too");
  const settings = {
    model: "shapes-64",
    sources: ["apart", "apart-too"].map((name) => ({
      manifest: join(folder, name, "caption.jsonl"),
      examples: 1,
    })),
    steps: 1,
    learningRate: 1,
    threads: 2,
    cache: "kept",
  };
  await writeFile(join(folder, "apart.yaml"), stringify(settings));
  const main = resolve(__dirname, "../../dist/cli/main.js");
  await execute(process.execPath, [main, "prepare", join(folder, "apart.yaml")]);
  expect(await readdir(data)).not.toContain(CACHE_FOLDER);
  const kept = (await readdir(cache)).sort();
  expect(kept).toHaveLength(2);
  const config = await readRunConfig(join(folder, "apart.yaml"));
  const batches = await Batches.open(checkpoint, config as UnifiedRunConfig, () => {});
  expect((await batches.of(1)).batches[0]).toHaveLength(2);
  await batches.close();
  // All was there.
  expect((await readdir(cache)).sort()).toEqual(kept);
  expect(await readdir(data)).not.toContain(CACHE_FOLDER);
}, 120_000);

test("a folder that cannot be written to is told", async () => {
  const data = join(folder, "none");
  await writeFile(data, "a file");
  await expect(Pictures.open(data, checkpoint, {})).rejects.toMatchObject({
    code: "TRAINING_DATA",
    message: expect.stringMatching(/^cannot keep prepared pictures: .*"cache" in a run's settings/),
  });
});
