/** Drawings of a model's own as data: which are kept, how often it tries, what is refused. */
import { Image } from "../../lib/image";
import type { UniFluid } from "../../lib/model";
import { drawPixels } from "../../lib/scenes/draw";
import { drawOwn } from "../../lib/scenes/own-drawings";
import { type Scene, SIZE } from "../../lib/scenes/world";
import { thing } from "../support/scenes";

const wanted: Scene = {
  background: "pink",
  objects: [thing("large red circle", 18, 20), thing("small blue square", 48, 44)],
};
const smaller: Scene = {
  ...wanted,
  objects: [thing("small red circle", 18, 20), thing("small blue square", 48, 44)],
};
const turned: Scene = {
  ...wanted,
  objects: [thing("large red circle", 46, 44), thing("small blue square", 14, 14)],
};
const recolored: Scene = {
  ...wanted,
  objects: [thing("large red circle", 18, 20), thing("small cyan square", 48, 44)],
};

const pictureOf = async (scene: Scene) => Image.fromPixels(await drawPixels(scene), SIZE, SIZE);

/** Draws one scene after another; its autoencoder makes `read` of each, or what it was. */
function artist(scenes: readonly Scene[], read?: Scene) {
  const asked: { prompt: string; seed: bigint }[] = [];
  const model = {
    generate(prompt: string, { seed }: { seed: bigint }) {
      asked.push({ prompt, seed });
      return pictureOf(scenes[asked.length - 1]!);
    },
    encodeImage: async (image: Image) => image,
    decodeLatents: async (image: Image) => (read ? pictureOf(read) : image),
  };
  return { model: model as unknown as UniFluid, asked };
}

const short = [{ size: false, background: false }];
const options = { seed: 3n, split: "train", attempts: 3 } as const;

test("it draws until the picture shows what the prompt says, with a seed of its own each time", async () => {
  const { model, asked } = artist([recolored, turned, smaller]);
  const own = await drawOwn(model, wanted, 0, short, options);
  expect(own?.prompt).toBe("a red circle left of a blue square");
  expect(own?.image.pixels).toEqual(await drawPixels(smaller)); // its sizes were not asked for
  expect(asked.map(({ prompt }) => prompt)).toEqual(Array(3).fill(own?.prompt));
  expect(new Set(asked.map(({ seed }) => seed)).size).toBe(3);
});

test("sizes and background count where the prompt says them", async () => {
  const full = [{ size: true, background: true }];
  const { model, asked } = artist([smaller, { ...wanted, background: "white" }, wanted]);
  const own = await drawOwn(model, wanted, 0, full, options);
  expect(own?.prompt).toMatch(/^a large red circle .* on a pink background$/);
  expect(own?.image.pixels).toEqual(await drawPixels(wanted));
  expect(asked).toHaveLength(3);
});

test("a scene that it never gets right is left out, and so is what the autoencoder loses", async () => {
  const wrong = artist([recolored, recolored, recolored, wanted]);
  expect(await drawOwn(wrong.model, wanted, 0, short, options)).toBeUndefined();
  expect(wrong.asked).toHaveLength(3);
  const blurred = artist([wanted, wanted, wanted], recolored);
  expect(await drawOwn(blurred.model, wanted, 0, short, options)).toBeUndefined();
});

test("the same seed asks for the same, another for other drawings", async () => {
  const seedsOf = async (seed: bigint, index: number) => {
    const { model, asked } = artist([recolored, recolored, recolored]);
    await drawOwn(model, wanted, index, short, { ...options, seed });
    return asked.map((each) => each.seed);
  };
  expect(await seedsOf(3n, 0)).toEqual(await seedsOf(3n, 0));
  expect(await seedsOf(4n, 0)).not.toEqual(await seedsOf(3n, 0));
  expect(await seedsOf(3n, 1)).not.toEqual(await seedsOf(3n, 0));
});
