/** Loads the model that a command asks for, and frees it afterwards. */

import sharp from "sharp";
import type { LoadOptions } from "../load-options.js";
import { UniFluid } from "../model.js";

export interface ModelFlags {
  model: string;
  device: NonNullable<LoadOptions["device"]>;
  dtype?: LoadOptions["dtype"];
  threads?: number;
  /** Bytes. */
  maxMemory?: number;
  maxSequences?: number;
  maxQueue?: number;
}

export async function withModel<T>(
  { model, device, dtype, threads, maxMemory, maxSequences, maxQueue }: ModelFlags,
  signal: AbortSignal,
  use: (model: UniFluid) => Promise<T>,
): Promise<T> {
  // libvips keeps what it has decoded for a second use, which does not come here: it would only be memory that
  // grows for as long as a server runs.
  sharp.cache(false);
  const loaded = await UniFluid.load(model, {
    device,
    dtype,
    threads,
    maxMemory,
    maxSequences,
    maxQueue,
    signal,
  });
  try {
    return await use(loaded);
  } finally {
    await loaded.dispose();
  }
}
