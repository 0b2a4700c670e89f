/** Parts of other models in a fresh one: LDM's autoencoders, SigLIP towers, decoders and their sizes. */
import { cp, mkdir, mkdtemp, readdir, readFile, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { stringify } from "yaml";
import { UniFluid } from "../../lib";
import { Fields } from "../../lib/checkpoint/fields";
import { vaeTensors } from "../../lib/checkpoint/tensor-table";
import { parseVaeConfig } from "../../lib/checkpoint/vae-config";
import { type InitOptions, initCheckpoint } from "../../lib/init/init";
import { diffusersName, ldmConfig } from "../../lib/init/ldm-autoencoder";
import { joinSafetensors, splitSafetensors } from "../support/checkpoints";
import { FIXTURES, fixtureTensors, Tensors } from "../support/fixtures";
import { fromBFloat16 } from "../support/numbers";
import { relativeError } from "../support/parity";
import { TINY_MODEL } from "../support/training";

const LDM = join(FIXTURES, "ldm-vae");

let folder: string;
beforeAll(async () => {
  folder = await mkdtemp(join(tmpdir(), "init-parts-"));
});
afterAll(() => rm(folder, { recursive: true }));

let made = 0;
/** Makes a checkpoint of a YAML file with these fields. */
async function init(config: object, options: Partial<InitOptions>) {
  const out = join(folder, `made-${made++}`);
  await writeFile(`${out}.yaml`, stringify(config));
  return initCheckpoint(`${out}.yaml`, out, { seed: 3n, ...options });
}
const refused = (config: object, options: Partial<InitOptions>, code: string, message: RegExp) =>
  expect(init(config, options)).rejects.toMatchObject({
    code,
    message: expect.stringMatching(message),
  });
const json = async (...path: string[]) => JSON.parse(await readFile(join(...path), "utf8"));

function values(tensors: Tensors, name: string): number[] {
  const { dtype, data } = tensors.get(name);
  return dtype === "BF16" ? Array.from(data as Uint16Array, fromBFloat16) : Array.from(data);
}

describe("an autoencoder under LDM's names", () => {
  const given = { vae: { norm_num_groups: 4, scaling_factor: 0.5 } };

  async function computesWhatPyTorchDoes(directory: string) {
    const expected = fixtureTensors("ldm-vae");
    await using model = await UniFluid.load(directory, { threads: 1 });
    const side = 16;
    const area = side * side;
    const image = expected.floats("image");
    const pixels = Uint8Array.from(
      { length: 3 * area },
      (_, i) => image[(i % 3) * area + ((i / 3) | 0)]!,
    );
    const latents = await model.encodeImage({ pixels, width: side, height: side });
    const mean = expected.floats("mean");
    const cells = mean.length / 2;
    const wanted = Array.from(latents, (_, i) => 0.5 * mean[(i % 2) * cells + ((i / 2) | 0)]!);
    expect(relativeError(latents, wanted)).toBeLessThan(1e-5);
    const drawn = await model.decodeLatents(Float32Array.from(wanted));
    const out = expected.floats("pixels");
    for (const [i, byte] of drawn.pixels.entries()) {
      const value = (out[(i % 3) * area + ((i / 3) | 0)]! + 1) * 127.5;
      expect(Math.abs(byte - Math.min(255, Math.max(0, value)))).toBeLessThan(0.51);
    }
  }

  test("computes what PyTorch does, whether its file or its folder is given", async () => {
    const paths = [join(LDM, "kl.safetensors"), join(folder, "ldm")];
    await mkdir(paths[1]!);
    const { header, data } = splitSafetensors(await readFile(paths[0]!));
    // As part of a whole LDM, and beside what its training keeps.
    const tensors = Object.entries(header).filter(([name]) => name !== "__metadata__");
    const beside = (names: string[], prefix = "") =>
      joinSafetensors(
        Object.fromEntries([
          ...tensors.map(([name, entry]) => [prefix + name, entry]),
          ...names.map((name, i) => [
            name,
            {
              dtype: "I32",
              shape: [1],
              data_offsets: [data.length + 4 * i, data.length + 4 * i + 4],
            },
          ]),
        ]),
        Buffer.concat([data, Buffer.alloc(4 * names.length)]),
      );
    const whole = ["model.diffusion_model.out.0.bias", "cond_stage_model.positions", "betas"];
    await writeFile(join(paths[1]!, "model.safetensors"), beside(whole, "first_stage_model."));
    paths.push(join(folder, "trained.safetensors"));
    await writeFile(paths[2]!, beside(["model_ema.decay", "model_ema.num_updates"]));
    for (const vae of paths) {
      const { directory } = await init(given, { vae });
      await computesWhatPyTorchDoes(directory);
    }
  });

  /** Names and shapes of MAR's KL-16. */
  function kl16() {
    const tensors: { name: string; shape: number[] }[] = [];
    const add = (name: string, ...shape: number[]) =>
      tensors.push({ name: `${name}.weight`, shape }, { name: `${name}.bias`, shape: [shape[0]!] });
    const block = (name: string, inputs: number, out: number) => {
      add(`${name}.norm1`, inputs);
      add(`${name}.conv1`, out, inputs, 3, 3);
      add(`${name}.norm2`, out);
      add(`${name}.conv2`, out, out, 3, 3);
      if (inputs !== out) add(`${name}.nin_shortcut`, out, inputs, 1, 1);
    };
    const attention = (name: string, width: number) => {
      add(`${name}.norm`, width);
      for (const part of ["q", "k", "v", "proj_out"]) add(`${name}.${part}`, width, width, 1, 1);
    };
    const middle = (name: string) => {
      block(`${name}.block_1`, 512, 512);
      attention(`${name}.attn_1`, 512);
      block(`${name}.block_2`, 512, 512);
    };
    const widths = [128, 128, 256, 256, 512];
    add("encoder.conv_in", 128, 3, 3, 3);
    let width = 128;
    for (const [i, out] of widths.entries()) {
      for (let j = 0; j < 2; j++) {
        block(`encoder.down.${i}.block.${j}`, width, out);
        if (i === 4) attention(`encoder.down.${i}.attn.${j}`, out);
        width = out;
      }
      if (i < 4) add(`encoder.down.${i}.downsample.conv`, out, out, 3, 3);
    }
    middle("encoder.mid");
    add("encoder.norm_out", 512);
    add("encoder.conv_out", 32, 512, 3, 3);
    add("decoder.conv_in", 512, 16, 3, 3);
    middle("decoder.mid");
    for (const i of [4, 3, 2, 1, 0]) {
      for (let j = 0; j < 3; j++) {
        block(`decoder.up.${i}.block.${j}`, width, widths[i]!);
        width = widths[i]!;
      }
      if (i > 0) add(`decoder.up.${i}.upsample.conv`, width, width, 3, 3);
    }
    add("decoder.norm_out", 128);
    add("decoder.conv_out", 3, 128, 3, 3);
    add("quant_conv", 32, 32, 1, 1);
    add("post_quant_conv", 16, 16, 1, 1);
    return tensors.map((t) => ({ ...t, dtype: "F32" as const, offset: 0, bytes: 0, file: 0 }));
  }

  test("may be KL-16, whose configuration its tensors tell", () => {
    const tensors = kl16();
    const config = ldmConfig(tensors);
    expect(config).toMatchObject({
      block_out_channels: [128, 128, 256, 256, 512],
      layers_per_block: 2,
      latent_channels: 16,
      scaling_factor: 0.2325,
    });
    const vae = parseVaeConfig(Fields.of(config, "kl16"));
    expect(vae.downAttention).toEqual([false, false, false, false, true]);
    expect(vae.upAttention).toEqual([false, false, false, false, false]);
    // Every tensor has its place, and no place is empty.
    const plain = ({ name, shape }: { name: string; shape: number[] }) =>
      `${name} ${shape.filter((n) => n !== 1)}`;
    const found = tensors.map((t) => plain({ ...t, name: `vae.${diffusersName(t.name, 5)}` }));
    expect(found.sort()).toEqual(vaeTensors(vae).map(plain).sort());
  });

  test("is refused as a pickle, with the way to convert it, and where something is not told", async () => {
    const pickle = join(folder, "pickle");
    await mkdir(pickle);
    await writeFile(join(pickle, "kl16.ckpt"), "PK");
    for (const vae of [pickle, join(pickle, "kl16.ckpt")])
      await refused(
        given,
        { vae },
        "INVALID_OPTION",
        /kl16\.ckpt is a pickle.*save_file.*"kl16\.safe/,
      );
    const untold = { vae: { norm_num_groups: 4 } };
    await refused(untold, { vae: LDM }, "CHECKPOINT_NOT_FOUND", /one safetensors file/);
    const vae = join(LDM, "kl.safetensors");
    await refused(untold, { vae }, "INVALID_CONFIG", /vae: expected a number for scaling_factor/);
    const wide = { vae: { ...given.vae, latent_channels: 8 } };
    await refused(wide, { vae }, "INVALID_CONFIG", /expected 2 for latent_channels.*but found 8/);
    const other = join(FIXTURES, "gemma-tiny", "model.safetensors");
    await refused(given, { vae: other }, "INVALID_OPTION", /gemma-tiny.*lacks encoder\.down\.0/);
    await refused(given, { vae: join(folder, "none") }, "CHECKPOINT_NOT_FOUND", /none/);
  });
});

test("an autoencoder's own directory is taken, not only one above it", async () => {
  const vae = join(FIXTURES, "vae-tiny", "vae");
  const { directory } = await init({ vae: { scaling_factor: 0.9 } }, { vae });
  expect(await json(directory, "vae", "config.json")).toEqual({
    ...(await json(vae, "config.json")),
    scaling_factor: 0.9,
  });
  const file = "diffusion_pytorch_model.safetensors";
  const [from, to] = [new Tensors(join(vae, file)), new Tensors(join(directory, "vae", file))];
  for (const name of to.names) expect(values(to, name)).toEqual(values(from, name));
});

describe("a SigLIP directory", () => {
  /** SigLIP's forms, with the tower of a fixture. `prefix`: of the tower's names; `lacks`: one that is not there. */
  async function siglip(
    name: string,
    alone: boolean,
    prefix = "vision_model.",
    lacks?: string,
  ): Promise<string> {
    const directory = join(folder, name);
    await mkdir(directory);
    const from = join(FIXTURES, "unifluid-tiny");
    const { vision_config } = await json(from, "config.json");
    const config = alone
      ? {
          architectures: ["SiglipVisionModel"],
          ...vision_config,
          model_type: "siglip_vision_model",
        }
      : { model_type: "siglip", text_config: { hidden_size: 8 }, vision_config };
    await writeFile(join(directory, "config.json"), JSON.stringify(config));
    const { header, data } = splitSafetensors(await readFile(join(from, "model.safetensors")));
    const entries = Object.entries(header).map(([stored, entry]) => {
      const tower = /^model\.vision_tower\.vision_model\.(.*)$/.exec(stored)?.[1];
      if (tower !== undefined && tower !== lacks) return [prefix + tower, entry];
      // All else under names that a SigLIP has beside its tower.
      return [stored === "__metadata__" ? stored : `text_model.${stored}`, entry];
    });
    const file = joinSafetensors(Object.fromEntries(entries), data);
    await writeFile(join(directory, "model.safetensors"), file);
    await cp(join(from, "preprocessor_config.json"), join(directory, "preprocessor_config.json"));
    return directory;
  }

  test.each([
    ["with its text tower", false, "vision_model."],
    ["of the image tower alone", true, "vision_model."],
    ["of the image tower alone, as transformers 5 saves it,", true, ""],
  ])("%s gives the tower; the projector is fresh", async (name, alone, prefix) => {
    const directory = await siglip(name.replaceAll(" ", "-"), alone, prefix);
    const { vision_config: tower } = await json(FIXTURES, "unifluid-tiny", "config.json");
    const { vision_config: _, ...rest } = TINY_MODEL;
    const result = await init(rest, { vision: directory, vae: "shapes-64" });
    expect((await json(result.directory, "config.json")).vision_config).toMatchObject({
      hidden_size: tower.hidden_size,
      num_hidden_layers: tower.num_hidden_layers,
      model_type: "siglip_vision_model",
    });
    const to = new Tensors(join(result.directory, "model.safetensors"));
    const from = new Tensors(join(FIXTURES, "unifluid-tiny", "model.safetensors"));
    const taken = to.names.filter((n) => n.includes("vision_tower"));
    expect(taken.length).toBeGreaterThan(15);
    for (const stored of taken) expect(values(to, stored)).toEqual(values(from, stored));
    const projector = to.get("model.multi_modal_projector.linear.weight");
    expect(projector.shape).toEqual([TINY_MODEL.text_config.hidden_size, tower.hidden_size]);
    expect(Array.from(projector.data).some((v) => v !== 0)).toBe(true);
    await using model = await UniFluid.load(result.directory, { threads: 1 });
    const pixels = new Uint8Array(64 * 64 * 3).fill(120);
    await model.caption({ pixels, width: 64, height: 64 }, { maxNewTokens: 2 });
  });

  test.each(["vision_model.", ""])(
    "that lacks a tensor says so as its file spells others: %j",
    async (prefix) => {
      const vision = await siglip(`lacks-${prefix}`, true, prefix, "post_layernorm.bias");
      const { vision_config: _, ...rest } = TINY_MODEL;
      await refused(
        rest,
        { vision, vae: "shapes-64" },
        "MISSING_TENSOR",
        new RegExp(`missing: ${prefix}post_layernorm\\.bias$`),
      );
    },
  );

  test("brings its image preparation as transformers 5 writes it", async () => {
    const vision = await siglip("processor", true);
    const older = join(vision, "preprocessor_config.json");
    const image_processor = { ...(await json(older)), resample: 2 };
    await rm(older);
    await writeFile(join(vision, "processor_config.json"), JSON.stringify({ image_processor }));
    const { vision_config: _, ...rest } = TINY_MODEL;
    const { directory, preprocessor } = await init(rest, { vision, vae: "shapes-64" });
    expect(preprocessor!.filter).toBe("bilinear");
    expect(await json(directory, "preprocessor_config.json")).toEqual(image_processor);
  });

  test("of another size than the file says is refused, with both", async () => {
    const directory = await siglip("other-size", true);
    const vision_config = { ...TINY_MODEL.vision_config, hidden_size: 48 };
    const options = { vision: directory, vae: "shapes-64" };
    await refused(
      { ...TINY_MODEL, vision_config },
      options,
      "INVALID_CONFIG",
      /vision_config: expected \d+ for hidden_size, which .*other-size has, but found 48/,
    );
    const blind = { vision: join(FIXTURES, "gemma-tiny"), vae: "shapes-64" };
    await refused(
      TINY_MODEL,
      blind,
      "INVALID_CONFIG",
      /"siglip".*for model_type but found "gemma"/,
    );
  });
});

describe("a decoder", () => {
  const { text_config: _, vision_config: __, ...drawing } = TINY_MODEL;

  test.each(["gemma-tiny", "gemma2-tiny", "paligemma-tiny", "paligemma2-tiny", "unifluid-tiny"])(
    "of %s brings its sizes and its tokenizer",
    async (name) => {
      const text = join(FIXTURES, name);
      const { directory, config } = await init(drawing, { text, vae: "shapes-64" });
      const from = await json(text, "config.json");
      const { text_config } = await json(directory, "config.json");
      const own = from.text_config ?? from;
      for (const field of ["model_type", "hidden_size", "num_hidden_layers", "head_dim"])
        expect(text_config[field]).toEqual(own[field]);
      for (const field of ["architectures", "torch_dtype"])
        expect(text_config[field]).toBeUndefined();
      expect(await readFile(join(directory, "tokenizer.json"))).toEqual(
        await readFile(join(text, "tokenizer.json")),
      );
      expect(config!.bosToken).toBe(own.bos_token_id ?? from.bos_token_id ?? 2);
      const [a, b] = [text, directory].map((d) => new Tensors(join(d, "model.safetensors")));
      const key = (stored: string) =>
        stored.replace(/^.*?(layers\.|embed_tokens|norm\.weight)/, "$1");
      const originals = new Map(
        a!.names.filter((n) => !/vision|projector|diffusion/.test(n)).map((n) => [key(n), n]),
      );
      const taken = b!.names.filter((n) => n.startsWith("model.language_model."));
      expect(taken.length).toBeGreaterThan(15);
      for (const stored of taken)
        expect(values(b!, stored)).toEqual(values(a!, originals.get(key(stored))!));
    },
  );

  test("keeps what the weights do not decide as the file says, and refuses other sizes", async () => {
    const text = join(FIXTURES, "gemma2-tiny");
    const options = { text, vae: "shapes-64" };
    const under = (text_config: object) => ({ ...drawing, text_config });
    const { directory } = await init(under({ final_logit_softcapping: 20 }), options);
    const { text_config } = await json(directory, "config.json");
    expect(text_config.final_logit_softcapping).toBe(20);
    const width = text_config.hidden_size;
    // Sizes that agree may be repeated.
    await init(under({ hidden_size: width }), options);
    await refused(
      under({ hidden_size: 96 }),
      options,
      "INVALID_CONFIG",
      new RegExp(
        `text_config: expected ${width} for hidden_size, which .*gemma2-tiny has, but found 96`,
      ),
    );
    await refused(
      under({ model_type: "gemma" }),
      options,
      "INVALID_CONFIG",
      /"gemma2" for model_type/,
    );
    const vae = { text: join(FIXTURES, "vae-tiny"), vae: "shapes-64" };
    await refused(drawing, vae, "CHECKPOINT_NOT_FOUND", /config\.json/);
    expect((await readdir(folder)).filter((name) => name.endsWith(".partial"))).toEqual([]);
  });

  test("as transformers 5 saves it has its rotary base where the file may change it", async () => {
    const text = join(folder, "rope");
    await cp(join(FIXTURES, "gemma2-tiny"), text, { recursive: true });
    const { rope_theta: _, ...config } = await json(text, "config.json");
    const write = (rope: object) =>
      writeFile(join(text, "config.json"), JSON.stringify({ ...config, ...rope }));
    const options = { text, vae: "shapes-64" };
    for (const name of ["rope_parameters", "rope_scaling"]) {
      await write({ [name]: { rope_theta: 7000, rope_type: "default" } });
      for (const [given, theta] of [
        [{}, 7000],
        [{ rope_theta: 5000 }, 5000],
      ] as const) {
        const made = await init({ ...drawing, text_config: given }, options);
        const { text_config } = await json(made.directory, "config.json");
        expect(text_config.rope_theta).toBe(theta);
        expect(text_config[name]).toBeUndefined();
        expect(made.config!.text.ropeTheta).toBe(theta);
      }
    }
  });

  test("whose tokenizer has characters under the ids that begin and end texts is refused", async () => {
    const tokenizer = join(folder, "byte-level");
    await mkdir(tokenizer);
    const from = join(FIXTURES, "tokenizer", "byte-level.json");
    await cp(from, join(tokenizer, "tokenizer.json"));
    const options = { tokenizer, vae: "shapes-64" };
    const { bos_token_id, eos_token_id, ...sizes } = TINY_MODEL.text_config;
    const under = (ids: object) => ({ ...TINY_MODEL, text_config: { ...sizes, ...ids } });
    await refused(
      under({}),
      options,
      "INVALID_CONFIG",
      /expected a special token for bos_token_id but id 2 is "\\"" in .*byte-level.*; set text_config\.bos_token_id$/,
    );
    await refused(
      under({ bos_token_id: 0, eos_token_id: [0, 1] }),
      options,
      "INVALID_CONFIG",
      /expected a special token for eos_token_id but id 1 is "!"/,
    );
    const none = under({ bos_token_id: 0, eos_token_id: 479 });
    await refused(none, options, "INVALID_CONFIG", /eos_token_id but id 479 is nothing/);
    await init(under({ bos_token_id: 0, eos_token_id: 0 }), options);
  });

  test("of another width than a PaliGemma's gets a fresh projector for its tower", async () => {
    const { vision_config: _, ...rest } = TINY_MODEL;
    const wide = { ...rest, text_config: { ...rest.text_config, hidden_size: 48 } };
    const vision = join(FIXTURES, "paligemma-tiny");
    const { directory } = await init(wide, { vision, vae: "shapes-64" });
    const to = new Tensors(join(directory, "model.safetensors"));
    expect(to.get("model.multi_modal_projector.linear.weight").shape[0]).toBe(48);
  });
});

describe("what draws", () => {
  const { image_generation: _, diffusion_head: __, ...reading } = TINY_MODEL;
  const source = join(FIXTURES, "unifluid-tiny");

  test("brings its sizes and its weights, and another vision tower beside it is fresh", async () => {
    const parts = { text: source, image: source, vae: source };
    const { vision_config: tower } = TINY_MODEL;
    const { directory } = await init({ vision_config: tower }, parts);
    const [from, to] = [await json(source, "config.json"), await json(directory, "config.json")];
    expect(to.image_generation).toEqual(from.image_generation);
    expect(to.diffusion_head).toEqual(from.diffusion_head);
    const drawing = (folder: string) => json(folder, "generation_config.json");
    expect((await drawing(directory)).image).toEqual((await drawing(source)).image);
    expect(to.vision_config.hidden_size).toBe(tower.hidden_size);
    const [a, b] = [source, directory].map((d) => new Tensors(join(d, "model.safetensors")));
    const taken = b!.names.filter((name) => /^(image_|diffusion_head)/.test(name));
    expect(taken.length).toBeGreaterThan(20);
    for (const name of taken) expect(values(b!, name)).toEqual(values(a!, name));
  });

  test("is refused where it does not fit or is not there", async () => {
    const diffusion_head = { ...TINY_MODEL.diffusion_head, width: 24 };
    await refused(
      { ...reading, diffusion_head },
      { image: source, vae: source },
      "INVALID_CONFIG",
      /diffusion_head: expected \d+ for width, which .* has, but found 24/,
    );
    const text_config = { ...TINY_MODEL.text_config, hidden_size: 40 };
    await refused(
      { ...reading, text_config },
      { image: source, vae: source },
      "TENSOR_SHAPE",
      /image_/,
    );
    await refused(
      reading,
      { image: join(FIXTURES, "paligemma-tiny"), vae: source },
      "INVALID_OPTION",
      /expected a model that draws for --image/,
    );
  });
});

describe("what a model says beside its sections", () => {
  const settings = {
    prefix_attention: "causal",
    prompts: { generate: "paint {prompt}\n", caption: "say\n" },
    edit_source_latents: false,
  };
  const plain = join(FIXTURES, "unifluid-tiny");
  const own = () => join(folder, "settings");
  beforeAll(async () => {
    await cp(plain, own(), { recursive: true });
    const config = { ...(await json(plain, "config.json")), ...settings };
    await writeFile(join(own(), "config.json"), JSON.stringify(config));
  });

  test("comes with its decoder and what draws: a copy draws what the model does", async () => {
    const source = own();
    const made = await init({}, { text: source, vision: source, image: source, vae: source });
    expect(await json(made.directory, "config.json")).toMatchObject(settings);
    const drawn = async (directory: string) => {
      await using model = await UniFluid.load(directory, { threads: 1, dtype: "float32" });
      return await model.generateLatents("ab", { seed: 3, steps: 4 });
    };
    const latents = await drawn(made.directory);
    expect(latents).toEqual(await drawn(source));
    expect(latents).not.toEqual(await drawn(plain));
  });

  test("is what the file says where it says something", async () => {
    const given = {
      prefix_attention: "bidirectional",
      edit_source_latents: true,
      prompts: { generate: "{prompt}!" },
    };
    const { directory } = await init(given, { text: own(), image: own(), vae: plain });
    const config = await json(directory, "config.json");
    expect(config).toMatchObject({
      ...given,
      prompts: { generate: "{prompt}!", caption: settings.prompts.caption },
    });
  });

  test("ends texts at the tokens of a decoder's generation_config.json, unless the file says", async () => {
    const chat = join(folder, "chat");
    await cp(plain, chat, { recursive: true });
    await writeFile(join(chat, "generation_config.json"), JSON.stringify({ eos_token_id: [1, 3] }));
    const parts = { text: chat, image: plain, vae: plain };
    expect((await init({}, parts)).config!.eosTokens).toEqual([1, 3]);
    const given = { text_config: { eos_token_id: 1 } };
    expect((await init(given, parts)).config!.eosTokens).toEqual([1]);
  });

  test("is refused where two models differ in what the file does not say", async () => {
    const parts = { text: own(), image: plain, vae: plain };
    await refused(
      { prompts: { caption: "x" } },
      parts,
      "INVALID_CONFIG",
      /yaml: prompts: expected generate, which is "paint {prompt}\\n" in .*settings and "draw {prompt}\\n" in .*unifluid-tiny$/,
    );
    const { directory } = await init({ prompts: { generate: "{prompt}", caption: "x" } }, parts);
    expect(await json(directory, "config.json")).toMatchObject({
      prefix_attention: "causal",
      edit_source_latents: true,
    });
  });
});

describe("sizes that may be others than a part's", () => {
  const source = join(FIXTURES, "unifluid-flow-tiny");
  const parts = { text: source, vision: source, image: source, vae: source };
  const drawn = async (directory: string) => {
    await using model = await UniFluid.load(directory, { threads: 1, dtype: "float32" });
    return Array.from(await model.encodeImage(await model.generate("ab", { seed: 3, steps: 4 })));
  };

  test("a head of more blocks draws as before; the blocks learn", async () => {
    const plain = await init({}, parts);
    const { diffusion_head: head } = await json(source, "config.json");
    const deeper = await init({ diffusion_head: { depth: head.depth + 2 } }, parts);
    expect((await json(deeper.directory, "config.json")).diffusion_head).toEqual({
      ...head,
      depth: head.depth + 2,
    });
    expect(await drawn(deeper.directory)).toEqual(await drawn(plain.directory));
    const tensors = new Tensors(join(deeper.directory, "model.safetensors"));
    for (const block of [head.depth, head.depth + 1]) {
      const at = `diffusion_head.res_blocks.${block}`;
      const norm = (name: string) => Math.hypot(...values(tensors, `${at}.${name}.weight`));
      // The gate is zero; behind it are weights that a gradient can reach.
      expect([norm("adaLN_modulation.1"), norm("mlp.0") > 1, norm("mlp.2") > 1]).toEqual([
        0,
        true,
        true,
      ]);
    }
  });

  /** The fixture's feed-forward layers with `extra` units before them, which write next to nothing. */
  async function widened(extra: number) {
    const directory = join(folder, "widened");
    await cp(source, directory, { recursive: true });
    const config = await json(source, "config.json");
    const units = config.text_config.intermediate_size;
    config.text_config.intermediate_size = units + extra;
    await writeFile(join(directory, "config.json"), JSON.stringify(config));
    const tensors = new Tensors(join(source, "model.safetensors"));
    let data = Buffer.alloc(0);
    const header: Record<string, object> = {};
    for (const name of tensors.names) {
      const own = values(tensors, name);
      let { shape } = tensors.get(name);
      const kind = /language_model.*mlp\.(gate|up|down)_proj/.exec(name)?.[1];
      let all = own;
      if (kind) {
        const [rows, columns] = shape as [number, number];
        shape = kind === "down" ? [rows, units + extra] : [units + extra, columns];
        // New units come first, so that those to keep are not merely the first ones.
        all = Array.from({ length: shape[0]! * shape[1]! }, (_, i) => {
          const [row, column] = [Math.floor(i / shape[1]!), i % shape[1]!];
          const unit = (kind === "down" ? column : row) - extra;
          if (unit < 0) return kind === "gate" ? 3 : 1e-6;
          return own[kind === "down" ? row * columns + unit : unit * columns + column]!;
        });
      }
      const bytes = Buffer.from(Float32Array.from(all).buffer);
      header[name] = {
        dtype: "F32",
        shape: [...shape],
        data_offsets: [data.length, data.length + bytes.length],
      };
      data = Buffer.concat([data, bytes]);
    }
    await writeFile(join(directory, "model.safetensors"), joinSafetensors(header, data));
    return { directory, units };
  }

  test("narrower feed-forward layers lose the units that write least", async () => {
    const { directory, units } = await widened(16);
    const back = await init(
      { text_config: { intermediate_size: units } },
      { ...parts, text: directory },
    );
    const [a, b] = [source, back.directory].map((d) => new Tensors(join(d, "model.safetensors")));
    const projections = b!.names.filter((n) => /language_model.*mlp/.test(n));
    expect(projections.length).toBeGreaterThan(5);
    for (const name of projections) {
      expect(b!.get(name).shape).toEqual(a!.get(name).shape);
      expect(values(b!, name)).toEqual(values(a!, name));
    }
  });

  test("in the other direction they are refused, with both", async () => {
    const under = (section: string, fields: object) => ({ [section]: fields });
    const { diffusion_head: head, text_config: text } = await json(source, "config.json");
    await refused(
      under("diffusion_head", { depth: head.depth - 1 }),
      parts,
      "INVALID_CONFIG",
      new RegExp(`expected at least ${head.depth} for depth, which .* has, but found`),
    );
    const wider = { intermediate_size: text.intermediate_size + 8 };
    await refused(
      under("text_config", wider),
      parts,
      "INVALID_CONFIG",
      new RegExp(`expected at most ${text.intermediate_size} for intermediate_size`),
    );
    for (const depth of [head.depth + 0.5, "many"])
      await refused(under("diffusion_head", { depth }), parts, "INVALID_CONFIG", /depth/);
  });
});
