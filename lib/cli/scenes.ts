/** `unifluid scenes`: a data set of drawn scenes with captions, questions and edits. */

import { type Command, Option } from "commander";
import { TEMPLATE_TASKS, type TemplateTask } from "../prompts.js";
import {
  PAIR_RULES,
  type PairRule,
  SHAPES,
  type Shape,
  SPLITS,
  type Split,
} from "../scenes/world.js";
import { parseSeed } from "../seed.js";
import { type Context, note, type OutputFlags, runCommand } from "./context.js";
import { addFlags, integerFlag, OUTPUT_FLAGS, someOf } from "./flags.js";
import { writeJson, writingFailed } from "./output.js";
import { startRecords } from "./progress.js";

interface ScenesFlags extends OutputFlags {
  out: string;
  count: number;
  seed?: number | bigint;
  size: number;
  split: Split;
  pairs: PairRule;
  minObjects: number;
  withShape?: Shape;
  tasks: TemplateTask[];
  shortPrompts?: boolean;
  shards?: number;
}

export function addScenes(program: Command): void {
  const command = program
    .command("scenes")
    .description(
      "draw a data set of coloured shapes, with captions, questions and edits to train on",
    )
    .requiredOption(
      "-o, --out <folder>",
      "folder to create: images/ and a manifest per task, or shards",
    )
    .option("--count <n>", "number of scenes", integerFlag(1, 10_000_000), 1000);
  addFlags(command, "scenesSeed")
    .option("--size <pixels>", "pixels along each side", integerFlag(16, 4096), 64)
    .addOption(
      new Option("--split <name>", "data set split; each has its own random streams")
        .choices(SPLITS)
        .default("train"),
    )
    .addOption(
      new Option(
        "--pairs <rule>",
        "the five colour-shape pairs kept out of training, to measure composition",
      )
        .choices(PAIR_RULES)
        .default("exclude"),
    )
    .option("--min-objects <n>", "minimum objects per scene, 1 to 3", integerFlag(1, 3), 1)
    .addOption(
      new Option("--with-shape <shape>", "only scenes with one of this shape").choices(SHAPES),
    )
    .option("--tasks <list>", "tasks to write records for", someOf(TEMPLATE_TASKS), [
      ...TEMPLATE_TASKS,
    ])
    .option("--short-prompts", "only prompts without sizes and background")
    .option(
      "--shards <n>",
      "write this many tar shards (WebDataset) per task instead of images and manifests",
      integerFlag(1, 999_999),
    );
  addFlags(command, ...OUTPUT_FLAGS).action((flags: ScenesFlags) =>
    runCommand(flags, (context) => scenes(flags, context)),
  );
}

async function scenes(flags: ScenesFlags, context: Context): Promise<void> {
  const { out, count, size, split, pairs, minObjects, withShape, tasks, shortPrompts, shards } =
    flags;
  const { writeDataset } = await import("../scenes/dataset.js");
  const seed = parseSeed(flags.seed);
  const data = {
    count,
    seed,
    size,
    split,
    pairs,
    minObjects,
    withShape,
    tasks,
    shortPrompts,
    shards,
  };
  const progress = startRecords(context, count);
  try {
    await writeDataset(out, {
      ...data,
      signal: context.signal,
      onScene: () => progress.step("done"),
    }).catch(writingFailed(out));
  } finally {
    progress.stop();
  }
  note(context, `${count} scenes in ${out}, seed ${seed}`);
  if (context.json) await writeJson({ folder: out, ...data });
}
