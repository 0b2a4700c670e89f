/** Options that several commands share, declared once: what they are called, take and mean. */

import { type Command, InvalidArgumentError, Option } from "commander";
import type { DrawOptions, WriteOptions } from "../call-options.js";
import { IMAGE_SETTINGS, ORDERS, SCHEDULES } from "../generation-config.js";
import { IMAGE_FORMATS } from "../image.js";

function number(text: string): number {
  const value = Number(text);
  if (text.trim() === "" || Number.isNaN(value))
    throw new InvalidArgumentError("Expected a number.");
  return value;
}

/** Bytes, given in MiB. */
function mebibytes(text: string): number {
  const bytes = Number(text) * 2 ** 20;
  // Less than a byte is as much as none.
  if (bytes >= 1 && bytes <= 2 ** 53) return Math.floor(bytes);
  throw new InvalidArgumentError("Expected a number of MiB above 0.");
}

/** A count of this program's own; the library checks the ranges of what it takes. */
export const integerFlag = (least: number, most: number) => (text: string) => {
  const value = Number(text);
  if (text.trim() !== "" && Number.isSafeInteger(value) && value >= least && value <= most)
    return value;
  throw new InvalidArgumentError(`Expected a whole number from ${least} to ${most}.`);
};

/** A list such as `a,b` of some names. */
export const someOf =
  <Name extends string>(names: readonly Name[]) =>
  (text: string): Name[] => {
    const list = text.split(",").map((name) => name.trim() as Name);
    if (list.every((name) => names.includes(name)) && new Set(list).size === list.length)
      return list;
    throw new InvalidArgumentError(`Expected some of ${names.join(",")}.`);
  };

/** 64 bits do not fit a number. */
function seed(text: string): number | bigint {
  if (!/^(\d+|0x[0-9a-f]+)$/i.test(text)) {
    throw new InvalidArgumentError("Expected a whole number from 0 to 2^64 - 1.");
  }
  const value = BigInt(text);
  return value <= BigInt(Number.MAX_SAFE_INTEGER) ? Number(value) : value;
}

const FLAGS = {
  model: () =>
    new Option("-m, --model <model>", "included model or checkpoint directory").default(
      "shapes-64",
    ),
  device: () =>
    new Option(
      "--device <device>",
      "compute device: auto, cpu, cuda or cuda:1, cuda:2, ...",
    ).default("auto"),
  dtype: () =>
    new Option("--dtype <type>", "compute type; auto is float32 on a CPU, bfloat16 on a GPU")
      .choices(["auto", "bfloat16", "float32"])
      .default("auto"),
  threads: () => new Option("--threads <n>", "threads (default: all cores)").argParser(number),
  maxMemory: () =>
    new Option(
      "--max-memory <MiB>",
      "memory limit, excluding mapped weights but on a GPU including them (default: what is free)",
    ).argParser(mebibytes),
  seed: () =>
    new Option(
      "-s, --seed <n>",
      "same seed, same image; several get seed, seed + 1, ... modulo 2^64 (default: random)",
    ).argParser(seed),
  captionSeed: () =>
    new Option(
      "-s, --seed <n>",
      "determines sampling at temperatures above 0; image i gets seed + i, modulo 2^64 (default: random)",
    ).argParser(seed),
  textSeed: () =>
    new Option(
      "-s, --seed <n>",
      "determines sampling at temperatures above 0 (default: random)",
    ).argParser(seed),
  initSeed: () =>
    new Option("-s, --seed <n>", "same seed, same fresh weights (default: random)").argParser(seed),
  scenesSeed: () =>
    new Option("-s, --seed <n>", "same seed, same data set (default: random)").argParser(seed),
  recordSeed: () =>
    new Option(
      "-s, --seed <n>",
      "record i without its own seed gets seed + i, modulo 2^64 (default: 0)",
    ).argParser(seed),
  suiteSeed: () =>
    new Option("-s, --seed <n>", "same seed, same scenes and noise (default: 0)").argParser(seed),
  steps: () =>
    new Option("--steps <n>", "diffusion steps per image token (default: the model's)").argParser(
      number,
    ),
  guidance: () =>
    new Option(
      "-g, --guidance <scale>",
      "how strongly the prompt counts; 1: no guidance, below 0: away from it (default: the model's)",
    ).argParser(number),
  guidanceSchedule: () =>
    new Option(
      "--guidance-schedule <kind>",
      "guidance over the image tokens (default: the model's)",
    ).choices(SCHEDULES),
  temperature: () =>
    new Option("-t, --temperature <t>", "scale of the noise (default: the model's)").argParser(
      number,
    ),
  textTemperature: () =>
    new Option(
      "-t, --temperature <t>",
      "0: always the most likely token (default: the model's)",
    ).argParser(number),
  order: () =>
    new Option("--order <order>", "order of the image tokens (default: the model's)").choices(
      ORDERS,
    ),
  x0Limit: () =>
    new Option(
      "--x0-limit <bound>",
      "bound on the predicted latents; Infinity: none (default: the model's)",
    ).argParser(number),
  maxNewTokens: () =>
    new Option("--max-new-tokens <n>", "maximum tokens to write (default: the model's)").argParser(
      number,
    ),
  n: () =>
    new Option("-n, --n <count>", "images per prompt").argParser(integerFlag(1, 10_000)).default(1),
  format: () =>
    new Option("--format <format>", "format on standard output; files have their extension's")
      .choices(IMAGE_FORMATS)
      .default("png"),
  pictureFormat: () =>
    new Option("--format <format>", "picture format").choices(IMAGE_FORMATS).default("png"),
  grid: () => new Option("--grid <file>", "also write all images on one labelled sheet"),
  json: () => new Option("--json", "one JSON document per result; errors as JSON"),
  jsonCounts: () =>
    new Option("--json", "one JSON document with the counts at the end; errors as JSON"),
  quiet: () => new Option("-q, --quiet", "no progress or notes on standard error"),
} satisfies Record<string, () => Option>;

export type Flag = keyof typeof FLAGS;

export const MODEL_FLAGS = ["model", "device", "dtype", "threads", "maxMemory"] as const;
export const OUTPUT_FLAGS = ["json", "quiet"] as const;
export const DRAW_FLAGS = ["seed", ...IMAGE_SETTINGS] as const;
/** Of jobs, which are drawn or written. */
export const JOB_FLAGS = ["recordSeed", ...IMAGE_SETTINGS, "maxNewTokens"] as const;
export const WRITE_FLAGS = ["textSeed", "textTemperature", "maxNewTokens"] as const;
export const CAPTION_FLAGS = ["captionSeed", "textTemperature", "maxNewTokens"] as const;

export function addFlags(command: Command, ...flags: readonly Flag[]): Command {
  for (const flag of flags) command.addOption(FLAGS[flag]());
  return command;
}

/** The values of DRAW_FLAGS as options of the library; what was not given stays undefined. */
export function drawOptions(values: DrawOptions, signal: AbortSignal): DrawOptions {
  const { seed, steps, guidance, guidanceSchedule, temperature, order, x0Limit } = values;
  return { seed, steps, guidance, guidanceSchedule, temperature, order, x0Limit, signal };
}

/** The same for WRITE_FLAGS. */
export function writeOptions(values: WriteOptions, signal: AbortSignal): WriteOptions {
  const { seed, temperature, maxNewTokens } = values;
  return { seed, temperature, maxNewTokens, signal };
}
