/** What a report takes of a run's metrics, however long the run is. */
import { Curve } from "./curve.js";
import type { Metrics, SampleFigures } from "./run-folder.js";

type Value = number | null | undefined;

/** Curves of metrics, in the order in which they are shown; those of figures and tasks come after the losses. */
const CURVES: readonly (readonly [string, (m: Metrics) => Value])[] = [
  ["image loss", (m) => m.imageLoss],
  ["text loss", (m) => m.textLoss],
  ["loss", (m) => m.loss],
  ["absolute error", (m) => m.absoluteError],
  ["square error", (m) => m.squareError],
  ["PSNR of the step's pictures, dB", (m) => m.psnr],
  ["divergence of the latents", (m) => m.kl],
];
const LAST_CURVES: typeof CURVES = [
  ["gradient norm", (m) => m.gradientNorm],
  ["learning rate", (m) => m.learningRate],
];

type Curves = Map<string, Curve>;

function add(curves: Curves, title: string, step: number, value: Value): void {
  if (typeof value !== "number" || !Number.isFinite(value)) return;
  const curve = curves.get(title) ?? new Curve();
  curves.set(title, curve);
  curve.add(step, value);
}

export class History {
  /** The latest line. */
  last: Metrics | undefined;
  private readonly of: Curves = new Map();
  private readonly ofTasks: Curves = new Map();

  add(line: Metrics): void {
    this.last = line;
    for (const [title, value] of [...CURVES, ...LAST_CURVES])
      add(this.of, title, line.step, value(line));
    for (const [task, loss] of Object.entries(line.byTask ?? {}))
      add(this.ofTasks, `loss of ${task}`, line.step, loss);
  }

  /** Those that have points, with their titles. `figures`: of the run's samples. */
  curves(figures: readonly SampleFigures[]): [string, Curve][] {
    const ofSamples: Curves = new Map();
    for (const { step, psnr } of figures) add(ofSamples, "PSNR of reconstructions, dB", step, psnr);
    const named = (names: typeof CURVES) =>
      names.flatMap(([title]): [string, Curve][] => {
        const curve = this.of.get(title);
        return curve ? [[title, curve]] : [];
      });
    const tasks = [...this.ofTasks].sort(([a], [b]) => (a < b ? -1 : 1));
    return [...named(CURVES), ...ofSamples, ...tasks, ...named(LAST_CURVES)];
  }
}
