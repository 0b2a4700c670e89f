/** `unifluid eval`: how well a model draws, reads and edits. */

import { type Command, Option } from "commander";
import { SUITE_PARTS, type SuitePart } from "../evaluate/parts.js";
import type { Rate, SuiteReport } from "../evaluate/scenes-suite.js";
import { writeWhole } from "../image.js";
import { parseSeed } from "../seed.js";
import { type Context, type OutputFlags, runCommand } from "./context.js";
import { OutputError } from "./exit-codes.js";
import { addFlags, OUTPUT_FLAGS, someOf, whole } from "./flags.js";
import { type ModelFlags, withModel } from "./load.js";
import { write, writeJson } from "./output.js";
import { startRate } from "./progress.js";
import { formatTable } from "./tables.js";

interface EvalFlags extends Omit<ModelFlags, "model">, OutputFlags {
  suite: "scenes";
  scenes: number;
  seed: number | bigint;
  steps?: number;
  guidance?: number;
  only?: SuitePart[];
  out?: string;
}

export function addEval(program: Command): void {
  const command = program
    .command("eval <model>")
    .description("measure a model on scenes that it has not seen: drawing, reading, editing")
    .addOption(
      new Option("--suite <name>", "what to measure").choices(["scenes"]).default("scenes"),
    )
    .option("--scenes <n>", "scenes of each part", whole(1, 100_000), 100)
    .option("--only <list>", `some of ${SUITE_PARTS.join(",")}`, someOf(SUITE_PARTS))
    .option("-o, --out <file>", "also write the figures as JSON");
  addFlags(
    command,
    "seed",
    "steps",
    "guidance",
    "device",
    "dtype",
    "threads",
    "maxMemory",
    ...OUTPUT_FLAGS,
  );
  command.action((model: string, flags: EvalFlags) =>
    runCommand(flags, (context) => evaluate(model, flags, context)),
  );
}

async function evaluate(model: string, flags: EvalFlags, context: Context): Promise<void> {
  const { evaluateScenes, itemsOf } = await import("../evaluate/scenes-suite.js");
  const { steps, guidance, only } = flags;
  const options = { scenes: flags.scenes, seed: parseSeed(flags.seed ?? 0), steps, guidance, only };
  await withModel({ ...flags, model }, context.signal, async (loaded) => {
    const progress = startRate(context, itemsOf(options));
    let report: SuiteReport;
    try {
      report = await evaluateScenes(loaded, {
        ...options,
        signal: context.signal,
        onItem: () => progress.advance("done"),
      });
    } finally {
      progress.stop();
    }
    if (flags.out !== undefined) await save(flags.out, report);
    if (context.json) await writeJson(report);
    else await write(formatTable(rows(report)));
  });
}

async function save(path: string, report: SuiteReport): Promise<void> {
  try {
    await writeWhole(path, Buffer.from(`${JSON.stringify(report, null, 2)}\n`));
  } catch (cause) {
    throw new OutputError(`cannot write ${path}: ${(cause as Error).message}`, { cause });
  }
}

const percent = (share: number) => `${(100 * share).toFixed(1)} %`;
const rate = ({ rate, n }: Rate) => `${percent(rate)} of ${n}`;

function rows(report: SuiteReport): [string, string][] {
  const { generation, heldOut, captions, answers, edits, vae } = report;
  const each = (label: string, rates: Record<string, Rate>): [string, string][] =>
    Object.entries(rates).map(([name, r]) => [`  ${label}${name}`, rate(r)]);
  return [
    ...(generation
      ? ([
          ["generation, mean of six tasks", percent(generation.score)],
          ...each("", generation.tasks),
          ["of a full caption", ""],
          ...each("", generation.attributes),
        ] as [string, string][])
      : []),
    ...(heldOut
      ? ([
          ["pairs never seen together, all right", rate(heldOut.heldOut)],
          ["pairs that were, all right", rate(heldOut.seen)],
        ] as [string, string][])
      : []),
    ...(captions
      ? ([
          ["captions, exact", rate(captions.exact)],
          ...each("objects: ", captions.byObjects),
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
          ["  source handed back", rate(edits.copied)],
        ] as [string, string][])
      : []),
    ...(vae
      ? ([
          ["autoencoder, PSNR", `${vae.psnr.toFixed(2)} dB`],
          ["  parsed right, true pictures", rate(vae.parsed)],
          ["  parsed right, after the autoencoder", rate(vae.parsedAfter)],
        ] as [string, string][])
      : []),
  ];
}
