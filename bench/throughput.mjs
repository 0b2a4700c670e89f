// What running many requests together gives: images a second over the concurrency, beside one after another in the
// same run; what products in bfloat16 give; captions and images mixed; and how long JavaScript's event loop is held up
// meanwhile.
//
//   npm run bench:throughput -- [--images N] [--rounds N] [--threads N] [--write]
//
// Each round takes every concurrency in turn, and ratios are those within a round, because machines drift.
// --write keeps the table and the curve in bench/results/throughput.md and throughput.png.
import { writeFileSync } from "node:fs";
import { availableParallelism, cpus } from "node:os";
import { monitorEventLoopDelay } from "node:perf_hooks";
import { fileURLToPath } from "node:url";
import { parseArgs } from "node:util";
import sharp from "sharp";
import { commit, median } from "./figures.mjs";

const { UniFluid } = await import("../dist/index.mjs");
const photo = fileURLToPath(
  new URL("../test/fixtures/shapes-64/expected/caption0.png", import.meta.url),
);

const { values } = parseArgs({
  options: {
    images: { type: "string", default: "64" },
    rounds: { type: "string", default: "5" },
    threads: { type: "string", default: String(availableParallelism()) },
    write: { type: "boolean", default: false },
  },
});
const images = Number(values.images);
const rounds = Number(values.rounds);
const CONCURRENCIES = [1, 2, 4, 8, 16, 32];

const least = (list) => Math.min(...list);

const options = { threads: Number(values.threads), maxSequences: Math.max(...CONCURRENCIES) };
const model = await UniFluid.load("shapes-64", { ...options, device: "cpu" });
/** As the first where the processor has no such products. */
const paired = await UniFluid.load("shapes-64", { ...options, device: "cpu", dtype: "bfloat16" });
const PAIRED_CONCURRENCIES = [1, 16];
const COLORS = ["red", "green", "blue", "yellow"];
const prompts = Array.from({ length: images }, (_, i) => `a ${COLORS[i % 4]} circle`);

/** Draws all prompts; images a second. */
async function draw(concurrency, by = model) {
  const started = performance.now();
  for await (const { error } of by.generateAll(prompts, { seed: 1, concurrency })) {
    if (error) throw error;
  }
  return (images / (performance.now() - started)) * 1000;
}

for (const by of [model, paired]) await draw(4, by); // memory is allocated, the processor is awake
const rates = new Map(CONCURRENCIES.map((c) => [c, []]));
const pairedRates = new Map(PAIRED_CONCURRENCIES.map((c) => [c, []]));
for (let round = 0; round < rounds; round++) {
  for (const concurrency of CONCURRENCIES) {
    rates.get(concurrency).push(await draw(concurrency));
    pairedRates.get(concurrency)?.push(await draw(concurrency, paired));
  }
}
const alone = rates.get(1);
const rows = CONCURRENCIES.map((concurrency) => {
  const list = rates.get(concurrency);
  const ratios = list.map((rate, round) => rate / alone[round]);
  return { concurrency, rate: median(list), ratio: median(ratios), lowest: least(ratios) };
});

// Both kinds at once for the time that the drawings take: neither may starve.
const delay = monitorEventLoopDelay({ resolution: 1 });
delay.enable();
const before = performance.now();
let drawing = true;
let captions = 0;
const captioning = (async () => {
  async function* photos() {
    while (drawing) yield photo;
  }
  for await (const { error } of model.captionAll(photos(), { concurrency: 4 })) {
    if (error) throw error;
    captions++;
  }
})();
const mixedRate = await draw(12);
const mixedSeconds = (performance.now() - before) / 1000;
const captionsThen = captions;
drawing = false;
await captioning;
delay.disable();
const milliseconds = (nanoseconds) => (nanoseconds / 1e6).toFixed(1);

const lines = [
  `Commit ${commit()}, ${cpus()[0].model}, ${model.info.device}; ${images} drawings of shapes-64 with its own settings, medians of ${rounds} rounds.`,
  "",
  "| concurrency | images a second | beside one after another | lowest of the rounds |",
  "| --- | --- | --- | --- |",
  ...rows.map(
    ({ concurrency, rate, ratio, lowest }) =>
      `| ${concurrency} | ${rate.toFixed(1)} | ${ratio.toFixed(2)}× | ${lowest.toFixed(2)}× |`,
  ),
  "",
  `The same with \`dtype: "bfloat16"\`, ${paired.info.device}, each in turn with float32:`,
  "",
  "| concurrency | images a second | beside float32 | lowest of the rounds |",
  "| --- | --- | --- | --- |",
  ...PAIRED_CONCURRENCIES.map((concurrency) => {
    const list = pairedRates.get(concurrency);
    const ratios = list.map((rate, round) => rate / rates.get(concurrency)[round]);
    return `| ${concurrency} | ${median(list).toFixed(1)} | ${median(ratios).toFixed(2)}× | ${least(ratios).toFixed(2)}× |`;
  }),
  "",
  `Mixed, 12 drawings and 4 captions at once: ${mixedRate.toFixed(1)} images and ${(captionsThen / mixedSeconds).toFixed(1)} captions a second.`,
  `Event loop meanwhile, sampled each millisecond: delayed ${milliseconds(delay.percentile(50))} ms at the median, ${milliseconds(delay.percentile(99))} ms at the 99th percentile, ${milliseconds(delay.max)} ms at most.`,
];
console.log(lines.join("\n"));
await Promise.all([model.dispose(), paired.dispose()]);

/** The curve, as SVG: rate over concurrency, the concurrency in doublings. */
function curve() {
  const [width, height, left, bottom] = [640, 360, 56, 44];
  const most = Math.max(...rows.map(({ rate }) => rate)) * 1.15;
  const x = (i) => left + 24 + (i * (width - left - 72)) / (rows.length - 1);
  const y = (rate) => height - bottom - (rate / most) * (height - bottom - 24);
  const text = (px, py, what, anchor = "middle") =>
    `<text x="${px}" y="${py}" text-anchor="${anchor}">${what}</text>`;
  const ticks = Array.from({ length: 5 }, (_, i) => (most * i) / 4);
  return `<svg xmlns="http://www.w3.org/2000/svg" width="${width}" height="${height}" font-family="sans-serif" font-size="13" fill="#333">
<rect width="100%" height="100%" fill="#fff"/>
${ticks.map((t) => `<path d="M${left} ${y(t)}H${width - 16}" stroke="#ddd"/>${text(left - 8, y(t) + 4, t.toFixed(0), "end")}`).join("")}
<polyline fill="none" stroke="#2f55d4" stroke-width="2.5" points="${rows.map(({ rate }, i) => `${x(i)},${y(rate)}`).join(" ")}"/>
${rows.map(({ concurrency, rate, ratio }, i) => `<circle cx="${x(i)}" cy="${y(rate)}" r="4" fill="#2f55d4"/>${text(x(i), y(rate) - 10, `${ratio.toFixed(2)}×`)}${text(x(i), height - bottom + 18, concurrency)}`).join("")}
${text(width / 2, height - 8, "drawings at once")}${text(left, 16, "images a second", "start")}
</svg>`;
}

if (values.write) {
  const results = new URL("results/", import.meta.url);
  const head = [
    "# Throughput",
    "",
    `\`npm run bench:throughput\` on ${cpus().length} cores: what running requests together gives.`,
    "",
  ];
  const tail = ["", "![images a second over the concurrency](throughput.png)", ""];
  writeFileSync(new URL("throughput.md", results), [...head, ...lines, ...tail].join("\n"));
  await sharp(Buffer.from(curve()), { density: 144 })
    .png()
    .toFile(fileURLToPath(new URL("throughput.png", results)));
}
