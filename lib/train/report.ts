/** `report.html` of a run: its curves and its samples, readable while it goes on. */
import { join } from "node:path";
import { writeWhole } from "../write-whole.js";
import type { Curve, Point } from "./curve.js";
import type { History } from "./history.js";
import type { RunFolder, SampleFigures } from "./run-folder.js";

const WIDTH = 720;
const HEIGHT = 220;
const MARGIN = 44;
/** Points of a curve; each is the mean of a stretch of steps. */
const POINTS = 360;

/** Milliseconds between two reports at least. */
const REPORT_EVERY = 15_000;
/** Writing takes at most one part in so many of a run's time, however slow the disk is. */
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

function drawn(title: string, curve: Curve): string {
  const points = curve.points(POINTS);
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

/** Writes the report from the run's metrics and the figures of its samples, beside and then renamed. */
export async function writeReport(
  folder: RunFolder,
  history: History,
  figures: readonly SampleFigures[],
): Promise<void> {
  const curves = history.curves(figures).map(([title, curve]) => drawn(title, curve));
  const samples = (await folder.sheets().catch(() => [])).reverse();
  const { last } = history;
  const broken = last?.brokenRecords ?? 0;
  const html = `<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>Training run</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<style>body{font:15px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem}
figure{margin:1.5rem 0}svg{width:100%;background:#f8f8f8}svg text{font-size:12px}img{max-width:100%}</style></head>
<body><h1>Training run</h1>
<p>${last ? `Step ${last.step}, ${last.examples} examples, ${format(last.examplesPerSecond)} examples a second.` : "No step yet."}${broken > 0 ? ` ${broken} broken ${broken === 1 ? "record was" : "records were"} skipped.` : ""}</p>
${curves.join("\n")}
${samples.map((name) => `<h2>${escapeHtml(name.replace(/\.png$/, ""))}</h2><img src="samples/${escapeHtml(name)}" alt="samples">`).join("\n")}
</body></html>
`;
  await writeWhole(join(folder.path, "report.html"), Buffer.from(html));
}
