/** `unifluid eval`: how well a model draws, reads and edits. */

import { resolve } from "node:path";
import { type Command, Option } from "commander";
import { SUITE_PARTS, type SuitePart } from "../evaluate/parts.js";
import type { CellOrder } from "../generation-config.js";
import { jsonText } from "../json-line.js";
import type { UniFluid } from "../model.js";
import { parseSeed } from "../seed.js";
import { type Context, type OutputFlags, runCommand } from "./context.js";
import { lossRows, sceneRows } from "./eval-tables.js";
import { UsageError } from "./exit-codes.js";
import { addFlags, integerFlag, OUTPUT_FLAGS, someOf } from "./flags.js";
import { type ModelFlags, withModel } from "./load.js";
import { checkFilesOutput, write, writeFileOutput, writeJson } from "./output.js";
import { startRecords } from "./progress.js";
import { formatTable } from "./tables.js";

interface EvalFlags extends Omit<ModelFlags, "model">, OutputFlags {
  suite: "scenes" | "loss";
  scenes?: number;
  manifest?: string[];
  timesteps?: number;
  cache?: string;
  seed?: number | bigint;
  steps?: number;
  guidance?: number;
  order?: CellOrder;
  only?: SuitePart[];
  features?: string;
  out?: string;
}

/** Options that mean something to one suite alone. */
const OF_SUITE = {
  scenes: ["scenes", "only", "steps", "guidance", "features"],
  loss: ["manifest", "timesteps", "cache"],
} as const;

const DEFAULT_SCENES = 100;

export function addEval(program: Command): void {
  const command = program
    .command("eval <model>")
    .description("measure a model on scenes it has not seen, or its losses on any records")
    .addOption(
      new Option("--suite <name>", "what to measure").choices(["scenes", "loss"]).default("scenes"),
    )
    .option(
      "--scenes <n>",
      `suite scenes: scenes per part (default: ${DEFAULT_SCENES})`,
      integerFlag(1, 100_000),
    )
    .option("--only <list>", `suite scenes: some of ${SUITE_PARTS.join(",")}`, someOf(SUITE_PARTS))
    .option(
      "--features <model>",
      "suite scenes: model whose vision tower compares drawings with true pictures (default: the model itself)",
    )
    .option("--manifest <file...>", "suite loss: records in the training format")
    .option(
      "--timesteps <n>",
      "suite loss: timesteps at which each image token is tried (default: 4)",
      integerFlag(1, 1000),
    )
    .option(
      "--cache <folder>",
      "suite loss: folder for prepared pictures (default: .unifluid-cache beside each manifest)",
    )
    .option("-o, --out <file>", "also write the figures as JSON");
  addFlags(
    command,
    "suiteSeed",
    "order",
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
  if (flags.out !== undefined) await checkFilesOutput([flags.out]);
  const other = flags.suite === "scenes" ? "loss" : "scenes";
  const foreign = OF_SUITE[other].find((name) => flags[name] !== undefined);
  if (foreign) throw new UsageError(`--${foreign} is an option of the suite ${other}`);
  const seed = parseSeed(flags.seed ?? 0);
  if (flags.suite === "loss") await evaluateLosses(model, seed, flags, context);
  else await evaluateSuite(model, seed, flags, context);
}

async function evaluateSuite(model: string, seed: bigint, flags: EvalFlags, context: Context) {
  const { evaluateScenes, itemsOf } = await import("../evaluate/scenes-suite.js");
  const { scenes = DEFAULT_SCENES, steps, guidance, order, only } = flags;
  if (flags.features !== undefined && only && !only.includes("frechet"))
    throw new UsageError("--features belongs to the part frechet, which --only leaves out");
  const settings = { scenes, seed, steps, guidance, order, only };
  const measure = async (loaded: UniFluid, features?: UniFluid) => {
    const progress = startRecords(context, itemsOf(settings));
    const onItem = () => progress.step("done");
    const options = { ...settings, features, signal: context.signal, onItem };
    const report = await evaluateScenes(loaded, options).finally(() => progress.stop());
    await writeReport({ model, ...report }, sceneRows(report), flags, context);
  };
  await withModel({ ...flags, model }, context.signal, (loaded) =>
    flags.features === undefined
      ? measure(loaded)
      : withModel({ ...flags, model: flags.features }, context.signal, (tower) =>
          measure(loaded, tower),
        ),
  );
}

async function evaluateLosses(model: string, seed: bigint, flags: EvalFlags, context: Context) {
  const { manifest: manifests, timesteps, order, threads, maxMemory, device, cache } = flags;
  if (!manifests) throw new UsageError("the suite loss needs --manifest FILE");
  // They are computed as training computes them.
  if (flags.dtype !== "auto") throw new UsageError("--dtype is an option of the suite scenes");
  const { evaluateLoss } = await import("../evaluate/loss-suite.js");
  const progress = startRecords(context, undefined);
  const report = await evaluateLoss(model, {
    manifests,
    seed,
    timesteps,
    order,
    device,
    threads,
    cache: cache === undefined ? undefined : resolve(cache),
    maxMemory,
    signal: context.signal,
    onRecord: () => progress.step("done"),
  }).finally(() => progress.stop());
  await writeReport({ model, ...report }, lossRows(report), flags, context);
}

async function writeReport(
  report: object,
  rows: readonly (readonly [string, string])[],
  { out }: EvalFlags,
  context: Context,
): Promise<void> {
  if (out !== undefined) {
    await writeFileOutput(out, Buffer.from(jsonText(report)));
  }
  if (context.json) await writeJson(report);
  else await write(formatTable(rows));
}
