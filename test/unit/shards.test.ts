/** What is read of a tar shard: its samples, their files and their faults. */
import { createWriteStream } from "node:fs";
import { mkdtemp, readFile, rm, truncate, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { pipeline } from "node:stream/promises";
import { gzipSync } from "node:zlib";
import { pack } from "tar-stream";
import { readShard, type ShardSample } from "../../lib/train/shards";
import { writeTar } from "../support/sources";

let folder: string;
beforeEach(async () => {
  folder = await mkdtemp(join(tmpdir(), "shards-"));
});
afterEach(() => rm(folder, { recursive: true }));

/** Writes the checksum of a header that was changed. */
function sign(header: Buffer): void {
  header.fill(" ", 148, 156);
  const sum = header.reduce((total, byte) => total + byte, 0);
  header.write(`${sum.toString(8).padStart(6, "0")}\0 `, 148);
}

describe("samples of a shard", () => {
  const samples = async (path: string) => {
    const out = [];
    for await (const { key, files, index, fault } of readShard(path))
      out.push({ key, index, fault, files: [...files.keys()] });
    return out;
  };

  test("are files that share their name up to the first dot", async () => {
    const path = join(folder, "a.tar");
    await writeTar(path, {
      "x/000.JPG": "j",
      "x/000.target.png": "t",
      "x/._000.png": "left by another system",
      "x/000.json": "{}",
      README: "no key",
      "y/000.txt": "another folder, another key",
      [`long/${"n".repeat(180)}.txt`]: "a name beyond what old archives hold",
    });
    expect(await samples(path)).toMatchObject([
      { index: 0, key: "x/000", files: ["jpg", "target.png", "json"], fault: undefined },
      { index: 1, key: "y/000", files: ["txt"] },
      { index: 2, key: `long/${"n".repeat(180)}`, files: ["txt"] },
    ]);
  });

  test("may be compressed", async () => {
    const path = join(folder, "a.tar");
    await writeTar(path, { "0.png": "one", "1.png": "two" });
    const packed = gzipSync(await readFile(path));
    for (const name of ["a.tar.gz", "a.TGZ"]) {
      await writeFile(join(folder, name), packed);
      expect(await samples(join(folder, name))).toEqual(await samples(path));
    }
    await writeFile(join(folder, "a.tgz"), packed.subarray(0, packed.length - 20));
    expect((await samples(join(folder, "a.tgz"))).at(-1)).toMatchObject({
      fault: expect.stringContaining("damaged"),
    });
    await writeFile(join(folder, "b.tar.gz"), "no archive");
    expect(await samples(join(folder, "b.tar.gz"))).toMatchObject([
      { fault: expect.stringContaining("damaged") },
    ]);
  });

  test("end with a fault where the archive is cut off or is none", async () => {
    const path = join(folder, "a.tar");
    const big = new Uint8Array(5000);
    await writeTar(path, { "0.png": big, "1.png": big, "2.png": big });
    await truncate(path, 2 * 512 + 5120 + 100);
    expect(await samples(path)).toEqual([
      { key: "0", index: 0, files: ["png"], fault: undefined },
      { key: "1", index: 1, files: [], fault: expect.stringContaining("damaged") },
    ]);
    await writeFile(path, "x".repeat(2000));
    expect(await samples(path)).toMatchObject([{ fault: expect.stringContaining("damaged") }]);
    // A copy that failed; an archive of nothing is one.
    for (const [name, fault] of [
      ["none.tar", "no bytes"],
      ["none.tar.gz", "damaged"],
    ] as const) {
      await writeFile(join(folder, name), "");
      expect(await samples(join(folder, name))).toEqual([
        { key: "its beginning", index: 0, files: [], fault: expect.stringContaining(fault) },
      ]);
    }
    await writeTar(path, {});
    expect(await samples(path)).toEqual([]);
    await expect(samples(join(folder, "other.tar"))).rejects.toMatchObject({ code: "ENOENT" });
  });

  test("with a file that tar -S stored are at fault, and say so", async () => {
    const path = join(folder, "a.tar");
    const sparse = "its png is stored sparse, which is not read: pack without tar -S";
    const archive = pack();
    const pax = { "GNU.sparse.major": "1", "GNU.sparse.name": "x/0.png" };
    archive.entry({ name: "x/GNUSparseFile.1/0.png", pax }, "holes");
    for (const name of ["x/0.txt", "1.png", "1.txt", "2.png"]) archive.entry({ name }, "text");
    archive.finalize();
    await pipeline(archive, createWriteStream(path));
    const bytes = await readFile(path);
    const retype = (name: string, type: string) => {
      const at = bytes.indexOf(name);
      bytes.write(type, at + 156);
      sign(bytes.subarray(at, at + 512));
    };
    // As GNU tar's own format has it.
    retype("1.png", "S");
    await writeFile(path, bytes);
    const first = { key: "x/0", index: 0, files: ["txt"], fault: sparse };
    const second = { key: "1", index: 1, files: ["txt"], fault: sparse };
    const third = { key: "2", index: 2, files: ["png"], fault: undefined };
    expect(await samples(path)).toEqual([first, second, third]);
    // With many holes, blocks follow that read as damage.
    bytes.fill(1, bytes.indexOf("1.txt"), bytes.indexOf("1.txt") + 512);
    await writeFile(path, bytes);
    expect(await samples(path)).toEqual([
      first,
      { ...second, files: [], fault: expect.stringMatching(`^${sparse}; .*damaged here`) },
    ]);
  });

  test("may be of the oldest format, which has no name", async () => {
    const path = join(folder, "a.tar");
    await writeTar(path, { "0.png": "one", "0.txt": "text" });
    const bytes = await readFile(path);
    for (const header of [bytes.subarray(0, 512), bytes.subarray(1024, 1536)])
      sign(header.fill(0, 257));
    await writeFile(path, bytes);
    expect(await samples(path)).toEqual([
      { key: "0", index: 0, files: ["png", "txt"], fault: undefined },
    ]);
    bytes[1024]! ^= 1;
    await writeFile(path, bytes);
    expect((await samples(path)).map(({ fault }) => fault)).toEqual([
      expect.stringContaining("damaged"),
    ]);
  });

  test("whose files are too large together are at fault, and hold nothing", async () => {
    const path = join(folder, "a.tar");
    const half = new Uint8Array(600);
    await writeTar(path, {
      "0.png": half,
      "0.target.png": half,
      "0.json": "{}",
      "1.png": half,
      "1.json": "{}",
    });
    const read: ShardSample[] = [];
    for await (const sample of readShard(path, undefined, 1000)) read.push(sample);
    expect(read.map(({ key, files }) => [key, [...files.keys()]])).toEqual([
      ["0", []],
      ["1", ["png", "json"]],
    ]);
    expect(read.map(({ fault }) => fault)).toEqual([
      "its files have 1202 bytes together, where at most 1000 are read",
      undefined,
    ]);
  });

  test("without an archive's end are all used, with a remark", async () => {
    const path = join(folder, "a.tar");
    await writeTar(path, { "0.png": "one", "1.png": "two" });
    const bytes = await readFile(path);
    expect(bytes).toHaveLength(4 * 512 + 1024);
    const remarks = async (end: number, name = "b.tar") => {
      const content = bytes.subarray(0, end);
      await writeFile(join(folder, name), name.endsWith("gz") ? gzipSync(content) : content);
      const told: string[] = [];
      let count = 0;
      for await (const { fault } of readShard(join(folder, name), (m) => told.push(m))) {
        expect(fault).toBeUndefined();
        count++;
      }
      return { count, told };
    };
    const told = [expect.stringMatching(/b\.tar.* lacks the blocks of zeros that end a tar file/)];
    expect(await remarks(4 * 512)).toEqual({ count: 2, told });
    expect(await remarks(4 * 512, "b.tar.gz")).toEqual({ count: 2, told });
    expect(await remarks(2 * 512)).toEqual({ count: 1, told });
    // Some write one block of zeros.
    for (const end of [4 * 512 + 512, bytes.length])
      expect(await remarks(end)).toEqual({ count: 2, told: [] });
    // Joined archives have an end in their middle.
    await writeFile(join(folder, "c.tar"), Buffer.concat([bytes, bytes]));
    expect(await samples(join(folder, "c.tar"))).toHaveLength(4);
  });
});
