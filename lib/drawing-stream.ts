/** An image as it is drawn: one step for each image token. */

import type { CallOptions } from "./call-options.js";
import type { Image } from "./image.js";
import type { DoneEvent, StreamEvent } from "./requests.js";

interface DrawnCell {
  cell: number;
  /** The token, [token channels]. */
  values: Float32Array;
}

type Decode = (latents: Float32Array, options: CallOptions | undefined) => Promise<Image>;

/** Progress of a drawing. */
export class DrawingProgress {
  /** Image tokens drawn. */
  readonly done: number;
  /** Image tokens in total. */
  readonly total: number;
  /** The finished image; only on the last step. */
  readonly image: Image | undefined;

  /** @internal */
  constructor(
    private readonly drawn: readonly DrawnCell[],
    done: number,
    total: number,
    image: Image | undefined,
    private readonly decode: Decode,
  ) {
    this.done = done;
    this.total = total;
    this.image = image;
  }

  /** The cells drawn so far, in drawing order; cells are numbered in raster order. */
  get cells(): number[] {
    return this.drawn.slice(0, this.done).map(({ cell }) => cell);
  }

  /** The cell drawn last. */
  get cell(): number {
    return this.drawn[this.done - 1]!.cell;
  }

  /** Latents so far, [total, token channels]; zeros for cells not drawn yet. */
  get latents(): Float32Array {
    const channels = this.drawn[0]!.values.length;
    const latents = new Float32Array(this.total * channels);
    for (const { cell, values } of this.drawn.slice(0, this.done)) {
      latents.set(values, cell * channels);
    }
    return latents;
  }

  /**
   * Decodes the picture as of this step; takes one run of the autoencoder, or none at the last step. It is a request
   * of its own: throws `QUEUE_FULL` if the queue is full. It ends with the drawing's signal, too, and has its priority
   * unless the options have one.
   */
  async preview(options?: CallOptions): Promise<Image> {
    return this.image ?? this.decode(this.latents, options);
  }
}

/**
 * Steps of a drawing's events. The last step waits for the picture, so that it carries it.
 */
export async function* drawingSteps(
  events: AsyncGenerator<StreamEvent>,
  total: number,
  toImage: (done: DoneEvent) => Image,
  decode: Decode,
): AsyncGenerator<DrawingProgress, void, undefined> {
  const drawn: DrawnCell[] = [];
  for await (const event of events) {
    if (event.type === "cell") {
      drawn.push({ cell: event.cell, values: event.values });
      if (drawn.length < total) {
        yield new DrawingProgress(drawn, drawn.length, total, undefined, decode);
      }
    } else if (event.type === "done") {
      yield new DrawingProgress(drawn, total, total, toImage(event), decode);
    }
  }
}
