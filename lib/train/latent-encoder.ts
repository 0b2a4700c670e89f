/** The autoencoder of a model without the model, which is many times as large: it makes the latents of pictures. */
import { findAddon } from "../addon.js";
import { readAutoencoder } from "../checkpoint/checkpoint.js";
import type { DecodedImage } from "../image-input.js";
import { loadModel } from "../load-model.js";
import { type LoadOptions, parseLoadOptions } from "../load-options.js";
import type { NativeImageConfig } from "../native.js";
import { toVaePixels } from "../preprocess.js";
import type { Requests } from "../requests.js";

export class LatentEncoder {
  private constructor(
    private readonly requests: Requests,
    private readonly image: NativeImageConfig,
  ) {}

  /** Loads the autoencoder of a model's directory; `image`: of the model. Throws what loading a model throws. */
  static async load(
    directory: string,
    image: NativeImageConfig,
    options: LoadOptions,
  ): Promise<LatentEncoder> {
    const loaded = findAddon();
    const checkpoint = await readAutoencoder(directory);
    const parsed = parseLoadOptions(options, loaded.addon);
    const { requests } = await loadModel(checkpoint, loaded, parsed);
    return new LatentEncoder(requests, image);
  }

  /** As `UniFluid.encodeImage` of the whole model: of an image of its size [cells, token channels]. */
  async encode(picture: DecodedImage): Promise<Float32Array> {
    const { width, height } = picture;
    const pixels = await toVaePixels(picture, width, height, findAddon().addon);
    const { latents } = await this.requests.run({ kind: "encode", width, height, pixels });
    return patchify(latents as Float32Array, this.image);
  }

  dispose(): Promise<void> {
    return this.requests.dispose();
  }
}

/** Latents of an autoencoder alone, [rows, columns, channels], as a model's image tokens: `patchify` of the core. */
function patchify(latents: Float32Array, image: NativeImageConfig): Float32Array {
  const { grid, latentPatch: patch, tokenChannels } = image;
  const channels = tokenChannels / patch ** 2;
  const side = grid * patch;
  const tokens = new Float32Array(latents.length);
  for (let y = 0, from = 0; y < side; y++)
    for (let x = 0; x < side; x++) {
      const cell = Math.floor(y / patch) * grid + Math.floor(x / patch);
      const within = (y % patch) * patch + (x % patch);
      for (let c = 0; c < channels; c++)
        tokens[cell * tokenChannels + c * patch ** 2 + within] = latents[from++] as number;
    }
  return tokens;
}
