/** `report.html` of a run: its curves and its samples, readable while it goes on. */
import { readdir } from "node:fs/promises";
import { join } from "node:path";
import { writeWhole } from "../write-whole.js";
import type { Metrics, RunFolder, SampleFigures } from "./run-folder.js";

const WIDTH = 720;
const HEIGHT = 220;
const MARGIN = 44;
/** Points of a curve; each is the mean of a stretch of steps. */
const POINTS = 360;

/** Milliseconds between two reports at least. */
const REPORT_EVERY = 15_000;
/** Writing takes at most one part in so many of a run's time: the longer the run, the more there is to write. */
const REPORT_SHARE = 100;

/** When a report is due that nothing but the time asks for. Times are in milliseconds, from any zero. */
export class ReportPace {
  private next = Number.NEGATIVE_INFINITY;

  /** At once where none was written yet. */
  due(now: number): boolean {
    return now >= this.next;
  }

  wrote(from: number, to: number): void {
    this.next = to + Math.max(REPORT_EVERY, REPORT_SHARE * (to - from));
  }
}

const escapeHtml = (text: string) => text.replace(/[&<>"]/g, (c) => `&#${c.charCodeAt(0)};`);

const format = (value: number) =>
  Math.abs(value) >= 1e-2 || value === 0
    ? String(Number(value.toPrecision(3)))
    : value.toExponential(1);

interface Point {
  step: number;
  value: number;
}

function smoothed(points: Point[]): Point[] {
  const width = Math.max(1, Math.ceil(points.length / POINTS));
  const out: Point[] = [];
  for (let i = 0; i < points.length; i += width) {
    const part = points.slice(i, i + width);
    const value = part.reduce((sum, p) => sum + p.value, 0) / part.length;
    out.push({ step: part[part.length - 1]!.step, value });
  }
  return out;
}

function curve(title: string, all: Point[]): string {
  const points = smoothed(all.filter((p) => Number.isFinite(p.value)));
  if (points.length === 0) return "";
  const values = points.map((p) => p.value);
  const [low, high] = [Math.min(...values), Math.max(...values)];
  const last = points[points.length - 1] as Point;
  const x = (step: number) => MARGIN + ((WIDTH - MARGIN) * step) / last.step;
  const y = (v: number) => HEIGHT - 20 - ((HEIGHT - 40) * (v - low)) / (high - low || 1);
  const path = points.map((p) => `${x(p.step).toFixed(1)},${y(p.value).toFixed(1)}`).join(" ");
  return `<figure><figcaption>${escapeHtml(title)}: ${format(last.value)}</figcaption>
<svg viewBox="0 0 ${WIDTH + 8} ${HEIGHT}" role="img" aria-label="${escapeHtml(title)}">
<line x1="${MARGIN}" y1="${HEIGHT - 20}" x2="${WIDTH}" y2="${HEIGHT - 20}" stroke="#999"/>
<text x="0" y="24">${format(high)}</text><text x="0" y="${HEIGHT - 22}">${format(low)}</text>
<text x="${WIDTH}" y="${HEIGHT - 4}" text-anchor="end">step ${last.step}</text>
<polyline points="${path}" fill="none" stroke="#1d4ed8" stroke-width="1.5"/></svg></figure>`;
}

/** Curves of metrics, in the order in which they are shown; those of tasks come after the losses. */
const CURVES: readonly (readonly [string, (m: Metrics) => number | null | undefined])[] = [
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

/** Writes the report from the run's metrics and the figures of its samples, beside and then renamed. */
export async function writeReport(
  folder: RunFolder,
  metrics: readonly Metrics[],
  figures: readonly SampleFigures[],
): Promise<void> {
  const of = <T extends { step: number }>(
    lines: readonly T[],
    value: (line: T) => number | null | undefined,
  ): Point[] =>
    lines.flatMap((line) => {
      const v = value(line);
      return typeof v === "number" ? [{ step: line.step, value: v }] : [];
    });
  const tasks = [...new Set(metrics.flatMap((m) => Object.keys(m.byTask ?? {})))].sort();
  const curves = [
    ...CURVES.map(([title, value]) => curve(title, of(metrics, value))),
    curve(
      "PSNR of reconstructions, dB",
      of(figures, (f) => f.psnr),
    ),
    ...tasks.map((task) =>
      curve(
        `loss of ${task}`,
        of(metrics, (m) => m.byTask?.[task]),
      ),
    ),
    ...LAST_CURVES.map(([title, value]) => curve(title, of(metrics, value))),
  ];
  const samples = (await readdir(join(folder.path, "samples")).catch(() => [])).sort().reverse();
  const last = metrics[metrics.length - 1];
  const broken = last?.brokenRecords ?? 0;
  const html = `<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>Training run</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<style>body{font:15px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem}
figure{margin:1.5rem 0}svg{width:100%;background:#f8f8f8}svg text{font-size:12px}img{max-width:100%}</style></head>
<body><h1>Training run</h1>
<p>${last ? `Step ${last.step}, ${last.examples} examples, ${format(last.examplesPerSecond)} examples a second.` : "No step yet."}${broken > 0 ? ` ${broken} broken ${broken === 1 ? "record was" : "records were"} skipped.` : ""}</p>
${curves.filter((text) => text !== "").join("\n")}
${samples.map((name) => `<h2>${escapeHtml(name.replace(/\.png$/, ""))}</h2><img src="samples/${escapeHtml(name)}" alt="samples">`).join("\n")}
</body></html>
`;
  await writeWhole(join(folder.path, "report.html"), Buffer.from(html));
}
