/** Watches a loss for what no more training will mend. */
import { TrainingDivergedError } from "../errors.js";

/**
 * A loss so many times its median of the last steps, and above all of them, for so many steps, has exploded. The
 * median alone would not do: of a few text tokens one wrong word is a hundred times what is usual late in a run.
 */
const EXPLOSION = 10;
const EXPLODED_STEPS = 5;
const LAST_STEPS = 100;

export class Watch {
  private readonly recent: number[] = [];
  /** The latest steps' losses, while they are that high. */
  private high: number[] = [];

  constructor(private readonly name: string) {}

  /** Throws `TRAINING_DIVERGED`. */
  see(step: number, loss: number): void {
    if (Number.isNaN(loss)) return; // a step without such tokens
    const sorted = [...this.recent].sort((a, b) => a - b);
    const median = sorted[sorted.length >> 1] ?? Number.POSITIVE_INFINITY;
    const most = sorted.at(-1) ?? Number.POSITIVE_INFINITY;
    this.high.push(loss);
    if (loss > EXPLOSION * median && loss > most) {
      if (this.high.length < EXPLODED_STEPS) return;
      throw new TrainingDivergedError(
        `step ${step}: the ${this.name} exploded: ${loss.toPrecision(4)}, where ${median.toPrecision(4)} was usual`,
      );
    }
    this.recent.push(...this.high.splice(0));
    this.recent.splice(0, this.recent.length - LAST_STEPS);
  }
}
