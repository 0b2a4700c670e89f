import { existsSync, mkdirSync, readFileSync, renameSync } from "node:fs";
import { join, relative } from "node:path";
import { pathToFileURL } from "node:url";
import { readCheckpoint } from "../../lib/checkpoint/checkpoint";
import { locateCheckpoint, shippedModels } from "../../lib/checkpoint/locate";
import { canonicalName, canonicalVaeName } from "../../lib/checkpoint/tensor-names";
import { diffusersName, ldmName } from "../../lib/init/ldm-autoencoder";
import { checkMemory, countParameters, estimateMemory } from "../../lib/memory";
import { CheckpointCopy, type HeaderEntry, joinSafetensors } from "../support/checkpoints";
import { FIXTURES, fixtureTensors } from "../support/fixtures";

let copy: CheckpointCopy;
const copyOf = (fixture: string) => {
  copy = new CheckpointCopy(fixture);
  return copy;
};
afterEach(() => copy?.remove());

const read = (directory = copy.directory) => readCheckpoint(directory);
const failure = async () =>
  read().then(
    () => undefined,
    (error) => error,
  );

/** The entry of a header, which must be there. */
const entry = (header: Record<string, HeaderEntry>, name: string): HeaderEntry => {
  if (!header[name]) throw new Error(`no tensor ${name}`);
  return header[name];
};

function rename(header: Record<string, HeaderEntry>, from: string | RegExp, to: string) {
  for (const name of Object.keys(header)) {
    const renamed = name.replace(from, to);
    if (renamed === name) continue;
    header[renamed] = header[name]!;
    delete header[name];
  }
}

/** Adds a tensor of zeros. */
function add(header: Record<string, HeaderEntry>, data: Buffer, name: string, shape: number[]) {
  const bytes = 4 * shape.reduce((n, size) => n * size, 1);
  header[name] = { dtype: "F32", shape, data_offsets: [data.length, data.length + bytes] };
  return Buffer.concat([data, Buffer.alloc(bytes)]);
}

test.each([undefined, null, 3, {}, new URL("file:///")])("%p is no directory", async (value) => {
  await expect(readCheckpoint(value as never)).rejects.toMatchObject({ code: "INVALID_OPTION" });
});

test.each([
  ["gemma-tiny", "gemma"],
  ["gemma2-tiny", "gemma2"],
  ["paligemma-tiny", "paligemma"],
  ["paligemma2-tiny", "paligemma"],
  ["unifluid-tiny", "unifluid"],
  ["unifluid-flow-tiny", "unifluid"],
  ["vae-tiny", "vae"],
])("%s is a whole checkpoint", async (fixture, kind) => {
  const checkpoint = await read(join(FIXTURES, fixture));
  expect(checkpoint.kind).toBe(kind);
  expect(checkpoint.spec.text?.tied ?? true).toBe(true);
  expect(checkpoint.spec.tensors.length).toBeGreaterThan(20);
  for (const path of checkpoint.spec.files) expect(existsSync(path)).toBe(true);
});

describe("names", () => {
  test.each([
    ["model.language_model.norm.weight", "language_model.norm.weight"],
    ["language_model.model.norm.weight", "language_model.norm.weight"],
    ["language_model.lm_head.weight", "lm_head.weight"],
    ["lm_head.weight", "lm_head.weight"],
    ["model.vision_tower.vision_model.post_layernorm.bias", "vision_tower.post_layernorm.bias"],
    ["vision_tower.vision_model.post_layernorm.bias", "vision_tower.post_layernorm.bias"],
    ["model.multi_modal_projector.linear.bias", "multi_modal_projector.linear.bias"],
    ["multi_modal_projector.linear.bias", "multi_modal_projector.linear.bias"],
    ["image_in.weight", "image_in.weight"],
  ])("%s is %s", (stored, canonical) => {
    expect(canonicalName(stored, "unifluid")).toBe(canonical);
  });

  test("a plain Gemma's begin with model.", () => {
    expect(canonicalName("model.norm.weight", "gemma")).toBe("language_model.norm.weight");
    expect(canonicalName("lm_head.weight", "gemma2")).toBe("lm_head.weight");
  });

  test("the autoencoder's attention has older ones", () => {
    const block = "encoder.mid_block.attentions.0";
    expect(canonicalVaeName(`${block}.query.weight`)).toBe(`vae.${block}.to_q.weight`);
    expect(canonicalVaeName(`${block}.proj_attn.bias`)).toBe(`vae.${block}.to_out.0.bias`);
    expect(canonicalVaeName(`${block}.to_k.bias`)).toBe(`vae.${block}.to_k.bias`);
  });

  test("LDM's come back from diffusers'", () => {
    const { names } = fixtureTensors("ldm-vae", "kl.safetensors");
    expect(names.length).toBeGreaterThan(50);
    for (const name of names) expect(ldmName(diffusersName(name, 2), 2)).toBe(name);
  });

  test("both spellings give one specification", async () => {
    const { spec } = await read(join(FIXTURES, "unifluid-tiny"));
    copyOf("unifluid-tiny").header((header) => {
      rename(header, /^model\.language_model\./, "language_model.model.");
      rename(header, /^model\.(vision_tower|multi_modal)/, "$1");
      return undefined;
    });
    const old = (await read()).spec;
    expect(old.tensors.map((t) => [t.name, t.shape])).toEqual(
      spec.tensors.map((t) => [t.name, t.shape]),
    );
  });

  test("an autoencoder of the first releases", async () => {
    const file = "vae/diffusion_pytorch_model.safetensors";
    copyOf("vae-tiny").header((header) => {
      for (const [now, then] of Object.entries({
        to_q: "query",
        to_k: "key",
        to_v: "value",
        "to_out.0": "proj_attn",
      })) {
        rename(header, `.${now}.`, `.${then}.`);
        for (const [name, { shape }] of Object.entries(header)) {
          if (name.endsWith(`.${then}.weight`)) shape.push(1, 1);
        }
      }
      return undefined;
    }, file);
    const { tensors } = (await read()).spec;
    const query = tensors.find((t) => t.name === "vae.decoder.mid_block.attentions.0.to_q.weight");
    expect(query).toMatchObject({ shape: [12, 12], dtype: "F32" });
  });

  test("two spellings of one tensor are refused", async () => {
    copyOf("gemma-tiny").header((header, data) =>
      add(header, data, "language_model.norm.weight", [32]),
    );
    expect(await failure()).toMatchObject({
      code: "UNEXPECTED_TENSOR",
      message: expect.stringContaining("two spellings"),
    });
  });
});

describe("tensors", () => {
  test("what published files carry beside the weights is passed over", async () => {
    copyOf("paligemma-tiny").header((header, data) => {
      let more = add(header, data, "model.vision_tower.vision_model.head.probe", [1, 1, 24]);
      more = add(header, more, "model.vision_tower.vision_model.embeddings.position_ids", [1, 16]);
      return add(header, more, "model.language_model.layers.0.self_attn.rotary_emb.inv_freq", [4]);
    });
    expect((await read()).spec.tensors.map((t) => t.name)).not.toContain("vision_tower.head.probe");
  });

  test("a head of its own is not the embedding", async () => {
    copyOf("gemma-tiny").header((header, data) => add(header, data, "lm_head.weight", [352, 32]));
    expect((await read()).spec.text).toMatchObject({ tied: false });
  });

  test.each<
    [string, (header: Record<string, HeaderEntry>, data: Buffer) => Buffer | undefined, object]
  >([
    [
      "a missing one",
      (header) => {
        rename(header, "model.norm.weight", "model.layers.0.self_attn.rotary_emb.inv_freq");
        return undefined;
      },
      {
        name: "MissingTensorError",
        code: "MISSING_TENSOR",
        message: expect.stringMatching(
          /\/model\.safetensors: 1 tensor is missing: model\.norm\.weight$/,
        ),
      },
    ],
    [
      "an unknown one",
      (header, data) => add(header, data, "model.layers.3.mlp.up_proj.weight", [1]),
      {
        name: "UnexpectedTensorError",
        code: "UNEXPECTED_TENSOR",
        message: expect.stringContaining("model.layers.3.mlp"),
      },
    ],
    [
      "one of another shape",
      (header) => {
        entry(header, "model.layers.0.mlp.up_proj.weight").shape = [32, 48];
        return undefined;
      },
      {
        name: "TensorShapeError",
        code: "TENSOR_SHAPE",
        message: expect.stringMatching(/\[48, 32\].*\[32, 48\]/),
      },
    ],
    [
      "one of a type that weights do not have",
      (header) => {
        entry(header, "model.norm.weight").dtype = "I32";
        return undefined;
      },
      { code: "SAFETENSORS_UNKNOWN_DTYPE", message: expect.stringMatching(/F32, F16, BF16 .*I32/) },
    ],
  ])("%s is refused", async (_name, change, expected) => {
    copyOf("gemma-tiny").header(change);
    expect(await failure()).toMatchObject(expected);
  });
});

describe("a missing tensor is told as the file spells the others", () => {
  const WEIGHTS = "model.safetensors";
  const VAE = "vae/diffusion_pytorch_model.safetensors";
  const old: [RegExp, string][] = [
    [/^model\.language_model\./, "language_model.model."],
    [/^model\.(vision_tower|multi_modal)/, "$1"],
  ];
  const five: [RegExp, string][] = [
    [/^model\.language_model\./, "language_model.model."],
    [/^model\.vision_tower\.vision_model\./, "vision_tower."],
    [/^model\.multi_modal/, "multi_modal"],
  ];
  const firstReleases: [RegExp, string][] = [
    [/\.to_q\./, ".query."],
    [/\.to_k\./, ".key."],
    [/\.to_v\./, ".value."],
    [/\.to_out\.0\./, ".proj_attn."],
  ];
  test.each<[string, string, [RegExp, string][], string]>([
    ["paligemma-tiny", WEIGHTS, [], "model.language_model.norm.weight"],
    ["paligemma-tiny", WEIGHTS, [], "model.vision_tower.vision_model.post_layernorm.bias"],
    ["paligemma-tiny", WEIGHTS, old, "language_model.model.norm.weight"],
    ["paligemma-tiny", WEIGHTS, old, "vision_tower.vision_model.post_layernorm.bias"],
    ["paligemma-tiny", WEIGHTS, five, "language_model.model.norm.weight"],
    ["paligemma-tiny", WEIGHTS, five, "vision_tower.post_layernorm.bias"],
    ["unifluid-tiny", WEIGHTS, [], "image_begin"],
    ["vae-tiny", VAE, [], "encoder.mid_block.attentions.0.to_q.bias"],
    ["vae-tiny", VAE, firstReleases, "encoder.mid_block.attentions.0.query.bias"],
  ])("%s: %s with %j lacks %s", async (fixture, file, spelling, missing) => {
    copyOf(fixture).header((header) => {
      for (const [from, to] of spelling) rename(header, from, to);
      entry(header, missing);
      rename(header, missing, "x.rotary_emb.inv_freq"); // one that is passed over
      return undefined;
    }, file);
    expect(await failure()).toMatchObject({
      code: "MISSING_TENSOR",
      message: `${copy.path(file)}: 1 tensor is missing: ${missing}`,
    });
  });
});

describe("shards", () => {
  /** Splits a checkpoint's file in two, with an index. */
  function shard(change: (map: Record<string, string>) => void = () => {}) {
    copyOf("gemma-tiny");
    const file = readFileSync(copy.path("model.safetensors"));
    const start = 8 + Number(file.readBigUInt64LE(0));
    const all = Object.entries(
      JSON.parse(file.toString("utf8", 8, start)) as Record<string, HeaderEntry>,
    )
      .filter(([name]) => name !== "__metadata__")
      .sort(([, a], [, b]) => a.data_offsets[0] - b.data_offsets[0]);
    const map: Record<string, string> = {};
    const half = all.length >> 1;
    for (const [i, part] of [all.slice(0, half), all.slice(half)].entries()) {
      const name = `model-0000${i + 1}-of-00002.safetensors`;
      const from = part[0]![1].data_offsets[0];
      const to = part.at(-1)![1].data_offsets[1];
      for (const [tensor, { data_offsets }] of part) {
        data_offsets[0] -= from;
        data_offsets[1] -= from;
        map[tensor] = name;
      }
      copy.write(
        name,
        joinSafetensors(Object.fromEntries(part), file.subarray(start + from, start + to)),
      );
    }
    copy.delete("model.safetensors");
    change(map);
    copy.write("model.safetensors.index.json", JSON.stringify({ metadata: {}, weight_map: map }));
  }

  test("are one checkpoint", async () => {
    const whole = (await read(join(FIXTURES, "gemma-tiny"))).spec;
    shard();
    const { spec } = await read();
    expect(spec.files).toHaveLength(2);
    expect(spec.tensors.map((t) => t.name)).toEqual(whole.tensors.map((t) => t.name));
    const wholeFile = readFileSync(whole.files[0]!);
    for (const [i, tensor] of spec.tensors.entries()) {
      const bytes = readFileSync(spec.files[tensor.file]!).subarray(
        tensor.offset,
        tensor.offset + 16,
      );
      const { offset } = whole.tensors[i]!;
      expect(bytes).toEqual(wholeFile.subarray(offset, offset + 16));
    }
  });

  test.each<[string, () => void, string]>([
    [
      "a missing shard",
      () => {
        shard();
        copy.delete("model-00002-of-00002.safetensors");
      },
      "CHECKPOINT_NOT_FOUND",
    ],
    [
      "a tensor that is listed and not there",
      () =>
        shard((m) => {
          m["model.x"] = m["model.norm.weight"]!;
        }),
      "SAFETENSORS_INVALID_INDEX",
    ],
    [
      "a tensor that is there and not listed",
      () =>
        shard((m) => {
          delete m["model.norm.weight"];
        }),
      "SAFETENSORS_INVALID_INDEX",
    ],
    [
      "a shard outside of the directory",
      () =>
        shard((m) => {
          m["model.norm.weight"] = "../model.safetensors";
        }),
      "SAFETENSORS_INVALID_INDEX",
    ],
    [
      "a shard that is a number",
      () =>
        shard((m) => {
          (m as Record<string, unknown>)["model.norm.weight"] = 1;
        }),
      "SAFETENSORS_INVALID_INDEX",
    ],
    [
      "an index without a map",
      () => {
        shard();
        copy.write("model.safetensors.index.json", "{}");
      },
      "SAFETENSORS_INVALID_INDEX",
    ],
    [
      "an empty index",
      () => {
        shard();
        copy.write("model.safetensors.index.json", '{"weight_map":{}}');
      },
      "SAFETENSORS_INVALID_INDEX",
    ],
    [
      "an index that is no JSON",
      () => {
        shard();
        copy.write("model.safetensors.index.json", "{");
      },
      "SAFETENSORS_INVALID_INDEX",
    ],
  ])("%s is refused", async (_name, prepare, code) => {
    prepare();
    expect(await failure()).toMatchObject({ code });
  });
});

describe("directories", () => {
  test.each<[string, string, () => void, string]>([
    ["no weights", "gemma-tiny", () => copy.delete("model.safetensors"), "CHECKPOINT_NOT_FOUND"],
    ["no configuration", "gemma-tiny", () => copy.delete("config.json"), "CHECKPOINT_NOT_FOUND"],
    ["no tokenizer", "gemma-tiny", () => copy.delete("tokenizer.json"), "CHECKPOINT_NOT_FOUND"],
    [
      "no weights of the autoencoder",
      "vae-tiny",
      () => copy.delete("vae/diffusion_pytorch_model.safetensors"),
      "CHECKPOINT_NOT_FOUND",
    ],
    [
      "an autoencoder without its configuration",
      "unifluid-tiny",
      () => copy.delete("vae/config.json"),
      "CHECKPOINT_NOT_FOUND",
    ],
    [
      "a broken configuration",
      "gemma-tiny",
      () => copy.write("config.json", "{"),
      "INVALID_CONFIG",
    ],
    [
      "a broken generation_config.json",
      "gemma-tiny",
      () => copy.write("generation_config.json", "{"),
      "INVALID_CONFIG",
    ],
    [
      "steps beyond the timesteps",
      "unifluid-tiny",
      () => copy.set("generation_config.json", { "image.steps": 1001 }),
      "INVALID_CONFIG",
    ],
    [
      "a guidance beyond sense",
      "unifluid-tiny",
      () => copy.set("generation_config.json", { "image.guidance": -1e5 }),
      "INVALID_CONFIG",
    ],
    [
      "images of another size",
      "unifluid-tiny",
      () => copy.set("preprocessor_config.json", { size: { width: 32, height: 16 } }),
      "INVALID_CONFIG",
    ],
    [
      "a grid that does not fit",
      "unifluid-tiny",
      () => copy.set("config.json", { "image_generation.latent_patch": 4 }),
      "TENSOR_SHAPE|INVALID_CONFIG",
    ],
    [
      "a tokenizer of another vocabulary",
      "gemma-tiny",
      () => copy.set("tokenizer.json", { added_tokens: [{ id: 352, content: "x" }] }),
      "TOKENIZER_MISMATCH",
    ],
    [
      "a truncated file",
      "gemma-tiny",
      () =>
        copy.write(
          "model.safetensors",
          readFileSync(copy.path("model.safetensors")).subarray(0, -4),
        ),
      "SAFETENSORS_TRUNCATED",
    ],
  ])("%s: refused", async (_name, fixture, change, code) => {
    copyOf(fixture);
    change();
    expect((await failure())?.code).toMatch(new RegExp(`^(${code})$`));
  });

  test("an autoencoder without its configuration is told by its weights", async () => {
    copyOf("unifluid-tiny").delete("vae/config.json");
    expect((await failure()).message).toBe(
      `there is ${copy.path("vae/diffusion_pytorch_model.safetensors")} but no config.json beside it, which tells what the autoencoder is`,
    );
    // Where nothing computes with one it may be anything.
    copy.remove();
    copyOf("gemma-tiny");
    mkdirSync(copy.path("vae"));
    copy.write("vae/diffusion_pytorch_model.safetensors", "x");
    expect((await read()).kind).toBe("gemma");
  });

  test("more steps than timesteps, of a rectified flow", async () => {
    copyOf("unifluid-flow-tiny").set("generation_config.json", { "image.steps": 1001 });
    expect((await read()).generation.image.steps).toBe(1001);
  });

  test("files that may be absent", async () => {
    copyOf("unifluid-tiny");
    for (const file of [
      "preprocessor_config.json",
      "generation_config.json",
      "tokenizer_config.json",
      "vae",
    ]) {
      copy.delete(file);
    }
    const { generation, preprocessor, vae } = await read();
    expect(generation.image).toMatchObject({ steps: 50, guidance: 3, x0Limit: Infinity });
    expect(preprocessor).toMatchObject({ width: 32, height: 32, filter: "bicubic" });
    expect(vae).toBeUndefined();
  });

  test("image preparation as transformers 5 writes it goes before the older file", async () => {
    const { resample, size } = JSON.parse(
      readFileSync(copyOf("paligemma-tiny").path("preprocessor_config.json"), "utf8"),
    );
    expect(resample).toBe(3);
    const image_processor = {
      size,
      resample: 2,
      image_mean: [0.1, 0.2, 0.3],
      image_std: [1, 1, 1],
    };
    copy.write(
      "processor_config.json",
      JSON.stringify({ processor_class: "PaliGemmaProcessor", image_processor }),
    );
    for (const older of [true, false]) {
      if (!older) copy.delete("preprocessor_config.json");
      expect((await read()).preprocessor).toMatchObject({
        filter: "bilinear",
        mean: [0.1, 0.2, 0.3],
      });
    }
    copy.set("processor_config.json", { "image_processor.resample": 7 });
    expect((await failure()).message).toMatch(
      /processor_config\.json: image_processor: .*resample/,
    );
    // What older versions write holds nothing of it.
    copy.set("processor_config.json", { image_processor: undefined });
    expect((await read()).preprocessor).toMatchObject({ filter: "bicubic" });
  });

  test("an autoencoder's own directory is told, with where it belongs", async () => {
    copyOf("vae-tiny");
    const directory = copy.path("vae");
    await expect(read(directory)).rejects.toMatchObject({
      code: "INVALID_CONFIG",
      message: `${join(directory, "config.json")} is that of an autoencoder, not of a model: move it and its weights to ${join(directory, "vae")}, and ${directory} is the checkpoint of an autoencoder alone`,
    });
  });

  test("end tokens of generation_config.json stand above config.json's", async () => {
    copyOf("gemma-tiny").set("generation_config.json", { eos_token_id: [1, 107] });
    expect((await read()).config?.eosTokens).toEqual([1, 107]);
  });
});

describe("finding a model", () => {
  test("by shipped name, path, relative path and file URL", async () => {
    expect(await shippedModels()).toContain("shapes-64");
    const shipped = await locateCheckpoint("shapes-64");
    expect(existsSync(join(shipped, "config.json"))).toBe(true);
    const path = join(FIXTURES, "gemma-tiny");
    expect(await locateCheckpoint(path)).toBe(path);
    expect(await locateCheckpoint(pathToFileURL(path))).toBe(path);
    expect(await locateCheckpoint(pathToFileURL(path).href)).toBe(path);
    // One of another realm: of its own class, and not of this one's.
    const { href } = pathToFileURL(path);
    const foreign = { href, [Symbol.toStringTag]: "URL" } as unknown as URL;
    expect(await locateCheckpoint(foreign)).toBe(path);
    expect(await locateCheckpoint(relative(process.cwd(), path))).toBe(path);
  });

  test("what is not there names what is", async () => {
    await expect(locateCheckpoint("shapes-65")).rejects.toMatchObject({
      code: "CHECKPOINT_NOT_FOUND",
      message: expect.stringMatching(/"shapes-65".*shapes-64/),
    });
    await expect(locateCheckpoint(join(FIXTURES, "README.md"))).rejects.toMatchObject({
      code: "CHECKPOINT_NOT_FOUND",
      message: expect.stringMatching(/README\.md" is a file$/),
    });
  });

  test("what lies on a network is not fetched, and the message says so", async () => {
    for (const [name, code] of [
      ["https://example.org/model", "INVALID_OPTION"],
      [new URL("https://example.org/model"), "INVALID_OPTION"],
      ["google/gemma-2-2b", "CHECKPOINT_NOT_FOUND"],
    ] as const) {
      await expect(locateCheckpoint(name)).rejects.toMatchObject({
        code,
        message: expect.stringContaining("nothing is downloaded"),
      });
    }
  });

  test.each([[""], [undefined], [3], ["file://host/x"], [new URL("https://example.org/model")]])(
    "%p is no name of a model",
    async (name) => {
      await expect(locateCheckpoint(name as string)).rejects.toMatchObject({
        code: "INVALID_OPTION",
      });
    },
  );

  test("a folder with nothing in it", async () => {
    copyOf("gemma-tiny");
    mkdirSync(copy.path("empty"));
    renameSync(copy.path("config.json"), copy.path("empty/other.json"));
    await expect(read(copy.path("empty"))).rejects.toMatchObject({ code: "CHECKPOINT_NOT_FOUND" });
  });
});

test("parameters and memory", async () => {
  const checkpoint = await read(join(FIXTURES, "unifluid-tiny"));
  const { weights, copied, cachePerRow, minimum } = estimateMemory(checkpoint);
  const count = Object.values(countParameters(checkpoint)).reduce((a, b) => a + b);
  expect(weights).toBe(2 * count); // bf16
  expect(copied).toBeLessThan(2 * weights);
  expect(cachePerRow).toBe(3 * 2 * 2 * 8 * 4);
  expect(minimum).toBe(copied + 17 * cachePerRow);
  expect(() => checkMemory(checkpoint, minimum)).not.toThrow();
  expect(() => checkMemory(checkpoint, minimum - 1)).toThrow(
    expect.objectContaining({ code: "INSUFFICIENT_MEMORY", name: "InsufficientMemoryError" }),
  );
});
