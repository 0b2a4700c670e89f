/** Checkpoints with weights that are NaN or infinite: every result is an error that says so, never an answer. */
import { join } from "node:path";
import type { LoadOptions } from "../../lib/index";
import { UniFluid } from "../../lib/index";
import { CheckpointCopy } from "../support/checkpoints";
import { FIXTURES } from "../support/fixtures";
import { instructionSets, simulatedLibrary } from "../support/ops";

const picture = join(FIXTURES, "unifluid-tiny/answer1.png");
const MODEL = "model.safetensors";
const VAE = "vae/diffusion_pytorch_model.safetensors";

/** As each type stores them. */
const BITS = {
  NaN: { F32: 0x7fc00000, F16: 0x7e00, BF16: 0x7fc0 },
  infinity: { F32: 0x7f800000, F16: 0x7c00, BF16: 0x7f80 },
} as const;

/** Sets all elements of the tensors whose names hold `part`. */
function poison(copy: CheckpointCopy, file: string, part: string, value: keyof typeof BITS): void {
  copy.header((header, data) => {
    const names = Object.keys(header).filter((name) => name.includes(part));
    if (names.length === 0) throw new Error(`no tensor is called ${part}`);
    for (const name of names) {
      const {
        dtype,
        data_offsets: [begin, end],
      } = header[name]!;
      const bits = BITS[value][dtype as "F32"];
      if (dtype === "F32") for (let i = begin; i < end; i += 4) data.writeUInt32LE(bits, i);
      else for (let i = begin; i < end; i += 2) data.writeUInt16LE(bits, i);
    }
    return undefined;
  }, file);
}

interface Broken {
  fixture: string;
  file?: string;
  part: string;
  call: string;
  use: (model: UniFluid) => Promise<unknown>;
  /** Of the message. */
  says: RegExp;
}

const drawing = { steps: 2, x0Limit: 5, seed: 3 };
const BROKEN: Broken[] = [
  {
    fixture: "gemma2-tiny",
    part: "model.norm.weight",
    call: "complete",
    // The cap on logits would make numbers of them.
    use: (model) => model.complete("a", { maxNewTokens: 3 }),
    says: /the logits contain NaN or infinity/,
  },
  {
    fixture: "gemma2-tiny",
    part: "model.norm.weight",
    call: "logits",
    use: (model) => model.logits({ tokens: [2, 5] }),
    says: /the logits hold values that are not finite/,
  },
  {
    fixture: "gemma-tiny",
    part: "q_proj",
    call: "logits",
    use: (model) => model.logits({ tokens: [2, 5] }),
    says: /the logits hold values that are not finite/,
  },
  {
    fixture: "unifluid-tiny",
    part: "language_model.layers.0.self_attn.q_proj",
    call: "caption",
    use: (model) => model.caption(picture, { maxNewTokens: 3 }),
    says: /the logits contain NaN or infinity/,
  },
  {
    fixture: "unifluid-tiny",
    part: "language_model.norm.weight",
    call: "generate",
    use: (model) => model.generate("x", drawing),
    says: /the drawing holds values that are not finite/,
  },
  {
    fixture: "unifluid-flow-tiny",
    part: "language_model.norm.weight",
    call: "generateLatents",
    use: (model) => model.generateLatents("x", drawing),
    says: /the drawing holds values that are not finite/,
  },
  {
    fixture: "unifluid-tiny",
    part: "diffusion_head.final_layer.linear",
    call: "generateLatents",
    use: (model) => model.generateLatents("x", drawing),
    says: /the drawing holds values that are not finite/,
  },
  // The first token already: who previews it must not be told of latents of his own.
  {
    fixture: "unifluid-tiny",
    part: "diffusion_head.final_layer.linear",
    call: "generateStream",
    use: async (model) => {
      for await (const progress of model.generateStream("x", drawing)) await progress.preview();
    },
    says: /the drawing holds values that are not finite/,
  },
  {
    fixture: "unifluid-tiny",
    part: "vision_tower.vision_model.encoder.layers.0.mlp",
    call: "imageFeatures",
    use: (model) => model.imageFeatures(picture),
    says: /the image features hold values that are not finite/,
  },
  // Features are not looked at before they enter a prefix: what comes of it is.
  {
    fixture: "unifluid-tiny",
    part: "vision_tower.vision_model.encoder.layers.0.mlp",
    call: "caption",
    use: (model) => model.caption(picture, { maxNewTokens: 3 }),
    says: /the logits contain NaN or infinity/,
  },
  {
    fixture: "unifluid-tiny",
    part: "vision_tower.vision_model.encoder.layers.0.mlp",
    call: "logits",
    use: (model) => model.logits({ image: picture, task: "caption" }),
    says: /the logits hold values that are not finite/,
  },
  {
    fixture: "unifluid-tiny",
    part: "vision_tower.vision_model.encoder.layers.0.mlp",
    call: "edit",
    use: (model) => model.edit(picture, "x", drawing),
    says: /the drawing holds values that are not finite/,
  },
  {
    fixture: "unifluid-tiny",
    file: VAE,
    part: "encoder.conv_out",
    call: "encodeImage",
    use: (model) => model.encodeImage(picture),
    says: /the latents of the image hold values that are not finite/,
  },
  {
    fixture: "unifluid-tiny",
    file: VAE,
    part: "encoder.conv_out",
    call: "edit",
    use: (model) => model.edit(picture, "x", drawing),
    says: /the latents of the source image hold values that are not finite/,
  },
  {
    fixture: "unifluid-tiny",
    file: VAE,
    part: "decoder.conv_out",
    call: "generate",
    use: (model) => model.generate("x", drawing),
    says: /gave a pixel that is not finite/,
  },
];

const DEVICES: { name: string; options: LoadOptions }[] = [
  ...instructionSets.map((isa) => ({ name: isa, options: { device: "cpu", isa } as LoadOptions })),
  { name: "cuda-simulated, float32", options: { device: "cuda", dtype: "float32" } },
  { name: "cuda-simulated, bfloat16", options: { device: "cuda", dtype: "bfloat16" } },
];

beforeAll(() => {
  process.env.UNIFLUID_CUDA_LIBRARY = simulatedLibrary;
});

describe.each(["NaN", "infinity"] as const)("weights of %s", (value) => {
  describe.each(BROKEN)(
    "$part of $fixture: $call",
    ({ fixture, file = MODEL, part, use, says }) => {
      let copy: CheckpointCopy;
      beforeAll(() => {
        copy = new CheckpointCopy(fixture);
        poison(copy, file, part, value);
      });
      afterAll(() => copy.remove());

      test.each(DEVICES)("$name", async ({ options }) => {
        const model = await UniFluid.load(copy.directory, { threads: 1, ...options });
        try {
          await expect(use(model)).rejects.toMatchObject({
            code: "NUMERICAL_ERROR",
            message: expect.stringMatching(says),
          });
        } finally {
          await model.dispose();
        }
      });
    },
  );
});
