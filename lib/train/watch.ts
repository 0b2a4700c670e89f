/** Watches a loss for what no more training will mend. */
import { TrainingDivergedError } from "../errors.js";

/** A loss so many times its median of the last steps, for so many steps, has exploded. */
const EXPLOSION = 10;
const EXPLODED_STEPS = 5;
const MEDIAN_OF = 100;

export class Watch {
  private readonly recent: number[] = [];
  private high = 0;

  constructor(private readonly name: string) {}

  /** Throws `TRAINING_DIVERGED`. */
  see(step: number, loss: number): void {
    if (Number.isNaN(loss)) return; // a step without such tokens
    const sorted = [...this.recent].sort((a, b) => a - b);
    const median = sorted[sorted.length >> 1];
    this.high = median !== undefined && loss > EXPLOSION * median ? this.high + 1 : 0;
    if (this.high >= EXPLODED_STEPS)
      throw new TrainingDivergedError(
        `step ${step}: the ${this.name} exploded: ${loss.toPrecision(4)}, where ${median?.toPrecision(4)} was usual`,
      );
    this.recent.push(loss);
    if (this.recent.length > MEDIAN_OF) this.recent.shift();
  }
}
