// Draws bench/findings/results.json for docs/findings.md: a dot for each run, a bar for the mean of a variant.
//
//   node bench/findings/plot.mjs
import { readFileSync, writeFileSync } from "node:fs";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";

const here = dirname(fileURLToPath(import.meta.url));
const results = JSON.parse(readFileSync(join(here, "results.json"), "utf8"));

/** Measures, as a column of panels each; lower is better for losses, higher for rates. */
const MEASURES = [
  ["image loss", (r) => r.imageLoss],
  ["caption loss", (r) => r.captionLoss],
  ["answer loss", (r) => r.answerLoss],
  ["captions exact", (r) => r.captionsExact?.rate],
  ["backgrounds right", (r) => r.attributes?.background],
];
const LAMBDAS = ["lambda-0.02", "lambda-0.1", "unified", "lambda-2.5", "lambda-12.5"];
const PLOTS = {
  "findings-lambda": LAMBDAS.map((v) => [v, v === "unified" ? "λ 0.5" : `λ ${v.slice(7)}`]),
  "findings-variants": [
    ["unified", "unified"],
    ["generation", "generation only"],
    ["understanding", "understanding only"],
    ["raster", "raster order"],
    ["gemma1", "Gemma 1"],
    ["pretrained", "pretrained decoder"],
    ["ddpm", "objective ddpm"],
  ],
};
// Losses that are not of the same thing as the others'.
const APART = { "image loss": ["ddpm", "raster"] };

const [left, width, row, top] = [130, 150, 22, 30];
const mean = (values) => values.reduce((a, b) => a + b, 0) / values.length;

function panel(variants, [title, of], place) {
  const apart = APART[title] ?? [];
  const rows = variants.map(([variant]) =>
    apart.includes(variant)
      ? []
      : results.filter((r) => r.variant === variant).flatMap((r) => of(r) ?? []),
  );
  const all = rows.flat();
  const [low, high] = [Math.min(...all), Math.max(...all)];
  const margin = (high - low) * 0.08 || 0.01;
  const x0 = left + place * (width + 24);
  const x = (v) => x0 + ((v - low + margin) / (high - low + 2 * margin)) * width;
  const bottom = top + row * variants.length;
  const marks = rows.flatMap((values, i) => {
    const y = top + row * (i + 0.5);
    const line = `<line x1="${x0}" x2="${x0 + width}" y1="${y}" y2="${y}" stroke="#e4e4e4"/>`;
    if (values.length === 0) return [line];
    const at = x(mean(values)).toFixed(1);
    return [
      line,
      `<line x1="${at}" x2="${at}" y1="${y - 7}" y2="${y + 7}" stroke="#222" stroke-width="2"/>`,
      ...values.map(
        (v) =>
          `<circle cx="${x(v).toFixed(1)}" cy="${y}" r="3.5" fill="#3b6fb6" fill-opacity="0.6"/>`,
      ),
    ];
  });
  const digits = high - low < 0.05 ? 3 : 2;
  return [
    `<text x="${x0 + width / 2}" y="${top - 12}" text-anchor="middle" font-weight="bold">${title}</text>`,
    ...marks,
    `<text x="${x(low).toFixed(1)}" y="${bottom + 14}" text-anchor="middle" fill="#666">${low.toFixed(digits)}</text>`,
    `<text x="${x(high).toFixed(1)}" y="${bottom + 14}" text-anchor="middle" fill="#666">${high.toFixed(digits)}</text>`,
  ];
}

for (const [name, variants] of Object.entries(PLOTS)) {
  const size = [left + MEASURES.length * (width + 24), top + row * variants.length + 26];
  const labels = variants.map(
    ([, label], i) =>
      `<text x="${left - 10}" y="${top + row * (i + 0.5) + 4}" text-anchor="end">${label}</text>`,
  );
  const panels = MEASURES.flatMap((measure, place) => panel(variants, measure, place));
  const svg = [
    `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 ${size.join(" ")}" font-family="sans-serif" font-size="12">`,
    `<title>Losses and rates of small models, a dot for each run</title>`,
    `<rect width="100%" height="100%" fill="white"/>`,
    ...labels,
    ...panels,
    "</svg>",
    "",
  ].join("\n");
  writeFileSync(join(here, "../../docs/images", `${name}.svg`), svg);
}
