/**
 * A loaded model against what the reference computed: the cases of test/model/parity.test.ts and, on a device, of the
 * checks that `npm run gpu` runs. Plain Node: no jest.
 */
import { readFileSync } from "node:fs";
import { join } from "node:path";
import type { ImageInput, UniFluid } from "../../lib";
import {
  argmaxRows,
  type Fixture,
  type FixtureInput,
  patchify,
  pixelError,
  relativeError,
} from "./parity";

/** One comparison; right where `error` is at most `tolerance`. */
export interface Finding {
  what: string;
  error: number;
  tolerance: number;
  /** What was found and what was expected, for people. */
  where?: string;
}

export interface ParityCase {
  name: string;
  run(model: UniFluid): Promise<Finding[]>;
}

export type Precision = "float32" | "bfloat16";

/** Of the largest value expected; `levels`: 8-bit levels of a pixel. */
export interface Tolerances {
  logits: number;
  features: number;
  latents: number;
  edited: number;
  encoded: number;
  levels: number;
}

/** Reference and package compute in float32, in other orders. */
const FLOAT32: Tolerances = {
  logits: 1e-4,
  features: 1e-4,
  latents: 1e-3,
  edited: 1e-3,
  encoded: 1e-3,
  levels: 2,
};

/**
 * Four times bfloat16's unit roundoff: what one rounding of all elements of a row costs the worst of many, where what
 * follows magnifies it a little. Independent roundings add as squares.
 */
const BF16 = 4 * 2 ** -9;
export const roundings = (count: number) => BF16 * Math.sqrt(count);
/**
 * Untrained decoders magnify more: the reference's own logits are off by up to 4.9 unit roundoffs times the root of the
 * roundings, where nothing but the outputs of its products and norms are rounded.
 */
const DECODER = 1.5;

interface Sizes {
  text?: { num_hidden_layers: number };
  vision?: { num_hidden_layers: number };
  head?: { depth: number; objective?: string };
  vae?: { block_out_channels: number[]; layers_per_block: number };
  guidance: number;
}

function readSizes(directory: string): Sizes {
  const read = (file: string) => {
    try {
      return JSON.parse(readFileSync(join(directory, file), "utf8"));
    } catch {
      return undefined; // a model without this part
    }
  };
  const config = read("config.json");
  return {
    text: config?.text_config ?? config,
    vision: config?.vision_config,
    head: config?.diffusion_head,
    vae: read("vae/config.json"),
    guidance: read("generation_config.json")?.image?.guidance ?? 1,
  };
}

/**
 * What bfloat16's roundings allow a model: in a layer of the decoder 10 of them reach the row (norms, projections,
 * attention, gate, sums), in one of the vision tower 8, in the head as many as test/cuda/cases/diffusion.ts counts, in a
 * block of the autoencoder 5. Guidance adds g times one row of the head and takes g - 1 times another.
 */
export function tolerancesOf(directory: string, precision: Precision): Tolerances {
  if (precision === "float32") return FLOAT32;
  const { text, vision, head, vae, guidance } = readSizes(directory);
  const seen = vision ? 2 + 8 * vision.num_hidden_layers : 0;
  const decoded = 2 + 10 * (text?.num_hidden_layers ?? 0);
  const drawn = decoded + (head ? 6 + 3 * head.depth : 0);
  const guided = Math.hypot(guidance, guidance - 1);
  const blocks = vae ? vae.block_out_channels.length * (vae.layers_per_block + 1) + 2 : 0;
  const encoded = 10 + 5 * blocks;
  return {
    features: roundings(seen),
    logits: DECODER * roundings(seen + decoded),
    latents: guided * roundings(drawn),
    edited: guided * roundings(drawn + seen + encoded),
    encoded: roundings(encoded),
    // Decoded pixels lie in [-1, 1], 127.5 levels to a unit.
    levels: 2 + 127.5 * roundings(encoded),
  };
}

/** Objective "flow". What an untrained model of "ddpm" draws from the first step on is nothing in bfloat16 but rounding. */
export const isFlow = (directory: string) => readSizes(directory).head?.objective === "flow";

export interface ParityOptions {
  precision: Precision;
  /** How an image file is given to the model. */
  image: (path: string) => ImageInput;
}

const near = (
  what: string,
  got: ArrayLike<number>,
  want: ArrayLike<number>,
  tolerance: number,
): Finding => ({ what, error: relativeError(got, want), tolerance });

/** Equal as JSON: texts, tokens, sizes. */
function equal(what: string, got: unknown, want: unknown): Finding {
  const [a, b] = [JSON.stringify(got), JSON.stringify(want)];
  return { what, error: a === b ? 0 : 1, tolerance: 0, where: a === b ? "" : `${a} and not ${b}` };
}

/** A case for each input of a fixture that can be compared in this precision. */
export function parityCases(fixture: Fixture, options: ParityOptions): ParityCase[] {
  const { precision } = options;
  const tolerances = tolerancesOf(fixture.directory, precision);
  const exact = precision === "float32";
  const draws = exact || isFlow(fixture.directory);
  const context = { fixture, tolerances, exact, image: options.image };
  return fixture.inputs.flatMap((input): ParityCase[] => {
    const { name, task } = input;
    if (task === "text") return [textCase(context, input)];
    if (task === "caption" || task === "answer") return [readingCase(context, input)];
    if (task === "vae") return [autoencoderCase(context, input)];
    const cases = draws ? [drawingCase(context, input)] : [];
    // Apart, so that roundings of what is drawn are no part of the autoencoder's.
    return exact
      ? cases
      : [...cases, { ...decodingCase(context, input), name: `${name}, decoded` }];
  });
}

/** A case of each kind. */
export function quickest(cases: ParityCase[]): ParityCase[] {
  const kind = ({ name }: ParityCase) => name.replace(/\d+(: .*)?/, "");
  const kinds = new Set(cases.map(kind));
  return [...kinds].map((each) => cases.find((c) => kind(c) === each)!);
}

interface Context {
  fixture: Fixture;
  tolerances: Tolerances;
  exact: boolean;
  image: (path: string) => ImageInput;
}

/** The leading rows whose largest logit lies clear of the next one: so many choices are sure. */
function clearChoices(logits: ArrayLike<number>, width: number, tolerance: number): number {
  const rows = logits.length / width;
  let largest = 0;
  for (let i = 0; i < logits.length; i++) largest = Math.max(largest, Math.abs(logits[i]!));
  for (let row = 0; row < rows; row++) {
    const sorted = Array.from({ length: width }, (_, i) => logits[row * width + i]!).sort(
      (a, b) => b - a,
    );
    if (sorted[0]! - sorted[1]! < 2 * tolerance * largest) return row;
  }
  return rows;
}

function textCase({ fixture, tolerances, exact }: Context, input: FixtureInput): ParityCase {
  return {
    name: `${input.name}: ${input.text}`,
    async run(model) {
      const { ids, greedy, max_new_tokens: maxNewTokens } = input;
      const want = fixture.tensor(`${input.name}.logits`).data;
      const findings = [
        equal("tokens", [2, ...model.tokenize(input.text)], ids),
        near("logits", await model.logits({ tokens: ids }), want, tolerances.logits),
      ];
      if (!exact) return findings;
      // The model's choice at each step of a continuation that the reference chose.
      const logits = await model.logits({ tokens: [...ids, ...greedy] });
      const choices = argmaxRows(logits, model.info.vocabSize!).slice(ids.length - 1);
      const text = await model.complete(input.text, { maxNewTokens });
      return [
        ...findings,
        equal("text", text, input.greedy_text),
        equal("choices", choices.slice(0, greedy.length), greedy),
      ];
    },
  };
}

function readingCase(context: Context, input: FixtureInput): ParityCase {
  const { fixture, tolerances, exact } = context;
  const { question, greedy } = input;
  const task = input.task as "caption" | "answer";
  return {
    name: `${input.name}: ${question}`,
    async run(model) {
      const image = context.image(fixture.imageOf(input));
      const vocab = model.info.vocabSize!;
      const { shape, data } = fixture.tensor(`${input.name}.logits`);
      const suffix = greedy.slice(0, shape[0]! - 1);
      const logits = await model.logits({ image, task, question, suffix });
      const seen = fixture.tensor(`${input.name}.vision_last_hidden`);
      const { rows, width } = model.info.vision!;
      const clear = Math.min(greedy.length, clearChoices(data, vocab, tolerances.logits));
      const write = (maxNewTokens: number) =>
        task === "caption"
          ? model.caption(image, { maxNewTokens })
          : model.answer(image, question, { maxNewTokens });
      return [
        near("logits", logits, data, tolerances.logits),
        equal("prompt", templateIds(model, fixture, input), input.prefix_ids),
        equal("rows and width of features", [rows, width], seen.shape),
        near("features", await model.imageFeatures(image), seen.data, tolerances.features),
        ...(exact
          ? [
              equal("choices", argmaxRows(logits, vocab).slice(0, greedy.length), greedy),
              equal("text", await write(input.max_new_tokens), input.greedy_text.trim()),
            ]
          : []),
        ...(!exact && clear > 0
          ? [
              equal(
                `text of ${clear} tokens`,
                await write(clear),
                model.detokenize(greedy.slice(0, clear)).trim(),
              ),
            ]
          : []),
      ];
    },
  };
}

/** `<bos>` and the template's ids, as the prompt of a reading task has them. */
function templateIds(model: UniFluid, fixture: Fixture, input: FixtureInput): number[] {
  const config = JSON.parse(readFileSync(join(fixture.directory, "config.json"), "utf8"));
  const templates = config.prompts ?? {
    caption: "caption en\n",
    answer: "answer en {question}\n",
  };
  const text = templates[input.task].replace("{question}", input.question);
  return [2, ...model.tokenize(text)];
}

/** A drawing or an edit; in float32 its picture as well. */
function drawingCase(context: Context, input: FixtureInput): ParityCase {
  const { fixture, tolerances, exact } = context;
  const { name, seed, prompt, instruction } = input;
  const edit = input.task === "edit";
  return {
    name: `${name}: ${edit ? instruction : prompt}`,
    async run(model) {
      const source = edit ? context.image(fixture.imageOf(input)) : undefined;
      const latents = source
        ? await model.editLatents(source, instruction, { seed })
        : await model.generateLatents(prompt, { seed });
      const tokens = fixture.tensor(`${name}.tokens`).data;
      const allowed = edit ? tolerances.edited : tolerances.latents;
      const findings = [near("latents", latents, tokens, allowed)];
      if (source) findings.push(await encoded(model, context, input, source));
      if (exact) {
        const { pixels } = source
          ? await model.edit(source, instruction, { seed })
          : await model.generate(prompt, { seed });
        const error = pixelError(pixels, fixture.tensor(`${name}.pixels`));
        findings.push({ what: "levels of pixels", error, tolerance: tolerances.levels });
      }
      // The order of cells does not depend on how many steps each takes.
      const once = { seed, steps: 1 };
      const stream = source
        ? model.editStream(source, instruction, once)
        : model.generateStream(prompt, once);
      let cells: number[] = [];
      for await (const step of stream) cells = step.cells;
      const order = [...fixture.tensor(`${name}.order`).data];
      return [...findings, equal("order", cells, order)];
    },
  };
}

/** The clean latents of an edit's source. */
async function encoded(
  model: UniFluid,
  { fixture, tolerances }: Context,
  input: FixtureInput,
  source: ImageInput,
): Promise<Finding> {
  const clean = fixture.tensor(`${input.name}.source_latents`);
  const { grid } = model.info.image!;
  const got = await model.encodeImage(source);
  return near("source latents", got, patchify(clean, clean.shape[1]! / grid), tolerances.encoded);
}

/** The picture of the latents that the reference drew. */
function decodingCase({ fixture, tolerances }: Context, { name }: FixtureInput): ParityCase {
  return {
    name,
    async run(model) {
      const tokens = Float32Array.from(fixture.tensor(`${name}.tokens`).data);
      const { pixels } = await model.decodeLatents(tokens);
      const error = pixelError(pixels, fixture.tensor(`${name}.pixels`));
      return [{ what: "levels of pixels", error, tolerance: tolerances.levels }];
    },
  };
}

function autoencoderCase(context: Context, input: FixtureInput): ParityCase {
  const { fixture, tolerances } = context;
  const { name } = input;
  return {
    name,
    async run(model) {
      const latents = patchify(fixture.tensor(`${name}.latents`), 1);
      const decoded = fixture.tensor(`${name}.decoded`);
      const [, height, width] = decoded.shape as [number, number, number];
      const got = await model.encodeImage(context.image(fixture.imageOf(input)));
      const image = await model.decodeLatents(latents, { width, height });
      const error = pixelError(image.pixels, decoded);
      return [
        near("latents", got, latents, tolerances.encoded),
        equal("size", [image.width, image.height], [width, height]),
        { what: "levels of pixels", error, tolerance: tolerances.levels },
      ];
    },
  };
}
