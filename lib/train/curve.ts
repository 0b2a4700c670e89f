/** A curve of a run's report: means of stretches of steps, so that it takes no more memory the longer the run is. */

export interface Point {
  step: number;
  value: number;
}

/** Steps of a stretch, as the last of them and the sum of their values. */
interface Stretch {
  step: number;
  sum: number;
  count: number;
}

/** Stretches that are kept; from so many on each two become one. */
const MOST = 8192;

const joined = (part: readonly Stretch[]): Stretch => ({
  step: part[part.length - 1]!.step,
  sum: part.reduce((sum, s) => sum + s.sum, 0),
  count: part.reduce((sum, s) => sum + s.count, 0),
});

export class Curve {
  private stretches: Stretch[] = [];
  /** Values of a stretch; the last may have fewer. */
  private width = 1;

  add(step: number, value: number): void {
    const last = this.stretches.at(-1);
    if (last && last.count < this.width) {
      last.step = step;
      last.sum += value;
      last.count++;
      return;
    }
    if (this.stretches.length === MOST) {
      this.stretches = this.inParts(2);
      this.width *= 2;
    }
    this.stretches.push({ step, sum: value, count: 1 });
  }

  /** So many points at most, each the mean of a stretch and at its last step. */
  points(most: number): Point[] {
    const width = Math.max(1, Math.ceil(this.stretches.length / most));
    return this.inParts(width).map(({ step, sum, count }) => ({ step, value: sum / count }));
  }

  private inParts(width: number): Stretch[] {
    const parts = Math.ceil(this.stretches.length / width);
    return Array.from({ length: parts }, (_, i) =>
      joined(this.stretches.slice(i * width, (i + 1) * width)),
    );
  }
}
