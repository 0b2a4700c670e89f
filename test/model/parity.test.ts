/**
 * The whole way against the reference implementation's numbers, on every fixture and every instruction
 * set of this processor, and on CUDA.
 */

import { readdirSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { loadAddon } from "../../lib/addon";
import { type LoadOptions, UniFluid } from "../../lib/index";
import { FIXTURES } from "../support/fixtures";
import { simulatedLibrary } from "../support/ops";
import {
  argmaxRows,
  type Fixture,
  type FixtureInput,
  openFixture,
  patchify,
  pixelError,
  relativeError,
} from "../support/parity";

const LOGITS = 1e-4;
const LATENTS = 1e-3;
const LEVELS = 2;

/** UNIFLUID_FIXTURES names a folder of other fixtures to check instead. */
const other = process.env.UNIFLUID_FIXTURES;
const folder = other ?? FIXTURES;
const names = readdirSync(folder).filter((name) => /-tiny$|^shapes-64$/.test(name));

const isas = loadAddon()
  .instructionSets()
  .filter((set) => set.supported)
  .map((set) => set.name);

/** CUDA in float32, on a simulated device; the tiny ones only, for it is slow. */
const cudaNames = names.filter((name) => name.endsWith("-tiny"));

const cases: { name: string; on: string; load: LoadOptions }[] = [
  ...names.flatMap((name) =>
    isas.map((isa) => ({ name, on: isa, load: { device: "cpu" as const, isa, threads: 2 } })),
  ),
  ...cudaNames.map((name) => ({
    name,
    on: "cuda-simulated",
    load: { device: "cuda" as const, dtype: "float32" as const },
  })),
];

beforeAll(() => {
  process.env.UNIFLUID_CUDA_LIBRARY = simulatedLibrary;
});

test("all fixtures are here", () => {
  if (other === undefined) expect(names).toHaveLength(8);
});

describe.each(cases)("$name on $on", ({ name, load }) => {
  const fixture = openFixture(name, folder);
  const of = (...tasks: FixtureInput["task"][]) =>
    fixture.inputs.filter((input) => tasks.includes(input.task));
  const vocab = () => model.info.vocabSize!;
  let model: UniFluid;

  beforeAll(async () => {
    model = await UniFluid.load(fixture.directory, load);
  });
  afterAll(() => model.dispose());

  if (of("text").length > 0) {
    test.each(of("text"))("$name: $text", async (input) => {
      const { ids, greedy } = input;
      expect([2, ...model.tokenize(input.text)]).toEqual(ids);
      const logits = await model.logits({ tokens: ids });
      expect(relativeError(logits, fixture.tensor(`${input.name}.logits`).data)).toBeLessThan(
        LOGITS,
      );
      const text = await model.complete(input.text, { maxNewTokens: input.max_new_tokens });
      expect(text).toBe(input.greedy_text);
      expect(await greedyTokens(model, ids, greedy)).toEqual(greedy);
    });
  }

  if (of("caption", "answer").length > 0) {
    test.each(of("caption", "answer"))("$name: $question", async (input) => {
      const { question, greedy, max_new_tokens: maxNewTokens } = input;
      const task = input.task as "caption" | "answer";
      const image = fixture.imageOf(input);
      const { shape, data } = fixture.tensor(`${input.name}.logits`);
      const suffix = greedy.slice(0, shape[0]! - 1);
      const logits = await model.logits({ image, task, question, suffix });
      expect(relativeError(logits, data)).toBeLessThan(LOGITS);
      expect(argmaxRows(logits, vocab()).slice(0, greedy.length)).toEqual(greedy);
      const text =
        task === "caption"
          ? await model.caption(image, { maxNewTokens })
          : await model.answer(image, question, { maxNewTokens });
      expect(text).toBe(input.greedy_text.trim());
      expect(templateIds(model, fixture, input)).toEqual(input.prefix_ids);
      const seen = fixture.tensor(`${input.name}.vision_last_hidden`);
      expect([model.info.vision!.rows, model.info.vision!.width]).toEqual(seen.shape);
      expect(relativeError(await model.imageFeatures(image), seen.data)).toBeLessThan(LOGITS);
    });
  }

  if (of("generate").length > 0) {
    test.each(of("generate"))("$name: $prompt", async (input) => {
      const { prompt, seed } = input;
      const latents = await model.generateLatents(prompt, { seed });
      expect(relativeError(latents, fixture.tensor(`${input.name}.tokens`).data)).toBeLessThan(
        LATENTS,
      );
      let last: { cells: number[] } | undefined;
      for await (const step of model.generateStream(prompt, { seed })) last = step;
      expect(last!.cells).toEqual([...fixture.tensor(`${input.name}.order`).data]);
      const image = await model.generate(prompt, { seed });
      const pixels = fixture.tensor(`${input.name}.pixels`);
      expect(pixelError(image.pixels, pixels)).toBeLessThanOrEqual(LEVELS);
    });
  }

  if (of("edit").length > 0) {
    test.each(of("edit"))("$name: $instruction", async (input) => {
      const { instruction, seed } = input;
      const source = fixture.imageOf(input);
      const latents = await model.editLatents(source, instruction, { seed });
      expect(relativeError(latents, fixture.tensor(`${input.name}.tokens`).data)).toBeLessThan(
        LATENTS,
      );
      const image = await model.edit(source, instruction, { seed });
      const pixels = fixture.tensor(`${input.name}.pixels`);
      expect(pixelError(image.pixels, pixels)).toBeLessThanOrEqual(LEVELS);

      const clean = fixture.tensor(`${input.name}.source_latents`);
      const { grid, tokenChannels } = model.info.image!;
      const patch = clean.shape[1]! / grid;
      const encoded = await model.encodeImage(source);
      expect(encoded).toHaveLength(grid * grid * tokenChannels);
      expect(relativeError(encoded, patchify(clean, patch))).toBeLessThan(LATENTS);
    });
  }

  if (of("vae").length > 0) {
    test.each(of("vae"))("$name", async (input) => {
      const latents = patchify(fixture.tensor(`${input.name}.latents`), 1);
      const decoded = fixture.tensor(`${input.name}.decoded`);
      const [, height, width] = decoded.shape as [number, number, number];
      const encoded = await model.encodeImage(fixture.imageOf(input));
      expect(relativeError(encoded, latents)).toBeLessThan(LATENTS);
      const image = await model.decodeLatents(latents, { width, height });
      expect([image.width, image.height]).toEqual([width, height]);
      expect(pixelError(image.pixels, decoded)).toBeLessThanOrEqual(LEVELS);
    });
  }
});

/** The model's choice at each step of a continuation that the reference chose. */
async function greedyTokens(model: UniFluid, ids: number[], greedy: number[]): Promise<number[]> {
  const logits = await model.logits({ tokens: [...ids, ...greedy] });
  const choices = argmaxRows(logits, model.info.vocabSize!);
  return choices.slice(ids.length - 1, ids.length - 1 + greedy.length);
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
