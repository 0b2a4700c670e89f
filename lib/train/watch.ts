/** Watches a loss for what no more training will mend. */
import { TrainingDivergedError } from "../errors.js";

/** So many high losses in a row are an explosion; fewer are an unlucky batch or a step too far. */
const EXPLODED_STEPS = 5;
const LAST_STEPS = 100;
/**
 * High is a loss so many times its median of the last steps, and above all of them. The median alone would not do:
 * of a few text tokens one wrong word is a hundred times what is usual late in a run.
 */
const ABOVE_MEDIAN = 10;

/** What a loss is measured by where its own history does not tell. */
export interface LossScale {
  /** The loss, about, of a model that knows nothing. */
  chance: number;
  /**
   * High is also, at any step, a loss so many times `chance`, or what the run began with where that was more.
   * Neither follows a loss that runs away, as the median does.
   */
  explosion: number;
}

export class Watch {
  private readonly recent: number[] = [];
  private first: number | undefined;
  /** The latest steps' losses, while they are high, and the step of the first of them. */
  private high: number[] = [];
  private since: number | undefined;

  constructor(
    private readonly name: string,
    private readonly scale: LossScale,
  ) {}

  /** The first step of those whose losses have been high up to now; undefined: the last one was not. */
  get highSince(): number | undefined {
    return this.since;
  }

  /** Takes the loss of a step; NaN: it had no such tokens. Throws `TRAINING_DIVERGED` where the loss has exploded. */
  see(step: number, loss: number): void {
    this.follow(step, loss);
    if (Number.isNaN(loss) || this.high.length < EXPLODED_STEPS) return;
    throw new TrainingDivergedError(
      `step ${step}: the ${this.name} exploded: ${loss.toPrecision(4)}, where ${this.usual().toPrecision(4)} was usual`,
    );
  }

  /** The same of a step before a stop, which went on after it. */
  follow(step: number, loss: number): void {
    if (Number.isNaN(loss)) return;
    this.first ??= loss;
    if (this.isHigh(loss)) {
      this.since ??= step;
      this.high.push(loss);
      return;
    }
    this.since = undefined;
    this.recent.push(...this.high.splice(0), loss);
    this.recent.splice(0, this.recent.length - LAST_STEPS);
  }

  /** What comes is the loss of something else: the last steps' are no measure of it any more. */
  forget(): void {
    this.recent.length = 0;
  }

  private isHigh(loss: number): boolean {
    const { chance, explosion } = this.scale;
    if (loss > explosion * Math.max(chance, this.first as number)) return true;
    if (this.recent.length === 0) return false;
    // Fewer steps do not tell what may come: a rate that rises can undo a trained model's last bit of skill.
    const known = this.recent.length === LAST_STEPS ? Math.max(...this.recent) : chance;
    return loss > known && loss > ABOVE_MEDIAN * this.usual();
  }

  /** The median of the last steps; where there are none, what the run began with. */
  private usual(): number {
    const sorted = [...this.recent].sort((a, b) => a - b);
    return sorted[sorted.length >> 1] ?? (this.first as number);
  }
}

/** All watched losses of a run, by their names. */
export class Watches {
  private readonly all: ReadonlyMap<string, Watch>;

  constructor(scales: Readonly<Record<string, LossScale>>) {
    const entries = Object.entries(scales);
    this.all = new Map(entries.map(([name, scale]) => [name, new Watch(name, scale)]));
  }

  /** Names of the losses that are high, each with the step since which it has been. */
  get high(): { name: string; since: number }[] {
    return [...this.all].flatMap(([name, { highSince: since }]) =>
      since === undefined ? [] : [{ name, since }],
    );
  }

  /** As `Watch.see`. */
  see(step: number, losses: Readonly<Record<string, number>>): void {
    for (const [name, watch] of this.all) watch.see(step, losses[name] ?? Number.NaN);
  }

  /** As `Watch.follow`. */
  follow(step: number, losses: Readonly<Record<string, number>>): void {
    for (const [name, watch] of this.all) watch.follow(step, losses[name] ?? Number.NaN);
  }

  /** As `Watch.forget`, unless a loss is high: whether the weights are good is not known then. */
  forget(): void {
    if (this.high.length > 0) return;
    for (const watch of this.all.values()) watch.forget();
  }
}
