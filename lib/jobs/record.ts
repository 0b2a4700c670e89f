/** One job: a record of a file of jobs, checked, and what is to be done for it. */

import { createHash } from "node:crypto";
import { isAbsolute, resolve } from "node:path";
import { z } from "zod";
import { InvalidRecordError } from "../errors.js";
import { IMAGE_SETTINGS, ORDERS, SCHEDULES, TEXT_SETTINGS } from "../generation-config.js";
import { definedOf } from "../options.js";
import { TEMPLATE_TASKS, type TemplateTask } from "../prompts.js";
import { numeric, optional, seedField } from "../schema-fields.js";
import { seedOfItem } from "../seed.js";
import { nameOfRecord } from "./reader.js";

const recordSchema = z.strictObject({
  id: optional(
    z
      .string()
      .regex(
        /^[A-Za-z0-9_-][A-Za-z0-9._-]{0,99}$/,
        "expected 1 to 100 letters, digits, '.', '_' or '-', not beginning with '.'",
      ),
  ),
  task: optional(z.enum(TEMPLATE_TASKS)),
  prompt: optional(z.string().min(1)),
  image: optional(z.string().min(1)),
  question: optional(z.string().min(1)),
  instruction: optional(z.string().min(1)),
  seed: optional(seedField),
  steps: numeric(z.int()),
  guidance: numeric(z.number()),
  guidanceSchedule: optional(z.enum(SCHEDULES)),
  temperature: numeric(z.number()),
  order: optional(z.enum(ORDERS)),
  // JSON has no infinite number; as a text it is no bound.
  x0Limit: numeric(z.union([z.number(), z.literal(Infinity)])),
  maxNewTokens: numeric(z.int()),
});

export type JobRecord = z.infer<typeof recordSchema>;

/** What a record asks for. */
export interface Job {
  /** Its place among the records of the file, from 0. */
  index: number;
  id?: string;
  task: TemplateTask;
  /** Prompt, instruction or question; empty for a caption. */
  text: string;
  /** A path, perhaps relative, or a data URI. */
  image?: string;
  /** Options of drawing or writing. */
  options: Record<string, unknown>;
}

/** The fields that each task needs; it may have no other of them. */
const FIELDS: Readonly<Record<TemplateTask, readonly (keyof JobRecord)[]>> = {
  generate: ["prompt"],
  edit: ["image", "instruction"],
  caption: ["image"],
  answer: ["image", "question"],
};
const SUBJECTS = ["prompt", "image", "instruction", "question"] as const;
const DRAW_NAMES = ["seed", ...IMAGE_SETTINGS] as const;
const WRITE_NAMES = ["seed", ...TEXT_SETTINGS] as const;

/** The task that the fields of a record mean, where it names none. */
function taskOf(record: JobRecord): TemplateTask {
  if (record.task !== undefined) return record.task;
  if (record.image === undefined) return "generate";
  if (record.instruction !== undefined) return "edit";
  return record.question === undefined ? "caption" : "answer";
}

export interface JobDefaults {
  /** Options for records that have none of their own; those that a task does not know are left out. */
  options: Record<string, unknown>;
  /** Record `i` without a seed has `seed + i`, modulo 2^64. */
  seed: bigint;
}

/** The job of a record; `line` is where it ends in its file. Throws `INVALID_RECORD`. */
export function jobOf(value: unknown, index: number, defaults: JobDefaults, line?: number): Job {
  const where = nameOfRecord(index, line);
  const parsed = recordSchema.safeParse(value);
  if (!parsed.success) {
    const [issue] = parsed.error.issues;
    const field = issue?.path.length ? `${issue.path.join(".")}: ` : "";
    throw new InvalidRecordError(`${where}: ${field}${issue?.message}`);
  }
  const record = parsed.data;
  const task = taskOf(record);
  const needed = FIELDS[task];
  for (const name of SUBJECTS) {
    if (needed.includes(name) === (record[name] !== undefined)) continue;
    const problem = needed.includes(name) ? `needs "${name}"` : `takes no "${name}"`;
    throw new InvalidRecordError(`${where}: ${task} ${problem}`);
  }
  const names: readonly string[] =
    task === "generate" || task === "edit" ? DRAW_NAMES : WRITE_NAMES;
  const given = { ...definedOf(defaults.options), ...definedOf(record) };
  const options: Record<string, unknown> = Object.fromEntries(
    Object.entries(given).filter(([name]) => names.includes(name)),
  );
  options.seed = record.seed ?? seedOfItem(defaults.seed, index);
  return {
    index,
    ...(record.id === undefined ? {} : { id: record.id }),
    task,
    text: record.prompt ?? record.instruction ?? record.question ?? "",
    ...(record.image === undefined ? {} : { image: record.image }),
    options,
  };
}

/** Where a job's image is, when relative paths start from `folder`. */
export function imagePath(image: string, folder: string): string {
  // As lib/image-input.ts tells addresses from paths: `shot-10:30.png` is a file.
  if (/^(data:|file:|[a-z][a-z0-9+.-]*:\/\/)/i.test(image) || isAbsolute(image)) return image;
  return resolve(folder, image);
}

/**
 * 32 bits that tell one job from another, also what it is done with (`means`); never 0. Two runs of a job have the
 * same.
 */
export function fingerprint(job: Job, means: readonly string[] = []): number {
  const text = JSON.stringify({ job, means }, (_, value) => {
    if (typeof value === "bigint") return String(value);
    // Whatever the order of the fields in a file.
    if (typeof value === "object" && value !== null && !Array.isArray(value)) {
      return Object.fromEntries(Object.entries(value).sort(([a], [b]) => (a < b ? -1 : 1)));
    }
    return value;
  });
  return createHash("sha256").update(text).digest().readUInt32LE(0) || 1;
}
