/**
 * Training of each kind of model that the specification allows, against PyTorch's gradients of one step: Gemma 1 and
 * Gemma 2, a matrix of logits of its own, causal prefixes, no source latents, no vision tower, no diffusion head.
 */
import { readdirSync } from "node:fs";
import { join } from "node:path";
import type { NativeModelSpec } from "../../lib/native";
import { FIXTURES, fixtureJson, Tensors } from "../support/fixtures";
import {
  batchOf,
  byName,
  GRADIENT,
  placeOf,
  readFloats,
  specOf,
  trained,
  trainersOfTests,
  trainingPlaces,
  VARIANTS,
  wrongGradients,
} from "../support/training";

interface Expected {
  text_weight: number;
  variants: Record<
    string,
    {
      noise_weight_cap: number;
      /** null: of no tokens. */
      image_loss: number | null;
      text_loss: number | null;
      gradient_norm: number;
      by_task: Record<string, number>;
    }
  >;
}
const { text_weight: textWeight, variants } = fixtureJson<Expected>("training");

const trainer = trainersOfTests();

const AT = { step: 1, learningRate: 0 };
const expectRatio = (got: number, want: number | null, within: number) =>
  want === null
    ? expect(got).toBeNaN()
    : expect(Math.abs(got / want - 1)).toBeLessThanOrEqual(within);

test("every variant is here, and each is another model", async () => {
  const names = Object.keys(variants).sort();
  expect(readdirSync(join(FIXTURES, VARIANTS)).sort()).toEqual(names);
  const kinds = await Promise.all(
    names.map(async (name) => {
      const { text, vision, image } = await specOf(join(VARIANTS, name));
      return {
        name,
        gemma2: text!.gemma2,
        tied: text!.tied,
        bidirectional: text!.bidirectionalPrefix,
        vision: vision?.activation,
        image: image && (image.flow ? "flow" : "ddpm"),
        sources: image?.editSourceLatents,
      };
    }),
  );
  const gelu = "gelu_tanh";
  const unifluid = { gemma2: true, tied: true, bidirectional: true, vision: gelu, sources: true };
  const causal = { tied: false, bidirectional: false };
  expect(kinds).toEqual([
    { name: "gemma1", ...unifluid, gemma2: false, image: "ddpm" },
    { name: "gemma1-untied-causal", ...unifluid, ...causal, gemma2: false, image: "flow" },
    { name: "gemma2-untied-causal", ...unifluid, ...causal, image: "ddpm" },
    { name: "no-source-latents", ...unifluid, image: "flow", sources: false },
    { name: "no-vision", ...unifluid, tied: false, image: "ddpm", vision: undefined },
    {
      ...unifluid,
      ...{ name: "paligemma", gemma2: false, image: undefined, vision: "gelu_erf" },
      sources: undefined,
    },
  ]);
});

describe.each(Object.entries(variants))("%s", (name, want) => {
  const kind = name === "paligemma" ? name : "unifluid";
  const tensors = new Tensors(join(FIXTURES, VARIANTS, name, "gradients.safetensors"));
  const names = byName(tensors, kind);
  const unified = { noiseWeightCap: want.noise_weight_cap, textWeight };
  const base = { unified, optimizer: GRADIENT };
  let spec: NativeModelSpec;
  beforeAll(async () => {
    spec = await specOf(join(VARIANTS, name));
  });

  test.each(trainingPlaces)("losses and every gradient are PyTorch's (%s)", async (place) => {
    const t = await trainer(spec, { ...base, ...placeOf(place) });
    const result = await t.step([batchOf(spec, 1)], AT);
    expect(Object.keys(result.byTask).sort()).toEqual(Object.keys(want.by_task).sort());
    expectRatio(result.imageLoss, want.image_loss, 1e-5);
    expectRatio(result.textLoss, want.text_loss, 1e-5);
    expectRatio(result.gradientNorm, want.gradient_norm, 1e-4);
    for (const [task, loss] of Object.entries(want.by_task))
      expectRatio(result.byTask[task]!.loss, loss, 1e-5);
    expect([...names.keys()].sort()).toEqual(trained(spec).sort());
    expect(wrongGradients(t, tensors, names, want.gradient_norm)).toEqual([]);
  });

  test("the same bits with recomputed activations", async () => {
    const [kept, again] = [
      await trainer(spec, base),
      await trainer(spec, { ...base, unified: { ...unified, recompute: true } }),
    ];
    for (const t of [kept, again]) await t.step([batchOf(spec, 1)], AT);
    for (const tensor of trained(spec))
      expect(readFloats(again, tensor, "first")).toEqual(readFloats(kept, tensor, "first"));
  });
});

test("a frozen vision tower leaves the other gradients as they are", async () => {
  const spec = await specOf(join(VARIANTS, "gemma1"));
  const frozen = trained(spec).filter((n) => n.startsWith("vision_tower."));
  const want = variants.gemma1!;
  const unified = { noiseWeightCap: want.noise_weight_cap, textWeight };
  const t = await trainer(spec, { unified, optimizer: GRADIENT, frozen });
  await t.step([batchOf(spec, 1)], AT);
  const tensors = new Tensors(join(FIXTURES, VARIANTS, "gemma1", "gradients.safetensors"));
  const rest = [...byName(tensors, "unifluid")].filter(([n]) => !frozen.includes(n));
  expect(frozen.length).toBeGreaterThan(0);
  expect(wrongGradients(t, tensors, new Map(rest), want.gradient_norm)).toEqual([]);
});
