/** Fresh checkpoints: of the sizes asked for, the same for one seed, with parts of other models. */
import { readdirSync } from "node:fs";
import { copyFile, mkdir, mkdtemp, readdir, readFile, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { dirname, join, resolve } from "node:path";
import { parse, stringify } from "yaml";
import { UniFluid } from "../../lib";
import { parseModelConfig } from "../../lib/checkpoint/config";
import { Fields } from "../../lib/checkpoint/fields";
import { parseVaeConfig } from "../../lib/checkpoint/vae-config";
import { initCheckpoint } from "../../lib/init/init";
import { refuseUnread } from "../../lib/init/unread";
import { FIXTURES, Tensors } from "../support/fixtures";
import { fromBFloat16 } from "../support/numbers";
import { TINY_MODEL } from "../support/training";

let folder: string;
beforeAll(async () => {
  folder = await mkdtemp(join(tmpdir(), "init-"));
});
afterAll(() => rm(folder, { recursive: true }));

async function yaml(name: string, config: object): Promise<string> {
  const path = join(folder, `${name}.yaml`);
  await writeFile(path, stringify(config));
  return path;
}

const options = { seed: 3n, tokenizer: "shapes-64", vae: "shapes-64" };
const weights = (name: string) => new Tensors(join(folder, name, "model.safetensors"));

test("a fresh model draws, edits and describes", async () => {
  const path = await yaml("a", TINY_MODEL);
  await initCheckpoint(path, join(folder, "a"), options);
  await using model = await UniFluid.load(join(folder, "a"), { threads: 1 });
  const image = await model.generate("a red circle", { steps: 2, seed: 1 });
  expect([image.width, image.height]).toEqual([64, 64]);
  await model.edit(image, "make the circle blue", { steps: 1, seed: 1 });
  await model.caption(image, { maxNewTokens: 3 });

  // transformers refuses a whole number there.
  const written = await readFile(join(folder, "a", "config.json"), "utf8");
  expect(written).toContain('"final_logit_softcapping": 30.0,');

  const tensors = weights("a");
  const all = (name: string) => Array.from(tensors.floats(name));
  // Gemma's norms hold what is added to 1; the head begins as the identity.
  expect(all("model.language_model.norm.weight").every((v) => v === 0)).toBe(true);
  expect(all("diffusion_head.final_layer.linear.weight").every((v) => v === 0)).toBe(true);
  expect(all("diffusion_head.res_blocks.0.in_ln.weight").every((v) => v === 1)).toBe(true);
  const spread = (v: number[]) => Math.sqrt(v.reduce((s, x) => s + x * x, 0) / v.length);
  // 1024 and more draws: a tenth is four standard deviations.
  const q = spread(all("model.language_model.layers.0.self_attn.q_proj.weight"));
  expect(Math.abs(q / 0.02 - 1)).toBeLessThan(0.1);
  const positions = spread(all("image_position.weight"));
  expect(Math.abs(positions / 0.5 - 1)).toBeLessThan(0.01);
});

test("one seed, one model", async () => {
  const path = await yaml("b", TINY_MODEL);
  await initCheckpoint(path, join(folder, "b1"), options);
  await initCheckpoint(path, join(folder, "b2"), options);
  await initCheckpoint(path, join(folder, "b3"), { ...options, seed: 4n });
  const read = (name: string) => readFile(join(folder, name, "model.safetensors"));
  expect(Buffer.compare(await read("b1"), await read("b2"))).toBe(0);
  expect(Buffer.compare(await read("b1"), await read("b3"))).not.toBe(0);
  expect((await readdir(folder)).filter((n) => n.endsWith(".partial"))).toEqual([]);
});

test("a tokenizer without tokenizer_config.json, which nothing here reads, is taken as it is", async () => {
  const words = join(folder, "words");
  await mkdir(words);
  const shipped = resolve(__dirname, "../../models/shapes-64/tokenizer.json");
  await copyFile(shipped, join(words, "tokenizer.json"));
  const path = await yaml("bare", TINY_MODEL);
  await initCheckpoint(path, join(folder, "bare"), { ...options, tokenizer: words });
  const made = await readdir(join(folder, "bare"));
  expect(made).toContain("tokenizer.json");
  expect(made).not.toContain("tokenizer_config.json");
});

test("a signal ends it within a tensor, and nothing stays", async () => {
  // Twenty million weights in one matrix.
  const text_config = { ...TINY_MODEL.text_config, vocab_size: 40_000, hidden_size: 512 };
  const path = await yaml("large", { ...TINY_MODEL, text_config });
  const controller = new AbortController();
  setTimeout(() => controller.abort(new Error("enough")), 100);
  const { signal } = controller;
  const making = initCheckpoint(path, join(folder, "large"), { ...options, signal });
  await expect(making).rejects.toThrow("enough");
  expect((await readdir(folder)).filter((n) => /large\b(?!\.yaml)/.test(n))).toEqual([]);
});

test('a head for objective "ddpm" begins with the noise as its input', async () => {
  const head = { width: 96, depth: 1, timesteps: 1000, objective: "ddpm" };
  const path = await yaml("c", { ...TINY_MODEL, diffusion_head: head });
  await initCheckpoint(path, join(folder, "c"), options);
  const tensors = weights("c");
  // Without a bound a fresh head leaves the numbers.
  const drawing = JSON.parse(await readFile(join(folder, "c", "generation_config.json"), "utf8"));
  expect(drawing.image.x0_limit).toBe(5);
  const [width, channels] = [96, 64];
  const input = tensors.floats("diffusion_head.input_proj.weight");
  const bias = tensors.floats("diffusion_head.input_proj.bias");
  const output = tensors.floats("diffusion_head.final_layer.linear.weight");
  // With blocks that change nothing: out = W_out norm(W_in x + b), against x itself.
  const x = Array.from({ length: channels }, (_, i) => Math.sin(1 + 3 * i) * 1.4);
  const hidden = Array.from(
    { length: width },
    (_, i) => bias[i]! + x.reduce((s, v, c) => s + v * input[i * channels + c]!, 0),
  );
  const mean = hidden.reduce((s, v) => s + v, 0) / width;
  const root = Math.sqrt(hidden.reduce((s, v) => s + (v - mean) ** 2, 0) / width);
  for (let c = 0; c < channels; c++) {
    const out = hidden.reduce((s, v, i) => s + ((v - mean) / root) * output[c * width + i]!, 0);
    // The norm of x, near sqrt(channels), is not exactly what was assumed.
    expect(Math.abs(out - x[c]!)).toBeLessThan(0.05);
  }
});

test.each([1, 64, 65])(
  'a head for objective "ddpm" of width %p, too narrow for that, begins with no noise',
  async (width) => {
    const name = `narrow-${width}`;
    const head = { width, depth: 1, timesteps: 1000, objective: "ddpm" };
    const path = await yaml(name, { ...TINY_MODEL, diffusion_head: head });
    await initCheckpoint(path, join(folder, name), options);
    const tensors = weights(name);
    const all = (tensor: string) => Array.from(tensors.floats(`diffusion_head.${tensor}`));
    expect(all("final_layer.linear.weight").every((v) => v === 0)).toBe(true);
    const [channels, input] = [64, all("input_proj.weight")];
    const bound = Math.sqrt(6 / (width + channels));
    expect(input.every((v) => Math.abs(v) <= bound)).toBe(true);
    expect(new Set(input).size).toBeGreaterThan(channels / 2);
  },
);

test("of the sizes of an autoencoder comes an autoencoder alone", async () => {
  const vae = { block_out_channels: [8, 16], norm_num_groups: 4, latent_channels: 2 };
  const made = await initCheckpoint(await yaml("alone", { vae }), join(folder, "alone"), {
    seed: 1n,
    tokenizer: "shapes-64",
  });
  expect(made.kind).toBe("vae");
  expect(await readdir(join(folder, "alone"))).toEqual(["vae"]);
  await using model = await UniFluid.load(join(folder, "alone"), { threads: 1 });
  const pixels = new Uint8Array(8 * 8 * 3).fill(99);
  const latents = await model.encodeImage({ pixels, width: 8, height: 8 });
  expect(latents).toHaveLength(4 * 4 * 2);
});

test("parts come from other models, bit for bit", async () => {
  const tiny = join(FIXTURES, "unifluid-tiny");
  const config = JSON.parse(await readFile(join(tiny, "config.json"), "utf8"));
  const path = await yaml("d", {
    ...config,
    diffusion_head: { width: 16, depth: 1, timesteps: 1000, objective: "flow" },
  });
  const made = await initCheckpoint(path, join(folder, "d"), {
    seed: 1n,
    tokenizer: tiny,
    text: tiny,
    vision: tiny,
    vae: tiny,
  });
  const [from, to] = [new Tensors(join(tiny, "model.safetensors")), weights("d")];
  const values = (t: Tensors, name: string) => {
    const { dtype, data } = t.get(name);
    return dtype === "BF16" ? Array.from(data as Uint16Array, fromBFloat16) : Array.from(data);
  };
  const taken = to.names.filter((n) => /language_model|vision_tower|projector/.test(n));
  expect(taken.length).toBeGreaterThan(40);
  for (const name of taken) expect(values(to, name)).toEqual(values(from, name));
  expect(made.vae).toBeDefined();
});

test("a field that nothing reads is refused, with the name that is near", async () => {
  const refused = (config: object, message: string, change: object = {}) =>
    yaml("f", config).then((path) =>
      expect(
        initCheckpoint(path, join(folder, "f"), { ...options, ...change }),
      ).rejects.toMatchObject({
        code: "INVALID_CONFIG",
        message: message.replace("FILE", path),
      }),
    );
  const { text_config, vision_config, diffusion_head } = TINY_MODEL;
  const { hidden_size, ...others } = text_config;
  const misspelt = { ...others, hiddensize: hidden_size };
  await refused(
    { ...TINY_MODEL, text_config: misspelt },
    "FILE: text_config: unknown field hiddensize; did you mean hidden_size?",
  );
  await refused(
    { ...TINY_MODEL, vision_config: { ...vision_config, Patch_size: 8 } },
    "FILE: vision_config: unknown field Patch_size; did you mean patch_size?",
  );
  await refused(
    { ...TINY_MODEL, diffusion_head: { ...diffusion_head, dropout: 0.1 } },
    "FILE: diffusion_head: unknown field dropout",
  );
  await refused(
    { ...TINY_MODEL, difusion_head: {} },
    "FILE: unknown field difusion_head; did you mean diffusion_head?",
  );
  await refused(
    { ...TINY_MODEL, prompts: { captions: "tell " } },
    "FILE: prompts: unknown field captions; did you mean caption?",
  );
  await refused(
    { vae: { block_out_channel: [8, 16] } },
    "FILE: vae: unknown field block_out_channel; did you mean block_out_channels?",
    { vae: undefined },
  );
  // Matrices of logits of their own are not made.
  const untied = { ...text_config, tie_word_embeddings: false };
  await refused(
    { ...TINY_MODEL, text_config: untied },
    "FILE: text_config: unknown field tie_word_embeddings",
  );
  // What a part brings along is not the file's.
  const head = { ...TINY_MODEL, text_config: { vocabsize: 3 } };
  const tiny = join(FIXTURES, "unifluid-tiny");
  await refused(head, "FILE: text_config: unknown field vocabsize; did you mean vocab_size?", {
    text: tiny,
    tokenizer: undefined,
  });
});

test("files of sizes in this repository are read whole", async () => {
  const root = join(__dirname, "../..");
  const sizes = ["examples/train", "bench", "bench/findings"].flatMap((place) =>
    readdirSync(join(root, place))
      .filter((name) => name.endsWith(".yaml"))
      .map((name) => join(root, place, name)),
  );
  let count = 0;
  for (const path of sizes) {
    const { vae = {}, ...config } = parse(await readFile(path, "utf8"));
    if (config.sources) continue; // of a run
    const readVae = Fields.of(vae, path);
    parseVaeConfig(readVae);
    refuseUnread(readVae, vae, path);
    count++;
    if (Object.keys(config).length === 0) continue;
    // Sections that parts of other models bring.
    const { text_config = {}, diffusion_head = {}, ...rest } = config;
    const whole = {
      model_type: "unifluid",
      image_generation: TINY_MODEL.image_generation,
      ...rest,
      text_config: { ...TINY_MODEL.text_config, ...text_config },
      diffusion_head: { ...TINY_MODEL.diffusion_head, ...diffusion_head },
    };
    const read = Fields.of(whole, path);
    parseModelConfig(read);
    refuseUnread(read, config, path);
  }
  expect(count).toBeGreaterThan(4);
});

test("what does not fit is refused, and leaves nothing", async () => {
  const refused = (config: object, change: object, code: string, message: RegExp) =>
    yaml("e", config).then((path) =>
      expect(
        initCheckpoint(path, join(folder, "e"), { ...options, ...change }),
      ).rejects.toMatchObject({ code, message: expect.stringMatching(message) }),
    );
  const wide = { ...TINY_MODEL, text_config: { ...TINY_MODEL.text_config, hidden_size: 64 } };
  const tiny = join(FIXTURES, "unifluid-tiny");
  await refused(wide, { text: tiny }, "INVALID_CONFIG", /text_config: .*but found/);
  const small = { ...TINY_MODEL, text_config: { ...TINY_MODEL.text_config, vocab_size: 100 } };
  await refused(small, {}, "TOKENIZER_MISMATCH", /tokenizer\.json/);
  const { text_config: _, ...none } = TINY_MODEL;
  await refused(none, {}, "INVALID_CONFIG", /text_config/);
  await refused(TINY_MODEL, { vae: undefined }, "INVALID_CONFIG", /vae/);
  const grid = { ...TINY_MODEL, image_generation: { ...TINY_MODEL.image_generation, grid: 5 } };
  await refused(grid, {}, "INVALID_CONFIG", /grid/);
  await expect(
    initCheckpoint(join(folder, "none.yaml"), join(folder, "e"), options),
  ).rejects.toMatchObject({ code: "INVALID_CONFIG" });
  await expect(initCheckpoint(await yaml("e", TINY_MODEL), folder, options)).rejects.toMatchObject({
    code: "INVALID_OPTION",
  });
  expect((await readdir(folder)).filter((n) => /^e($|\.partial)/.test(n))).toEqual([]);
});

// Longer paths than this a Linux system takes none of.
const onLinux = process.platform === "linux" ? test : test.skip;
onLinux("where a file within cannot be made nothing is left", async () => {
  const above = join(folder, "deep");
  let out = above;
  const within = ".partial/vae/diffusion_pytorch_model.safetensors";
  const room = 4095 - within.length;
  while (out.length < room - 100) out = join(out, "x".repeat(90));
  // Itself it fits, and its lock, but not the autoencoder's weights in it.
  out = join(out, "x".repeat(room + 1 - out.length - 1));
  const path = await yaml("deep", TINY_MODEL);
  await expect(initCheckpoint(path, out, options)).rejects.toMatchObject({ code: "ENAMETOOLONG" });
  expect(await readdir(dirname(out))).toEqual([]);
});
