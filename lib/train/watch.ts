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

  /** @param before Losses of the steps before, as after a stop; NaN where a step had no such tokens. */
  constructor(
    private readonly name: string,
    before: readonly number[] = [],
  ) {
    this.recent.push(...before.filter((loss) => !Number.isNaN(loss)).slice(-LAST_STEPS));
  }

  /** Throws `TRAINING_DIVERGED`; until there are steps enough to know what is usual, nothing. */
  see(step: number, loss: number): void {
    if (Number.isNaN(loss)) return; // a step without such tokens
    const sorted = [...this.recent].sort((a, b) => a - b);
    const median = sorted[sorted.length >> 1] as number;
    this.high.push(loss);
    if (
      sorted.length === LAST_STEPS &&
      loss > EXPLOSION * median &&
      loss > (sorted.at(-1) as number)
    ) {
      if (this.high.length < EXPLODED_STEPS) return;
      throw new TrainingDivergedError(
        `step ${step}: the ${this.name} exploded: ${loss.toPrecision(4)}, where ${median.toPrecision(4)} was usual`,
      );
    }
    this.recent.push(...this.high.splice(0));
    this.recent.splice(0, this.recent.length - LAST_STEPS);
  }
}
