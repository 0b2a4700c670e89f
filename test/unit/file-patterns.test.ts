/** Names of shards and of tensors, with braces and stars. */
import { mkdtemp, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { expandBraces, listFiles } from "../../lib/train/file-patterns";
import { matches } from "../../lib/train/wildcards";

let folder: string;
beforeEach(async () => {
  folder = await mkdtemp(join(tmpdir(), "patterns-"));
});
afterEach(() => rm(folder, { recursive: true }));

test("braces are a shell's", () => {
  expect(expandBraces("a-{0..3}.tar")).toEqual(["a-0.tar", "a-1.tar", "a-2.tar", "a-3.tar"]);
  expect(expandBraces("{008..011}")).toEqual(["008", "009", "010", "011"]);
  expect(expandBraces("{2..0}")).toEqual(["2", "1", "0"]);
  expect(expandBraces("{a,b}/{1,2}")).toEqual(["a/1", "a/2", "b/1", "b/2"]);
  expect(expandBraces("{a,{b,c}}")).toEqual(["a", "b", "c"]);
  expect(expandBraces("plain{x}{}")).toEqual(["plain{x}{}"]);
  expect(() => expandBraces("{0..9999999}")).toThrow(/more than/);
  expect(() => expandBraces("{0..9999}{0..9999}")).toThrow(/more than/);
  expect(() => expandBraces("{a,a}".repeat(40))).toThrow(/more than/);
});

test("stars and what they leave", () => {
  expect(matches("vision_tower.a.b", "vision_tower.*")).toBe(true);
  expect(matches("image_in.weight", "image_in.weight")).toBe(true);
  expect(matches("image_in_weight", "image_in.weight")).toBe(false);
  expect(matches("a.norm.weight", "*norm*")).toBe(true);
  expect(matches("a.norm", "a.norm*")).toBe(true);
  expect(matches("abab", "*ab")).toBe(true);
  expect(matches("aba", "*ab")).toBe(false);
  expect(matches("", "*")).toBe(true);
  expect(matches("", "a")).toBe(false);
  expect(matches("a", "?")).toBe(false);
  expect(matches("a", "?", "?")).toBe(true);
  expect(matches("", "?", "?")).toBe(false);
  // A regular expression would try every way to share the name out among the stars.
  expect(matches("a".repeat(200), `${"*a".repeat(60)}*b`)).toBe(false);
});

test("* and ? stand for what is there, in order", async () => {
  for (const name of ["b.tar", "a1.tar", "a22.tar", "a.tar.txt", ".a.tar"])
    await writeFile(join(folder, name), "");
  const list = async (pattern: string) =>
    (await listFiles([join(folder, pattern)])).map((path) => path.slice(folder.length + 1));
  expect(await list("*.tar")).toEqual(["a1.tar", "a22.tar", "b.tar"]);
  expect(await list("a?.tar")).toEqual(["a1.tar"]);
  expect(await list("{b,a*}.tar")).toEqual(["b.tar", "a1.tar", "a22.tar"]);
  // What is named twice is there once, and what is not there is not told before it is opened.
  expect(await listFiles(["x.tar", "{x,y}.tar"])).toEqual(["x.tar", "y.tar"]);
  for (const [pattern, message] of [
    ["none-*.tar", /no file matches .*none-\*\.tar/],
    ["*/a.tar", /file's name alone/],
    ["nowhere/*.tar", /cannot read .*nowhere/],
  ] as const)
    await expect(listFiles([join(folder, pattern)])).rejects.toMatchObject({
      code: "TRAINING_DATA",
      message: expect.stringMatching(message),
    });
});
