/**
 * What a model draws, edits and writes on CUDA beside the same on the CPU; for test/cuda/model.test.ts and, on a device,
 * for the checks that `npm run gpu` runs. Plain Node: no jest.
 */
import type { RawPixels, UniFluid } from "../../lib";
import { argmaxRows, relativeError } from "./parity";
import { type Finding, isFlow, type Precision, tolerancesOf } from "./parity-cases";

export const PROMPT = "a large red circle";
const INSTRUCTION = "make the circle blue";
const QUESTION = "what color is it?";
const EOS = 1;
const WORDS = 4;

/** A source image of the model's size. */
export function pictureFor(model: UniFluid): RawPixels {
  const { size } = model.info.image!;
  const pixels = Uint8Array.from({ length: size * size * 3 }, (_, i) => (i * 7) % 251);
  return { pixels, width: size, height: size };
}

/**
 * How both draw with objective "ddpm" of a network that was never trained. At t = 999 an error of the network enters the
 * clean token's estimate times 2e4: in 4 steps without a bound the CPU's own instruction sets draw different pictures, and
 * in bfloat16 only the estimate's sign is left. Bounded to L it moves the token by at most 2 sqrt(alpha bar) L, 0.11 after
 * the first of 8 steps, and the steps that follow shrink that. Guidance would multiply it.
 */
const BOUNDED = { steps: 8, x0Limit: 0.25, guidance: 1 };

/**
 * Of the largest latent that is so drawn in bfloat16, set by hand: what the roundings allow (`tolerancesOf`) knows nothing of
 * an estimate that is little but its sign, and what is drawn is fed back. The largest errors of the simulation are 0.05.
 */
const UNTRAINED = { latents: 0.15, edited: 0.15 };

/** Both models were loaded from `directory`, the first one on CUDA in this precision. */
export async function besideCpu(
  cuda: UniFluid,
  cpu: UniFluid,
  directory: string,
  precision: Precision,
): Promise<Finding[]> {
  const flow = isFlow(directory);
  const tolerances = {
    ...tolerancesOf(directory, precision),
    ...(!flow && precision === "bfloat16" && UNTRAINED),
  };
  const image = pictureFor(cuda);
  const options = { seed: 7, ...(flow ? { steps: 4 } : BOUNDED) };
  const findings: Finding[] = [];
  const near = (what: string, got: Float32Array, want: Float32Array, tolerance: number) =>
    findings.push({ what, error: relativeError(got, want), tolerance });

  const draw = (model: UniFluid) => model.generateLatents(PROMPT, options);
  near("latents", await draw(cuda), await draw(cpu), tolerances.latents);
  const edit = (model: UniFluid) => model.editLatents(image, INSTRUCTION, options);
  const edited = await edit(cpu);
  near("an edit's latents", await edit(cuda), edited, tolerances.edited);
  const pixels = async (model: UniFluid) => (await model.decodeLatents(edited)).pixels;
  const [got, want] = [await pixels(cuda), await pixels(cpu)];
  const error = got.reduce((most, v, i) => Math.max(most, Math.abs(v - want[i]!)), 0);
  findings.push({ what: "levels of the edit's pixels", error, tolerance: tolerances.levels });

  const vocab = cpu.info.vocabSize!;
  const logits = (model: UniFluid, suffix: number[], task: "answer" | "caption" = "answer") =>
    model.logits({ image, task, ...(task === "answer" && { question: QUESTION }), suffix });
  const words: number[] = [];
  while (words.length < WORDS && words.at(-1) !== EOS)
    words.push(argmaxRows(await logits(cpu, words), vocab).at(-1)!);
  const suffix = words.slice(0, -1);
  const reference = await logits(cpu, suffix);
  near("an answer's logits", await logits(cuda, suffix), reference, tolerances.logits);
  const caption = (model: UniFluid) => logits(model, [], "caption");
  near("a caption's logits", await caption(cuda), await caption(cpu), tolerances.logits);

  const same = (what: string, found: string, allowed: string[]) =>
    findings.push({
      what,
      error: allowed.includes(found) ? 0 : 1,
      tolerance: 0,
      where: `${JSON.stringify(found)}, expected one of ${JSON.stringify(allowed)}`,
    });
  const answer = (model: UniFluid, settings: object) => model.answer(image, QUESTION, settings);
  // Words whose logits are as near to the largest as rounding can bring them may be chosen in its place.
  const first = reference.subarray(0, vocab);
  const [highest, size] = first.reduce(
    ([a, b], v) => [Math.max(a, v), Math.max(b, Math.abs(v))],
    [-Infinity, 0],
  );
  const likely = [...first.keys()].filter(
    (i) => first[i]! >= highest - 2 * tolerances.logits * size,
  );
  const texts = likely.map((i) => (i === EOS ? "" : cpu.detokenize([i]).trim()));
  same("an answer's first word", await answer(cuda, { maxNewTokens: 1 }), texts);
  if (precision === "float32")
    for (const [what, settings] of [
      ["an answer", { maxNewTokens: WORDS }],
      ["a sampled answer", { maxNewTokens: WORDS, temperature: 1, seed: 3 }],
    ] as const)
      same(what, await answer(cuda, settings), [await answer(cpu, settings)]);
  return findings;
}
