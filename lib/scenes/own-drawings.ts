/**
 * Drawings of a model's own to learn from: it draws each scene from a prompt until a rule finds in the picture what
 * the prompt says. What a model draws is what it follows when it draws on; true pictures never show it that (rejection
 * sampling fine-tuning, as in RAFT, 2304.06767, with the parser as the reward).
 */
import { InvalidOptionError } from "../errors.js";
import { check } from "../evaluate/judge.js";
import type { Image } from "../image.js";
import type { UniFluid } from "../model.js";
import { Random } from "../philox.js";
import { type CaptionWords, caption } from "./language.js";
import { parseScene } from "./parse.js";
import { type Scene, SIZE, SPLITS, type Split } from "./world.js";

/** The stream of randomness of the first split, after those of `lib/scenes/dataset.ts`. */
const STREAM = 6;

export interface OwnDrawing {
  prompt: string;
  image: Image;
}

export interface OwnDrawingOptions {
  seed: bigint;
  split: Split;
  /** Drawings of one scene before it is left out. */
  attempts: number;
  signal?: AbortSignal;
}

/** Throws `INVALID_OPTION` where the model's drawings cannot be judged. */
export function checkArtist({ info }: UniFluid): void {
  const size = info.image?.size;
  if (size !== SIZE)
    throw new InvalidOptionError(
      `expected a model that draws pictures of ${SIZE} pixels but ${info.directory} ` +
        (size === undefined ? "draws none" : `draws ${size}`),
    );
}

/**
 * The scene as the model draws it from one of the `wordings`; undefined where no attempt shows all that the prompt
 * says. Training reads a picture through the autoencoder: what is left of it then must show it too.
 */
export async function drawOwn(
  model: UniFluid,
  scene: Scene,
  index: number,
  wordings: readonly CaptionWords[],
  { seed, split, attempts, signal }: OwnDrawingOptions,
): Promise<OwnDrawing | undefined> {
  const random = new Random(seed, STREAM + SPLITS.indexOf(split), index);
  const words = random.pick(wordings);
  const prompt = caption(scene, words);
  for (let i = 0; i < attempts; i++) {
    const image = await model.generate(prompt, { seed: BigInt(random.below(2 ** 32)), signal });
    if (!shows(image, scene, words)) continue;
    const read = await model.decodeLatents(await model.encodeImage(image));
    if (shows(read, scene, words)) return { prompt, image };
  }
  return undefined;
}

function shows(image: Image, scene: Scene, { size, background }: CaptionWords): boolean {
  const found = check(parseScene(image.pixels), scene);
  return (
    found.objects &&
    found.relation !== false &&
    (!size || found.size) &&
    (!background || found.background)
  );
}
