/**
 * Checkpoints damaged at random: whatever a file holds, the answer is a model or an error of ours, never a
 * crash, and never an error without a code. Seeded; a failure names its case.
 */

import { readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { parseModelConfig } from "../../lib/checkpoint/config";
import { Fields } from "../../lib/checkpoint/fields";
import { headerLength, parseSafetensorsHeader } from "../../lib/checkpoint/safetensors";
import { modelTensors, vaeTensors } from "../../lib/checkpoint/tensor-table";
import { parseVaeConfig } from "../../lib/checkpoint/vae-config";
import { UniFluidError } from "../../lib/errors";
import { UniFluid } from "../../lib/index";
import { parsePreprocessorConfig } from "../../lib/preprocess";
import { Tokenizer } from "../../lib/tokenizer";
import { CheckpointCopy } from "../support/checkpoints";
import { FIXTURES } from "../support/fixtures";
import { Random } from "../support/numbers";

const random = new Random(20240613);
const pick = <T>(list: readonly T[]): T => list[random.integer(list.length)]!;
const file = (path: string) => readFileSync(join(FIXTURES, path));
const json = (path: string) => JSON.parse(file(path).toString("utf8"));

const ODD_VALUES: readonly unknown[] = [
  null,
  true,
  "",
  "x",
  [],
  {},
  0,
  -0,
  1,
  -1,
  2,
  3,
  7,
  0.5,
  1e-30,
  255,
  2 ** 31,
  2 ** 32,
  2 ** 53,
  2 ** 63,
  1e300,
  -1e300,
  [0],
  [1, 2],
  [-1],
  ["x"],
  [[]],
  { a: 1 },
  "F64",
  "__proto__",
  "gelu",
  "\u0000",
  "9".repeat(400),
];

/** Replaces, deletes, doubles or moves some value anywhere within a JSON value; a new value. */
function mutated(value: unknown): unknown {
  const root = { value: structuredClone(value) };
  for (let times = 1 + random.integer(3); times > 0; times--) {
    const places: [object, string][] = [];
    const visit = (parent: object) => {
      for (const [key, child] of Object.entries(parent)) {
        places.push([parent, key]);
        if (typeof child === "object" && child !== null) visit(child);
      }
    };
    visit(root);
    const [parent, key] = pick(places) as [Record<string, unknown>, string];
    const old = parent[key];
    switch (random.integer(5)) {
      case 0:
        if (parent !== (root as object)) delete parent[key];
        break;
      case 1:
        parent[key] = typeof old === "number" ? old + pick([-1, 1, 8, -8, 0.5]) : pick(ODD_VALUES);
        break;
      case 2: {
        const [from, name] = pick(places) as [Record<string, unknown>, string];
        parent[key] = structuredClone(from[name]);
        break;
      }
      default:
        parent[key] = structuredClone(pick(ODD_VALUES));
    }
  }
  return root.value;
}

/** Flips, overwrites, cuts or repeats bytes. */
function damaged(bytes: Uint8Array): Buffer {
  let out: Buffer = Buffer.from(bytes);
  for (let times = 1 + random.integer(4); times > 0 && out.length > 0; times--) {
    const at = random.integer(out.length);
    const until = Math.min(out.length, at + random.integer(16));
    switch (random.integer(5)) {
      case 0:
        out[at]! ^= 1 << random.integer(8);
        break;
      case 1:
        out.fill(pick([0, 0xff, 0x22, 0x2c, 0x39, 0x7b, 0x7d]), at, until);
        break;
      case 2:
        out = out.subarray(0, at);
        break;
      case 3:
        out = Buffer.concat([out.subarray(0, at), out.subarray(until)]);
        break;
      default:
        out = Buffer.concat([out.subarray(0, until), out.subarray(at)]);
    }
  }
  return out;
}

/** Runs `cases` attempts; each may fail, but only with an error of ours. How many succeeded. */
function survive(cases: number, attempt: () => void): number {
  let succeeded = 0;
  for (let i = 0; i < cases; i++) {
    try {
      attempt();
      succeeded++;
    } catch (error) {
      if (!(error instanceof UniFluidError)) throw new Error(`case ${i}`, { cause: error });
    }
  }
  return succeeded;
}

test("headers of safetensors files, 2000 damaged and 1000 mutated", () => {
  const original = file("gemma-tiny/model.safetensors");
  const length = headerLength(original.subarray(0, 8), original.length, "f");
  const start = 8 + length;
  const parse = (header: Uint8Array) => parseSafetensorsHeader(header, original.length, "f");
  expect(parse(original.subarray(8, start)).tensors).toHaveLength(29);
  survive(2000, () => parse(damaged(original.subarray(8, start))));
  const header = JSON.parse(original.toString("utf8", 8, start));
  const right = survive(1000, () => {
    const text = JSON.stringify(mutated(header));
    const { tensors } = parse(Buffer.from(text.padEnd(length)));
    for (const { offset, bytes } of tensors) {
      if (offset < start || offset + bytes > original.length) throw new Error("out of the file");
    }
  });
  expect(right).toBeLessThan(500);
  survive(200, () => {
    const prefix = Buffer.concat([damaged(original.subarray(0, 8)), original]).subarray(0, 8);
    headerLength(prefix, 1000, "f");
  });
});

test("configurations, 3000 mutated", () => {
  const names = ["gemma-tiny", "gemma2-tiny", "paligemma-tiny", "unifluid-tiny"];
  const configs = names.map((name) => json(`${name}/config.json`));
  const right = survive(2000, () => {
    const config = parseModelConfig(Fields.of(mutated(pick(configs)), "config.json"));
    if (config.text.layers * (config.vision?.layers ?? 1) < 1000) modelTensors(config);
  });
  expect(right).toBeGreaterThan(50);
  const vae = json("vae-tiny/vae/config.json");
  survive(500, () => vaeTensors(parseVaeConfig(Fields.of(mutated(vae), "vae"))));
  const preprocessor = json("unifluid-tiny/preprocessor_config.json");
  survive(500, () => parsePreprocessorConfig(mutated(preprocessor)));
});

test("tokenizers, 500 mutated", () => {
  const original = json("gemma-tiny/tokenizer.json");
  // The vocabulary would take nearly all mutations to itself.
  const { vocab, merges, ...model } = original.model;
  const small = { ...original, model };
  const right = survive(500, () => {
    const change = mutated(small);
    const inner = (change as { model?: unknown } | null)?.model;
    if (typeof inner === "object" && inner !== null) Object.assign(inner, { vocab, merges });
    const tokenizer = Tokenizer.parse(change, "tokenizer.json", 352);
    tokenizer.decode(tokenizer.encode("a red circle, é 中文 😀 <bos>"));
  });
  expect(right).toBeGreaterThan(20);
});

test("whole checkpoints, 400 damaged, loaded and used", async () => {
  const fixtures = ["unifluid-tiny", "gemma2-tiny", "paligemma-tiny", "vae-tiny"];
  const files = [
    "model.safetensors",
    "config.json",
    "generation_config.json",
    "vae/config.json",
    "vae/diffusion_pytorch_model.safetensors",
  ];
  const codes = new Set<string>();
  let used = 0;
  await use(join(FIXTURES, "unifluid-tiny"));
  for (const fixture of fixtures) {
    const copy = new CheckpointCopy(fixture);
    try {
      const present = files.flatMap((name) => {
        try {
          return [{ name, bytes: readFileSync(copy.path(name)) }];
        } catch {
          return [];
        }
      });
      for (let i = 0; i < 100; i++) {
        const { name, bytes } = pick(present);
        const isJson = name.endsWith(".json");
        const change =
          isJson && random.integer(4) > 0
            ? Buffer.from(JSON.stringify(mutated(JSON.parse(bytes.toString()))))
            : damaged(bytes);
        copy.write(name, change);
        try {
          await use(copy.directory);
          used++;
        } catch (error) {
          if (!(error instanceof UniFluidError)) {
            throw new Error(`${fixture}, case ${i}, ${name}: ${change.subarray(0, 2000)}`, {
              cause: error,
            });
          }
          codes.add(error.code);
        }
        writeFileSync(copy.path(name), bytes);
      }
    } finally {
      copy.remove();
    }
  }
  expect(used).toBeGreaterThan(20);
  expect(codes).toContain("INVALID_CONFIG");
  expect(codes).not.toContain("INTERNAL");
  expect(codes).not.toContain("INVALID_CHECKPOINT"); // all is found before the native side looks
});

const PICTURE = join(FIXTURES, "unifluid-tiny/edit0.png");

async function use(directory: string): Promise<void> {
  const model = await UniFluid.load(directory, { threads: 1, maxMemory: 64 << 20 });
  try {
    const { tasks } = model;
    if (tasks.includes("generate")) await model.generate("a star", { steps: 2 });
    if (tasks.includes("caption")) await model.caption(PICTURE, { maxNewTokens: 2 });
    if (tasks.includes("complete")) await model.complete("a", { maxNewTokens: 2 });
    if (tasks.includes("encode")) await model.encodeImage(PICTURE);
  } finally {
    await model.dispose();
  }
}
