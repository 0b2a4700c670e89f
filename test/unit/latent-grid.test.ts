/** How pictures and latents go together, without a model's weights. */
import type { Checkpoint } from "../../lib/checkpoint/checkpoint";
import { encodedSize, latentGrid } from "../../lib/latent-grid";

/** An autoencoder of factor 4 with 3 latent channels; `imageSize`: as part of a model whose tokens are 2 x 2 latents. */
const checkpoint = (imageSize?: number) =>
  ({
    spec: {
      vae: { latentChannels: 3, blockOutChannels: [8, 8, 8] },
      image: imageSize === undefined ? undefined : { latentPatch: 2, tokenChannels: 12 },
    },
    config: imageSize === undefined ? undefined : { image: { imageSize } },
  }) as unknown as Checkpoint;

test("a model encodes at its own size, an autoencoder alone at the image's", () => {
  expect(encodedSize(checkpoint(64), { width: 30, height: 7 })).toEqual([64, 64]);
  expect(encodedSize(checkpoint(), { width: 40, height: 8 })).toEqual([40, 8]);
  expect(() => encodedSize(checkpoint(), { width: 40, height: 7 })).toThrow(
    "expected an image whose sides are multiples of 4 but received 40 x 7",
  );
  expect(() => encodedSize(checkpoint(), { width: 8, height: 2 ** 15 + 4 })).toThrow(
    "the image has 8 x 32772 pixels; an autoencoder encodes sides of at most 32768",
  );
});

test("latents are of a square, or of the width and height that are given", () => {
  expect(latentGrid(checkpoint(), 5 * 5 * 3)).toEqual([5, 5]);
  expect(latentGrid(checkpoint(64), 5 * 5 * 12)).toEqual([5, 5]);
  expect(latentGrid(checkpoint(), 10 * 2 * 3, 40, 8)).toEqual([10, 2]);
  expect(latentGrid(checkpoint(64), 5 * 1 * 12, 40, 8)).toEqual([5, 1]);
});

test.each<[number, number?, number?, string?]>([
  [0, undefined, undefined, "latents of a square of cells with 3 channels"],
  [15, undefined, undefined, "latents of a square of cells with 3 channels"],
  [60, 40, undefined, "an integer .* for height"],
  [60, 40, 6, "a multiple of 4 for height"],
  [60, 40, 4, "10 x 3 values for latents"],
  [60, 2 ** 16, 4, "an integer .* for width"],
])("%p values for %p x %p pixels are refused", (values, width, height, expected) => {
  expect(() => latentGrid(checkpoint(), values, width, height)).toThrow(
    new RegExp(`expected ${expected}`),
  );
});
