/** Where training's records come from: manifests and tar shards, their order, positions and faults. */
import { createHash } from "node:crypto";
import { createWriteStream } from "node:fs";
import {
  mkdir,
  mkdtemp,
  open as openFile,
  readFile,
  rm,
  truncate,
  writeFile,
} from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { pipeline } from "node:stream/promises";
import { gzipSync } from "node:zlib";
import { pack } from "tar-stream";
import { Random } from "../../lib/philox";
import { writeDataset } from "../../lib/scenes/dataset";
import { parseRunConfig } from "../../lib/train/config";
import { ManifestSource } from "../../lib/train/manifest-source";
import type { PackedPicture } from "../../lib/train/pictures";
import { ShardSource } from "../../lib/train/shard-source";
import { ShuffleBuffer } from "../../lib/train/shuffle-buffer";
import type { Source, SourceRecord } from "../../lib/train/source";
import { captionManifest, captionShards, writeTar } from "../support/sources";

let folder: string;
beforeEach(async () => {
  folder = await mkdtemp(join(tmpdir(), "sources-"));
});
afterEach(() => rm(folder, { recursive: true }));

const order = { seed: 1n, place: 0 };
const random = () => new Random(0n, 0, 0);

async function take(source: Source, count: number): Promise<number[]> {
  const out: number[] = [];
  for (let i = 0; i < count; i++) out.push(Number((await source.next()).example(random()).text));
  return out;
}
const sorted = (values: readonly number[]) => [...values].sort((a, b) => a - b);
const upTo = (count: number) => [...Array(count).keys()];

describe.each<[string, (count: number, shuffle?: number, seed?: bigint) => Promise<Source>]>([
  [
    "a manifest",
    async (count, shuffle, seed = 1n) =>
      ManifestSource.open(await captionManifest(folder, count), { ...order, seed, shuffle }),
  ],
  [
    "shards",
    async (count, shuffle, seed = 1n) => {
      const pattern = await captionShards(folder, [5, count - 12, 7]);
      return ShardSource.open([pattern], { ...order, seed, shuffle });
    },
  ],
])("%s", (_, open) => {
  const COUNT = 24;

  test("gives each record once an epoch, in another order each time and for each seed", async () => {
    const source = await open(COUNT);
    const [first, second] = [await take(source, COUNT), await take(source, COUNT)];
    expect(sorted(first)).toEqual(upTo(COUNT));
    expect(sorted(second)).toEqual(upTo(COUNT));
    expect(second).not.toEqual(first);
    expect(first).not.toEqual(upTo(COUNT));
    expect(await take(await open(COUNT), COUNT)).toEqual(first);
    expect(await take(await open(COUNT, undefined, 2n), COUNT)).not.toEqual(first);
    await source.close();
  });

  test("shuffles as far as the buffer reaches; a buffer of one leaves the order as it is", async () => {
    const plain = await open(COUNT, 1);
    expect(await take(plain, 2 * COUNT)).toEqual([...upTo(COUNT), ...upTo(COUNT)]);
    const near = await open(COUNT, 4);
    const drawn = await take(near, COUNT);
    expect(sorted(drawn)).toEqual(upTo(COUNT));
    expect(drawn).not.toEqual(upTo(COUNT));
    await Promise.all([plain.close(), near.close()]);
  });

  test.each([undefined, 1, 4])(
    "goes on from any position as if it had not stopped (buffer: %s)",
    async (shuffle) => {
      const whole = await open(COUNT, shuffle);
      const all = await take(whole, 2 * COUNT + 3);
      for (const stop of [0, 1, 5, 12, COUNT - 1, COUNT, COUNT + 4]) {
        const before = await open(COUNT, shuffle);
        await take(before, stop);
        const position = JSON.parse(JSON.stringify(before.position()));
        const after = await open(COUNT, shuffle);
        expect(await after.restore(position)).toBe(true);
        expect(await take(after, all.length - stop)).toEqual(all.slice(stop));
        await Promise.all([before.close(), after.close()]);
      }
      await whole.close();
    },
  );

  test.each([
    ["another seed", undefined, undefined, 2n],
    ["no shuffling any more", undefined, 1, 1n],
    ["shuffling from now on", 1, undefined, 1n],
  ])("gives each record once in an epoch that goes on with %s", async (_, before, after, seed) => {
    for (const stop of [1, 8, COUNT - 1, COUNT, COUNT + 7]) {
      const first = await open(COUNT, before);
      const drawn = await take(first, stop);
      const second = await open(COUNT, after, seed);
      expect(await second.restore(JSON.parse(JSON.stringify(first.position())))).toBe(true);
      drawn.push(...(await take(second, 1)));
      // Once more in the same epoch, as it began.
      const third = await open(COUNT, after, seed);
      expect(await third.restore(JSON.parse(JSON.stringify(second.position())))).toBe(true);
      drawn.push(...(await take(third, 3 * COUNT - drawn.length)));
      for (let epoch = 0; epoch < 3; epoch++)
        expect(sorted(drawn.slice(epoch * COUNT, (epoch + 1) * COUNT))).toEqual(upTo(COUNT));
      // Later epochs are those of the settings of now.
      const plain = await open(COUNT, after, seed);
      expect(drawn.slice(2 * COUNT)).toEqual((await take(plain, 3 * COUNT)).slice(2 * COUNT));
      await Promise.all([first, second, third, plain].map((source) => source.close()));
    }
  });

  test("goes on from positions of earlier versions, which do not say what an order follows from", async () => {
    const before = await open(COUNT);
    await take(before, 5);
    const { order: told, ...old } = before.position() as { order: object };
    expect(told).toMatchObject({ seed: "1" });
    const after = await open(COUNT);
    expect(await after.restore(JSON.parse(JSON.stringify(old)))).toBe(true);
    expect(await take(after, COUNT)).toEqual(await take(before, COUNT));
    await Promise.all([before.close(), after.close()]);
  });

  test("lists every record once, as they lie", async () => {
    const source = await open(COUNT);
    const texts: number[] = [];
    for await (const record of source.all()) texts.push(Number(record.example(random()).text));
    expect(texts).toEqual(upTo(COUNT));
    await source.close();
  });

  test("does not go on from what is no position", async () => {
    const source = await open(COUNT);
    const { drawn: _, ...named } = { drawn: 0, manifest: "other.jsonl", records: COUNT };
    for (const wrong of [undefined, null, 3, {}, { drawn: -1 }, { ...named, drawn: 2 }])
      expect([wrong, await source.restore(wrong)]).toEqual([wrong, false]);
    await source.close();
  });
});

test("a shuffle buffer with room for all gives every order alike", () => {
  const counts = new Map<string, number>();
  const numbers = new Random(3n, 1, 1);
  for (let i = 0; i < 6000; i++) {
    const buffer = new ShuffleBuffer<string>(3, numbers);
    for (const item of "abc") buffer.push(item);
    expect(buffer.full).toBe(true);
    const drawn = [buffer.take(), buffer.take(), buffer.take()].join("");
    counts.set(drawn, (counts.get(drawn) ?? 0) + 1);
    expect(buffer.take()).toBeUndefined();
  }
  expect(counts.size).toBe(6);
  // 1000 of each are expected, with a standard deviation of 29.
  for (const count of counts.values()) expect(Math.abs(count - 1000)).toBeLessThan(150);
});

describe("records of shards", () => {
  const examples = async (
    files: Record<string, string | Uint8Array>,
    task?: "caption" | "generate",
  ) => {
    const path = join(folder, "a.tar");
    await writeTar(path, files);
    const source = await ShardSource.open([path], { ...order, task });
    const out = [];
    for await (const record of source.all()) out.push(record);
    return out;
  };

  test("take their pictures by name, and other fields as a manifest's", async () => {
    const [edit, answer] = await examples({
      "0.json": JSON.stringify({ task: "edit", image: "old/name.png", instruction: "turn it" }),
      "0.webp": "before",
      "0.target.jpg": "after",
      "1.json": JSON.stringify({ task: "answer", question: "what?", answer: "that" }),
      "1.png": "picture",
    });
    const path = join(folder, "a.tar");
    expect(edit!.name).toBe(`${path}: sample 0 (0)`);
    expect(edit!.example(random())).toMatchObject({
      task: "edit",
      prompt: "turn it",
      image: { path: `${path}/0/0.webp`, bytes: Buffer.from("before") },
      target: { path: `${path}/0/0.target.jpg`, bytes: Buffer.from("after") },
    });
    expect(edit!.pictures()).toMatchObject([
      { path: `${path}/0/0.webp` },
      { path: `${path}/0/0.target.jpg` },
    ]);
    expect(answer!.pictures()).toMatchObject([{ path: `${path}/1/1.png` }]);
    expect(answer!.example(random())).toMatchObject({
      task: "answer",
      prompt: "what?",
      text: "that",
    });
  });

  test("a plain text is a caption, or a prompt where the source says so; metadata beside it is none", async () => {
    const files = { "0.jpg": "p", "0.txt": "\ufeffa red star\n", "0.json": '{"url": "somewhere"}' };
    const [caption] = await examples(files);
    expect(caption!.example(random())).toMatchObject({ task: "caption", text: "a red star" });
    const [prompt] = await examples(files, "generate");
    expect(prompt!.example(random())).toMatchObject({ task: "generate", prompt: "a red star" });
  });

  test.each<[string, Record<string, string | Uint8Array>, RegExp]>([
    ["without a picture", { "0.txt": "a" }, /such as 0\.png/],
    ["without a text", { "0.png": "p" }, /0\.json with a task, or 0\.txt/],
    ["with JSON that is none", { "0.png": "p", "0.json": "{" }, /not JSON/],
    [
      "of an edit without its picture",
      { "0.png": "p", "0.json": '{"task": "edit", "instruction": "a"}' },
      /such as 0\.target\.png/,
    ],
    ["of an unknown task", { "0.png": "p", "0.json": '{"task": "sing"}' }, /task/],
    ["with an empty text", { "0.png": "p", "0.txt": " \n" }, /text/],
    [
      "with a text in Latin-1",
      { "0.png": "p", "0.txt": Buffer.from("\u00e9", "latin1") },
      /^expected UTF-8 text$/,
    ],
    [
      "with JSON in Latin-1",
      { "0.png": "p", "0.json": Buffer.from('{"task": "caption", "text": "\u00e9"}', "latin1") },
      /^expected UTF-8 text$/,
    ],
    [
      "with a text in UTF-16 and its mark",
      { "0.png": "p", "0.txt": Buffer.from("\ufeffa star", "utf16le") },
      /^expected UTF-8 text$/,
    ],
    [
      "with a text in UTF-16",
      { "0.png": "p", "0.txt": Buffer.from("a star", "utf16le") },
      /^expected UTF-8 text but found a NUL$/,
    ],
  ])("one %s is named", async (_, files, message) => {
    const [record] = await examples(files);
    expect(() => record!.example(random())).toThrow(
      expect.objectContaining({ code: "INVALID_RECORD", message: expect.stringMatching(message) }),
    );
  });

  test("that share a key, where shards were joined, are told apart", async () => {
    const records = await examples({ "0.png": "p", "0.txt": "a", "1.txt": "b", "./0.png": "q" });
    expect(records.map(({ name }) => name.replace(/.*: /, ""))).toEqual([
      "sample 0 (0)",
      "sample 1 (1)",
      "sample 2 (0)",
    ]);
    const pathAt = (i: number) => (records[i]!.pictures()[0] as PackedPicture).path;
    expect(pathAt(2)).not.toBe(pathAt(0));
  });

  test("links are told, since an archive has nothing of what they lead to", async () => {
    const outcomesOf = async (files: string[]) => {
      const path = join(folder, "a.tar");
      const archive = pack();
      for (const file of files) {
        const [name, link] = file.split(" -> ") as [string, string?];
        if (link) archive.entry({ name, type: "symlink", linkname: link });
        else archive.entry({ name }, "text");
      }
      archive.finalize();
      await pipeline(archive, createWriteStream(path));
      const remarks: string[] = [];
      const onRemark = (message: string) => void remarks.push(message);
      const source = await ShardSource.open([path], { ...order, onRemark });
      const outcomes: unknown[] = [];
      for await (const record of source.all())
        try {
          outcomes.push(record.example(random()).text);
        } catch (error) {
          outcomes.push((error as Error).message);
        }
      return { outcomes, remarks };
    };
    const told = /1\.json with a task, or 1\.txt; its txt is a link, .*tar -h/;
    const mixed = ["1.png", "1.txt -> ../1", "2.png", "2.txt", "2.notes -> ../2"];
    expect(await outcomesOf(mixed)).toEqual({
      outcomes: [expect.stringMatching(told), "text"],
      remarks: [],
    });
    // Those of no sample neither begin nor end one.
    const among = ["0.png -> ../0", "1.png", "latest.txt -> 1.txt", "1.txt", "2.png", "2.txt"];
    expect(await outcomesOf(among)).toEqual({
      outcomes: ["text", "text"],
      remarks: [expect.stringMatching(/has links in place of pictures \(0\)/)],
    });
    expect(await outcomesOf(["0.png -> ../0", "0.txt -> ../1", "latest.txt -> 0.txt"])).toEqual({
      outcomes: [expect.stringMatching(/such as 0\.png; its png and txt are links, .*tar -h/)],
      remarks: [],
    });
  });

  test("a file that is there twice makes its sample a broken one", async () => {
    const [record] = await examples({ "0.png": "p", "0.PNG": "q", "0.txt": "a" });
    expect(() => record!.example(random())).toThrow(/png is there twice/);
  });
});

test("shards that are missing, empty or changed are told", async () => {
  const pattern = await captionShards(folder, [2, 2]);
  const refused = { code: "TRAINING_DATA" };
  const missing = ShardSource.open([join(folder, "a-{0..2}.tar")], order);
  await expect(missing).rejects.toMatchObject({
    ...refused,
    message: expect.stringContaining("a-2.tar"),
  });
  // What the system says of a shard is no damage of an archive, which would count as a record.
  await mkdir(join(folder, "unread.tar"));
  const unread = await ShardSource.open([join(folder, "unread.tar")], order);
  await expect(unread.next()).rejects.toMatchObject({
    ...refused,
    message: expect.stringMatching(/^cannot read .*unread\.tar: EISDIR/),
  });
  await writeTar(join(folder, "empty.tar"), {});
  const empty = await ShardSource.open([join(folder, "empty.tar")], order);
  await expect(empty.next()).rejects.toMatchObject({
    ...refused,
    message: expect.stringContaining("no records"),
  });
  const source = await ShardSource.open([pattern], order);
  await take(source, 1);
  const position = source.position();
  // Other shards: the place has no meaning there.
  expect(await (await ShardSource.open([join(folder, "a-0.tar")], order)).restore(position)).toBe(
    false,
  );
  await writeTar(join(folder, "a-0.tar"), {});
  // What waited and is gone is passed over; the rest comes.
  const remarks: string[] = [];
  const onRemark = (message: string) => remarks.push(message);
  const changed = await ShardSource.open([pattern], { ...order, onRemark });
  expect(position.buffer.some(([shard]) => shard === 0)).toBe(true);
  const left = position.buffer.filter(([shard]) => shard === 1).map(([, sample]) => 2 + sample);
  expect(await changed.restore(JSON.parse(JSON.stringify(position)))).toBe(true);
  expect(remarks).toEqual([
    expect.stringMatching(/a-0\.tar has changed since the run stopped: \d of its samples/),
  ]);
  expect(sorted(await take(changed, left.length))).toEqual(sorted(left));
  expect(sorted(await take(changed, 2))).toEqual([2, 3]);
  // With most of them changed they are others.
  await writeTar(join(folder, "a-1.tar"), {});
  expect(await (await ShardSource.open([pattern], order)).restore(position)).toBe(false);
  await Promise.all([source.close(), changed.close()]);
});

test("a source knows how many different records it has given, and which names are of them", async () => {
  const path = await captionManifest(folder, 4);
  const pattern = await captionShards(folder, [3, 2]);
  const manifest = await ManifestSource.open(path, order);
  const shards = await ShardSource.open([pattern], order);
  expect([manifest.given, shards.given]).toEqual([0, 0]);
  const ofManifest = (await manifest.next()).counted;
  const ofShards = (await shards.next()).counted;
  const [third, sample] = ["source 0: record 3", "source 0: shard 1: sample 0"];
  for (const [kept, inManifest, inShards] of [
    [ofManifest, ofManifest, undefined],
    [ofShards, undefined, ofShards],
    ["source 1: record 3", undefined, undefined],
    // Of earlier versions.
    [`${path}: record 3`, third, undefined],
    [`${path}: record 3 (line 5)`, third, undefined],
    [`${path}x: record 3`, undefined, undefined],
    [`${join(folder, "a-1.tar")}: sample 0 (its beginning)`, undefined, sample],
    [`${join(folder, "b-1.tar")}: sample 0 (0)`, undefined, undefined],
  ])
    expect([kept, manifest.countedAs(kept!), shards.countedAs(kept!)]).toEqual([
      kept,
      inManifest,
      inShards,
    ]);
  expect([ofManifest, ofShards]).toEqual([
    expect.stringMatching(/^source 0: record \d$/),
    expect.stringMatching(/^source 0: shard \d: sample \d$/),
  ]);
  expect([manifest.given, shards.given]).toEqual([1, 1]);
  await Promise.all([take(manifest, 6), take(shards, 5)]);
  expect([manifest.given, shards.given]).toEqual([4, 5]);
  const after = await ShardSource.open([pattern], order);
  expect(await after.restore(JSON.parse(JSON.stringify(shards.position())))).toBe(true);
  expect(after.given).toBe(5);
  await Promise.all([shards.close(), after.close()]);
});

test("a manifest of other records begins anew, one with some mended goes on", async () => {
  const path = await captionManifest(folder, 100);
  const open = () => ManifestSource.open(path, order);
  const before = await open();
  const all = await take(before, 10);
  const position = JSON.parse(JSON.stringify(before.position()));
  const lines = (await readFile(path, "utf8")).split("\n");
  const change = (some: (i: number) => boolean) =>
    writeFile(
      path,
      lines.map((line, i) => (some(i) ? line.replace("a.png", "b.png") : line)).join("\n"),
    );
  await change((i) => i < 20);
  const mended = await open();
  expect(await mended.restore(position)).toBe(true);
  expect(await take(mended, 3)).toEqual(await take(before, 3));
  await change((i) => i >= 20);
  const other = await open();
  expect(await other.restore(position)).toBe(false);
  expect(await take(other, 10)).toEqual(all);
  // Positions of earlier versions do not tell.
  const { hashes: _, ...old } = position;
  expect(await (await open()).restore(old)).toBe(true);
  expect(await (await open()).restore({ drawn: 10 })).toBe(true);
});

test("positions of shards of earlier versions, which have no sizes, are gone on from", async () => {
  const source = await ShardSource.open([await captionShards(folder, [3, 3])], order);
  await take(source, 2);
  const { sizes, ...old } = source.position();
  expect(sizes).toHaveLength(2);
  const after = await ShardSource.open([join(folder, "a-{0..1}.tar")], order);
  expect(await after.restore(JSON.parse(JSON.stringify(old)))).toBe(true);
  expect(await take(after, 4)).toEqual(await take(source, 4));
  await Promise.all([source.close(), after.close()]);
});

describe("manifests", () => {
  const open = async (content: string | Uint8Array, name = "a.jsonl") => {
    await writeFile(join(folder, name), content);
    return ManifestSource.open(join(folder, name), order);
  };
  const outcomes = async (content: string | Uint8Array) => {
    const out: [string, unknown][] = [];
    for await (const record of (await open(content)).all()) {
      const name = record.name.replace(/.*a\.jsonl: /, "");
      try {
        out.push([name, record.example(random()).text]);
      } catch (error) {
        expect(error).toMatchObject({ code: "INVALID_RECORD" });
        out.push([name, (error as Error).message]);
      }
    }
    return out;
  };
  const caption = { task: "caption", image: "a.png", text: "a" };

  test("may begin with a byte order mark, and have blank lines, which lines in names count", async () => {
    const line = JSON.stringify(caption);
    expect(await outcomes(`\uFEFF${line}\r\n\r\n${line}\r\n{"task"\r\n`)).toEqual([
      ["record 0 (line 1)", "a"],
      ["record 1 (line 3)", "a"],
      ["record 2 (line 4)", expect.stringMatching(/^not JSON/)],
    ]);
  });

  test("in another encoding than UTF-8 have broken records where it tells", async () => {
    const line = JSON.stringify({ ...caption, text: "caf\u00e9" });
    const lines = [Buffer.from(line, "latin1"), Buffer.from("\n"), Buffer.from(line)];
    expect(await outcomes(Buffer.concat(lines))).toEqual([
      ["record 0 (line 1)", "expected UTF-8 text"],
      ["record 1 (line 2)", "caf\u00e9"],
    ]);
    expect(await outcomes(Buffer.from(JSON.stringify(caption), "utf16le"))).toEqual([
      ["record 0 (line 1)", "expected UTF-8 text but found a NUL"],
    ]);
  });

  test.each([
    [
      { ...caption, task: "generate" },
      "prompt: expected a text or a list of texts, none of them empty",
    ],
    [{ ...caption, text: "" }, "text: expected a text that is not empty"],
    [
      { ...caption, text: ["a", 3] },
      "text: expected a text or a list of texts, none of them empty",
    ],
    [
      { ...caption, task: "edit", target: "a" },
      "instruction: expected a text or a list of texts, none of them empty",
    ],
    [{ ...caption, image: undefined }, "image: expected a text"],
    [{ ...caption, image: "a\0.png" }, "image: expected a path without a NUL"],
    [
      { ...caption, task: "edit", target: "\0", instruction: "b" },
      "target: expected a path without a NUL",
    ],
    [{ ...caption, task: "sing" }, "task: expected generate or caption or answer or edit"],
    [{ ...caption, task: undefined }, "task: expected generate or caption or answer or edit"],
    [3, "record: expected an object"],
  ])("%j is told", async (record, message) => {
    expect(await outcomes(JSON.stringify(record))).toEqual([["record 0 (line 1)", message]]);
    if (message.includes("NUL")) {
      const source = await open(JSON.stringify(record));
      await expect(source.next().then((r) => r.pictures())).rejects.toThrow(message);
    }
  });

  test("have blank lines of any spaces, and bytes that are no UTF-8, as texts have them", async () => {
    const line = Buffer.from(JSON.stringify(caption));
    const lines = [
      ...["", " ", "\t\r", "\u00a0\u2003", "\ufeff"].map((blank) => Buffer.from(blank)),
      line,
      Buffer.from([0xff]),
      Buffer.from([0xe2]),
      line,
    ];
    const content = Buffer.concat(lines.flatMap((bytes) => [bytes, Buffer.from("\n")]));
    const wanted = content.toString().split("\n");
    const source = await open(content);
    const names: string[] = [];
    for await (const { name } of source.all()) names.push(name.replace(/.*\(line (.*)\)/, "$1"));
    const numbers = wanted.flatMap((text, i) => (text.trim() === "" ? [] : [String(i + 1)]));
    expect(names).toEqual(numbers);
    const hash = (text: string) =>
      createHash("sha256").update(text.trim()).digest("hex").slice(0, 8);
    const hashes = wanted.filter((text) => text.trim() !== "").map(hash);
    expect(source.position()).toEqual({ manifest: "a.jsonl", records: 4, drawn: 0, hashes });
  });

  test("may be larger than the longest string", async () => {
    const path = join(folder, "large.jsonl");
    const line = (text: string) => `${JSON.stringify({ ...caption, text })}\n`;
    const file = await openFile(path, "w");
    // Lines of zeros, which take no room on the disk.
    await file.write(line("first"));
    await file.write("\n", 300 * 2 ** 20);
    await file.write(`\n${line("last")}`, 600 * 2 ** 20);
    await file.close();
    const source = await ManifestSource.open(path, { ...order, shuffle: 1 });
    const records: SourceRecord[] = [];
    for await (const record of source.all()) records.push(record);
    expect(records).toHaveLength(4);
    expect(records[3]!.name).toMatch(/record 3 \(line 4\)$/);
    expect([records[0]!, records[3]!].map((r) => r.example(random()).text)).toEqual([
      "first",
      "last",
    ]);
    await truncate(path, 0);
    await truncate(path, 600 * 2 ** 20);
    await expect(ManifestSource.open(path, order)).rejects.toMatchObject({
      code: "TRAINING_DATA",
      message: expect.stringMatching(
        /large\.jsonl: line 1 has 629145600 bytes: expected JSON lines/,
      ),
    });
  });

  test("that are tar files are told where those go", async () => {
    const told = { code: "TRAINING_DATA", message: expect.stringMatching(/tar file: .*"shards"/) };
    await captionShards(folder, [2]);
    const tar = await readFile(join(folder, "a-0.tar"));
    await expect(open(tar, "b.tar")).rejects.toMatchObject(told);
    await expect(open(tar, "c.jsonl")).rejects.toMatchObject(told);
    await expect(open(gzipSync(tar), "b.tar.gz")).rejects.toMatchObject(told);
  });
});

test("scenes in shards are those of the manifests", async () => {
  const options = { count: 7, seed: 3n };
  await writeDataset(join(folder, "plain"), options);
  await writeDataset(join(folder, "shards"), { ...options, shards: 3 });
  await writeDataset(join(folder, "again"), { ...options, shards: 3 });
  for (const task of ["generate", "caption", "answer", "edit"] as const) {
    const manifest = await ManifestSource.open(join(folder, "plain", `${task}.jsonl`), order);
    const pattern = join(folder, "shards", `${task}-{000000..000002}.tar`);
    const shards = await ShardSource.open([pattern], order);
    const records = manifest.all();
    let count = 0;
    for await (const record of shards.all()) {
      const { image, target, ...said } = record.example(random());
      const {
        image: path,
        target: after,
        ...same
      } = (await records.next()).value!.example(random());
      expect(said).toEqual(same);
      for (const [picture, file] of [
        [image, path],
        [target, after],
      ])
        if (file !== undefined)
          expect(picture).toMatchObject({ bytes: await readFile(file as string) });
      count++;
    }
    expect(count).toBe(7);
    const bytes = (name: string) => readFile(join(folder, name, `${task}-000001.tar`));
    expect(await bytes("again")).toEqual(await bytes("shards"));
  }
  await expect(
    writeDataset(join(folder, "few"), { count: 2, seed: 1n, shards: 3 }),
  ).rejects.toMatchObject({ code: "INVALID_OPTION" });
});

test("settings of sources", async () => {
  await mkdir(join(folder, "data"));
  const run = (source: object) =>
    parseRunConfig(
      { model: "shapes-64", steps: 1, learningRate: 1, sources: [{ examples: 1, ...source }] },
      "run.yaml",
      folder,
    ).sources[0];
  expect(run({ manifest: "data/a.jsonl", shuffle: 5 })).toEqual({
    examples: 1,
    manifest: join(folder, "data/a.jsonl"),
    shuffle: 5,
  });
  expect(run({ shards: "data/{0..3}.tar", task: "generate" })).toEqual({
    examples: 1,
    shards: [join(folder, "data/{0..3}.tar")],
    task: "generate",
  });
  expect(run({ shards: ["a.tar", "b.tar"] })).toMatchObject({
    shards: [join(folder, "a.tar"), join(folder, "b.tar")],
  });
  const refused = (source: object, message: RegExp) =>
    expect(() => run(source)).toThrow(
      expect.objectContaining({ code: "INVALID_CONFIG", message: expect.stringMatching(message) }),
    );
  refused({}, /sources\.0: expected either manifest or shards/);
  refused({ manifest: "a", shards: "b" }, /either manifest or shards/);
  refused({ manifest: "a", task: "caption" }, /sources\.0\.task/);
  refused({ shards: [] }, /shards/);
  refused({ shards: "a.tar", shuffle: 0 }, /shuffle/);
});

test("the place of prepared pictures is relative to the settings' file", () => {
  const run = { model: "shapes-64", steps: 1, learningRate: 1 };
  const sources = [{ manifest: "a.jsonl", examples: 1 }];
  expect(parseRunConfig({ ...run, sources, cache: "kept" }, "run.yaml", folder)).toMatchObject({
    cache: join(folder, "kept"),
  });
  expect(parseRunConfig({ ...run, sources }, "run.yaml", folder)).not.toHaveProperty("cache");
});
