/** The toy world: scenes, what is said of them, how they look, and the parser that judges pictures of them. */
import { mkdtemp, readdir, readFile, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import sharp from "sharp";
import { philox, Random } from "../../lib/philox";
import { promptsOf, sceneOf, writeDataset } from "../../lib/scenes/dataset";
import { drawPixels } from "../../lib/scenes/draw";
import { caption, edit, NUMBERS, question, relation } from "../../lib/scenes/language";
import { parseScene } from "../../lib/scenes/parse";
import {
  alike,
  COLOR_NAMES,
  isHeldOut,
  RADIUS,
  randomScene,
  type Scene,
  type SceneObject,
  SHAPES,
  SIZE,
} from "../../lib/scenes/world";
import { thing } from "../support/scenes";

const scenes = (count: number, stream = 3) =>
  Array.from({ length: count }, (_, i) => randomScene(new Random(11n, stream, i)));

test("random numbers are Philox4x32-10's", () => {
  // The known answers of the authors' Random123 distribution.
  expect(philox(0n, [0, 0, 0, 0])).toEqual([0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8]);
  const ones = 0xffffffff;
  expect(philox(2n ** 64n - 1n, [ones, ones, ones, ones])).toEqual([
    0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd,
  ]);
});

test("scenes keep the rules: inside, apart, no pair that is held out, counts as often as meant", () => {
  const counts = [0, 0, 0, 0];
  for (const scene of scenes(600)) {
    counts[scene.objects.length]!++;
    for (const [i, a] of scene.objects.entries()) {
      const r = RADIUS[a.size];
      for (const v of [a.x, a.y]) {
        expect(v).toBeGreaterThanOrEqual(r);
        expect(v).toBeLessThanOrEqual(SIZE - r);
      }
      expect(isHeldOut(a.color, a.shape)).toBe(false);
      for (const b of scene.objects.slice(0, i))
        expect(Math.max(Math.abs(a.x - b.x), Math.abs(a.y - b.y))).toBeGreaterThan(
          r + RADIUS[b.size],
        );
    }
  }
  expect(counts[0]).toBe(0);
  // 0.4, 0.4 and 0.2 are drawn; where no places are found, all is drawn again, which favours few.
  expect(counts[1]).toBeGreaterThan(counts[2]!);
  expect(counts[2]).toBeGreaterThan(counts[3]!);
  expect(counts[3]).toBeGreaterThan(30);
  for (let i = 0; i < 40; i++) {
    const only = randomScene(new Random(1n, 1, i), { pairs: "only", count: 2 });
    expect(only.objects).toHaveLength(2);
    expect(only.objects.every((o) => isHeldOut(o.color, o.shape))).toBe(true);
  }
});

test("a scene has its name, whatever was drawn before it", () => {
  expect(sceneOf(5n, "train", 40)).toEqual(sceneOf(5n, "train", 40));
  expect(sceneOf(5n, "train", 40)).not.toEqual(sceneOf(5n, "test", 40));
  expect(sceneOf(5n, "train", 40)).not.toEqual(sceneOf(6n, "train", 40));
  for (let i = 0; i < 40; i++) {
    const any = sceneOf(5n, "train", i);
    const many = sceneOf(5n, "train", i, { minObjects: 2 });
    expect(many.objects.length).toBeGreaterThan(1);
    if (any.objects.length > 1) expect(many).toEqual(any);
    const star = sceneOf(5n, "train", i, { withShape: "star" });
    expect(star.objects.map((o) => o.shape)).toContain("star");
    if (any.objects.some((o) => o.shape === "star")) expect(star).toEqual(any);
  }
});

describe("what is said of a scene", () => {
  const pair: Scene = {
    background: "pink",
    objects: [thing("large red circle", 40, 20), thing("small blue square", 15, 30)],
  };

  test("captions", () => {
    expect(caption(pair)).toBe(
      "a small blue square left of a large red circle on a pink background",
    );
    expect(caption(pair, { flip: true, size: false, background: false })).toBe(
      "a red circle right of a blue square",
    );
    const stacked = {
      ...pair,
      objects: [thing("large orange star", 30, 50), thing("small blue square", 35, 12)],
    };
    expect(caption(stacked, { background: false })).toBe(
      "a small blue square above a large orange star",
    );
    const three = {
      ...pair,
      objects: [...pair.objects, thing("small orange heart", 50, 50)],
    };
    expect(caption(three, { size: false, background: false })).toBe(
      "a blue square, a red circle and an orange heart",
    );
    const twins = {
      ...pair,
      objects: [thing("small cyan star", 10, 10), thing("small cyan star", 40, 40)],
    };
    expect(caption(twins, { background: false })).toBe("two small cyan stars");
    expect(caption({ ...pair, objects: [] })).toBe("nothing on a pink background");
  });

  test("prompts are captions with words left out", () => {
    expect(promptsOf(pair)).toHaveLength(8);
    expect(promptsOf(pair, true).sort()).toEqual([
      "a blue square left of a red circle",
      "a red circle right of a blue square",
    ]);
  });

  test("answers are true", () => {
    const kinds = new Set<string>();
    for (const [i, scene] of scenes(400).entries()) {
      const { question: q, answer, kind } = question(scene, new Random(3n, 0, i));
      kinds.add(kind);
      const { objects } = scene;
      const found = {
        color: /what color is the (\w+)\?/.exec(q)?.[1],
        shape: /what shape is the (\w+) object/.exec(q)?.[1],
        many: /how many (\w+)s are there/.exec(q)?.[1],
        there: /is there a (\w+)\?/.exec(q)?.[1],
      };
      if (found.color === "background") expect(answer).toBe(scene.background);
      else if (found.color)
        expect(objects.filter((o) => o.shape === found.color).map((o) => o.color)).toEqual([
          answer,
        ]);
      else if (found.shape)
        expect(objects.filter((o) => o.color === found.shape).map((o) => o.shape)).toEqual([
          answer,
        ]);
      else if (found.many) {
        const of =
          found.many === "object" ? objects : objects.filter((o) => o.shape === found.many);
        expect(answer).toBe(NUMBERS[of.length]);
      } else expect(answer).toBe(objects.some((o) => o.shape === found.there) ? "yes" : "no");
    }
    expect(kinds.size).toBe(6);
  });

  test("edits change what they say and nothing else", () => {
    const kinds = new Set<string>();
    for (const [i, scene] of scenes(200).entries()) {
      const { kind, instruction, target } = edit(scene, new Random(4n, 0, i));
      kinds.add(kind);
      const word = instruction.split(" ").at(-1)!;
      if (kind === "background") {
        expect(target).toEqual({ ...scene, background: word });
        expect(word).not.toBe(scene.background);
      } else {
        const named = kind === "remove" ? word : instruction.split(" ")[2]!;
        const changed = scene.objects.filter((o) => o.shape === named);
        expect(changed).toHaveLength(1);
        const rest = scene.objects.filter((o) => o !== changed[0]);
        expect(target.objects.filter((o) => rest.includes(o))).toEqual(rest);
        expect(target.background).toBe(scene.background);
        expect(target.objects).toHaveLength(rest.length + (kind === "remove" ? 0 : 1));
      }
    }
    expect(kinds.size).toBe(3);
  });

  test("edits of scenes of pairs kept from training change what they can", () => {
    const kinds = new Set<string>();
    for (let i = 0; i < 100; i++) {
      const scene = randomScene(new Random(6n, 0, i), { pairs: "only" });
      const { kind, instruction, target } = edit(scene, new Random(7n, 0, i), "only");
      kinds.add(kind);
      expect(instruction).not.toContain("undefined");
      for (const o of target.objects) expect(isHeldOut(o.color, o.shape)).toBe(true);
    }
    expect([...kinds].sort()).toEqual(["background", "remove"]);
  });
});

describe("the parser", () => {
  const see = async (scene: Scene) => parseScene(await drawPixels(scene));
  const bag = (objects: { shape: string; color: string; size: string }[]) =>
    objects.map((o) => `${o.size} ${o.color} ${o.shape}`).sort();

  test("finds what was drawn, where it was drawn", async () => {
    const all = scenes(100, 7);
    let right = 0;
    for (const scene of all) {
      const seen = await see(scene);
      const same =
        seen.background === scene.background &&
        JSON.stringify(bag(seen.objects)) === JSON.stringify(bag(scene.objects));
      if (!same) continue;
      right++;
      for (const o of scene.objects)
        expect(
          seen.objects.some((p) => Math.abs(p.x - o.x) < 1.5 && Math.abs(p.y - o.y) < 1.5),
        ).toBe(true);
    }
    // 0.99 of true pictures, as the evaluation needs it.
    expect(right).toBeGreaterThanOrEqual(99);
  });

  test("tells every shape and colour from the others", async () => {
    for (const shape of SHAPES)
      for (const color of COLOR_NAMES) {
        const seen = await see({
          background: "white",
          objects: [thing(`large ${color} ${shape}`, 32, 32)],
        });
        expect(bag(seen.objects)).toEqual([`large ${color} ${shape}`]);
      }
  });

  test("knows no shape in a blob that is none, nothing in an empty picture, and refuses other sizes", async () => {
    const bar =
      '<svg xmlns="http://www.w3.org/2000/svg" width="64" height="64"><rect width="64" height="64" fill="white"/>' +
      '<path d="M10 10h40v6H16v34h-6z" fill="rgb(220,30,40)"/></svg>';
    const pixels = await sharp(Buffer.from(bar)).removeAlpha().raw().toBuffer();
    expect(parseScene(pixels).objects).toMatchObject([{ shape: "?", color: "red" }]);
    expect(await see({ background: "blue", objects: [] })).toEqual({
      background: "blue",
      objects: [],
    });
    expect(() => parseScene(new Uint8Array(12))).toThrow(RangeError);
  });

  test("relations hold in what it sees", async () => {
    for (const scene of scenes(60, 8).filter((s) => s.objects.length === 2 && !alike(s.objects))) {
      const [a, b] = scene.objects as [SceneObject, SceneObject];
      const seen = (await see(scene)).objects as SceneObject[];
      const find = (o: SceneObject) =>
        seen.find((p) => p.shape === o.shape && p.color === o.color && p.size === o.size);
      const [p, q] = [find(a), find(b)];
      if (p && q && p !== q) expect(relation(p, q)).toBe(relation(a, b));
    }
  });
});

describe("a data set", () => {
  let folder: string;
  beforeAll(async () => {
    folder = await mkdtemp(join(tmpdir(), "scenes-"));
  });
  afterAll(() => rm(folder, { recursive: true }));
  const records = async (path: string) =>
    (await readFile(path, "utf8"))
      .trimEnd()
      .split("\n")
      .map((line) => JSON.parse(line));

  test("has a picture for every name in its manifests, and is the same again", async () => {
    const options = { count: 20, seed: 4n };
    let done = 0;
    await writeDataset(join(folder, "a"), { ...options, onScene: () => done++ });
    await writeDataset(join(folder, "b"), options);
    expect(done).toBe(20);
    const images = await readdir(join(folder, "a", "images"));
    expect(images).toHaveLength(40);
    for (const task of ["generate", "caption", "answer", "edit"]) {
      const list = await records(join(folder, "a", `${task}.jsonl`));
      expect(list).toHaveLength(20);
      expect(list).toEqual(await records(join(folder, "b", `${task}.jsonl`)));
      for (const record of list) {
        expect(record.task).toBe(task);
        for (const name of [record.image, record.target].filter(Boolean))
          expect(images).toContain(name.replace("images/", ""));
      }
    }
    const [first] = await records(join(folder, "a", "edit.jsonl"));
    const picture = sharp(await readFile(join(folder, "a", first.target)));
    expect(await picture.metadata()).toMatchObject({ format: "png", width: 64, channels: 3 });
    const seen = parseScene(await picture.raw().toBuffer());
    expect(seen.background).toBe(first.edited.background);
    await writeDataset(join(folder, "short"), {
      ...options,
      tasks: ["generate"],
      shortPrompts: true,
    });
    for (const { prompt: prompts } of await records(join(folder, "short", "generate.jsonl")))
      for (const words of prompts) expect(words).not.toMatch(/small|large|background/);
  });

  test("leaves nothing behind where it was stopped, and overwrites nothing", async () => {
    for (const shards of [undefined, 2]) {
      const controller = new AbortController();
      const stopped = writeDataset(join(folder, "c"), {
        count: 100,
        seed: 1n,
        tasks: ["caption"],
        shards,
        signal: controller.signal,
        onScene: () => controller.abort(new Error("stop")),
      });
      await expect(stopped).rejects.toThrow("stop");
      expect((await readdir(folder)).filter((n) => n.startsWith("c"))).toEqual([]);
    }
    await writeFile(join(folder, "d"), "mine");
    await expect(writeDataset(join(folder, "d"), { count: 1, seed: 1n })).rejects.toMatchObject({
      code: "INVALID_OPTION",
    });
  });
});
