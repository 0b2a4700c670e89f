/** The figures of `unifluid eval` as lines for people. */

import type { ImageLoss, LossReport, TextLoss } from "../evaluate/loss-suite.js";
import type { FrechetReport, Rate, SuiteReport } from "../evaluate/scenes-suite.js";

const percent = (share: number) => `${(100 * share).toFixed(1)} %`;
const rate = ({ rate, n }: Rate) => `${percent(rate)} of ${n}`;

export function sceneRows(report: SuiteReport): [string, string][] {
  const { generation, heldOut, captions, answers, edits, vae, frechet } = report;
  const each = (label: string, rates: Record<string, Rate>): [string, string][] =>
    Object.entries(rates).map(([name, r]) => [`  ${label}${name}`, rate(r)]);
  return [
    ...(generation
      ? ([
          ["generation, mean of six tasks", percent(generation.score)],
          ...each("", generation.tasks),
          ["of a full caption", ""],
          ...each("", generation.attributes),
          ...each("all, objects: ", generation.byObjects),
          ...each("in its colour: ", generation.byShape),
        ] as [string, string][])
      : []),
    ...(heldOut
      ? ([
          ["pairs never seen together, all right", rate(heldOut.heldOut)],
          ["pairs seen together, all right", rate(heldOut.seen)],
        ] as [string, string][])
      : []),
    ...(captions
      ? ([
          ["captions, exact", rate(captions.exact)],
          ...each("objects: ", captions.byObjects),
          ...each("slot: ", captions.bySlot),
          ["  words in place", percent(captions.wordsInPlace)],
        ] as [string, string][])
      : []),
    ...(answers
      ? ([
          ["answers", rate(answers.all)],
          ...each("", answers.byKind),
          ["  most common answer of a kind", percent(answers.majority)],
          ["  most common answer to the question", percent(answers.blind)],
        ] as [string, string][])
      : []),
    ...(edits
      ? ([
          ["edits, change made and rest in place", rate(edits.all)],
          ...each("", edits.byKind),
          ["  contents alone", rate(edits.contents)],
          ["  source returned", rate(edits.copied)],
        ] as [string, string][])
      : []),
    ...(vae
      ? ([
          ["autoencoder, PSNR", `${vae.psnr.toFixed(2)} dB`],
          ["  parsed right, true pictures", rate(vae.parsed)],
          ["  parsed right, after the autoencoder", rate(vae.parsedAfter)],
        ] as [string, string][])
      : []),
    ...(frechet ? frechetRows(frechet) : []),
  ];
}

function frechetRows(f: FrechetReport): [string, string][] {
  const few = f.n <= f.width ? `; too few to trust, use --scenes above ${f.width}` : "";
  return [
    ["Fréchet distance of drawings", f.drawn.toPrecision(4)],
    ["  of true pictures of these scenes (the floor)", f.floor.toPrecision(4)],
    ["  of those after the autoencoder", f.autoencoder.toPrecision(4)],
    [
      "  pictures and features",
      `${f.n} against ${f.references}, ${f.width} features${f.features ? ` of ${f.features}` : ""}${few}`,
    ],
  ];
}

const imageFigures = ({ loss, tokens }: ImageLoss) => `${loss.toFixed(4)} over ${tokens} tokens`;
const textFigures = ({ loss, perplexity, accuracy, tokens }: TextLoss) =>
  `${loss.toFixed(4)} over ${tokens} tokens, perplexity ${perplexity.toFixed(3)}, ${percent(accuracy)} right`;

export function lossRows({ image, text, byTask, records }: LossReport): [string, string][] {
  return [
    ["records", `${records}`],
    ...(image ? ([["image loss", imageFigures(image)]] as [string, string][]) : []),
    ...(text ? ([["text loss", textFigures(text)]] as [string, string][]) : []),
    ...Object.entries(byTask).map(([task, sums]): [string, string] => [
      `  ${task}`,
      "perplexity" in sums ? textFigures(sums) : imageFigures(sums),
    ]),
  ];
}
