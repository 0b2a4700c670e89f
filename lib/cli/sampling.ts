/** The seed of sampled texts, told where it decides anything. */

import type { WriteOptions } from "../call-options.js";
import type { UniFluid } from "../model.js";
import { parseSeed } from "../seed.js";
import { writeOptions } from "./flags.js";

export interface Sampling {
  options: WriteOptions;
  seed: bigint;
  /** Whether texts are sampled: at temperature 0 the likeliest token is taken, whatever the seed. */
  sampled: boolean;
}

/** The options of a writing command, with the seed that was given or a random one. */
export function sampling(model: UniFluid, flags: WriteOptions, signal: AbortSignal): Sampling {
  const seed = parseSeed(flags.seed);
  const temperature = flags.temperature ?? model.info.generation.text.temperature;
  return { options: { ...writeOptions(flags, signal), seed }, seed, sampled: temperature > 0 };
}
