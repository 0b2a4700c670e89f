/** A manifest of training records, in an order that a seed decides. */
import { readFile } from "node:fs/promises";
import { dirname, resolve } from "node:path";
import { z } from "zod";
import { InvalidRecordError, TrainingDataError } from "../errors.js";
import { Random } from "../philox.js";
import type { TemplateTask } from "../prompts.js";

const text = z.string().min(1);
const texts = z.union([text, z.array(text).min(1)]);

const recordSchema = z.discriminatedUnion("task", [
  z.object({ task: z.literal("generate"), image: text, prompt: texts }),
  z.object({ task: z.literal("caption"), image: text, text: texts }),
  z.object({
    task: z.literal("answer"),
    image: text,
    question: text.optional(),
    answer: text.optional(),
    questions: z
      .array(z.object({ question: text, answer: text }))
      .min(1)
      .optional(),
  }),
  z.object({ task: z.literal("edit"), image: text, target: text, instruction: texts }),
]);

/** What an autoencoder takes of a record, whatever its task. */
const picturesSchema = z.object({ image: text, target: text.optional() });

/** One example to learn: what is said, and the paths of its pictures. */
export interface TrainingExample {
  task: TemplateTask;
  /** The prompt, question or instruction; empty for a caption. */
  prompt: string;
  /** What is to be written. */
  text?: string;
  image: string;
  /** The picture after an edit. */
  target?: string;
}

const pickOne = (from: string | string[], random: Random): string =>
  typeof from === "string" ? from : random.pick(from);

function checked<T>(schema: z.ZodType<T>, value: unknown): T {
  const result = schema.safeParse(value);
  if (result.success) return result.data;
  const { path, message } = result.error.issues[0]!;
  throw new InvalidRecordError(`${path.join(".") || "record"}: ${message}`);
}

function toExample(value: unknown, folder: string, random: Random): TrainingExample {
  const record = checked(recordSchema, value);
  const image = resolve(folder, record.image);
  switch (record.task) {
    case "generate":
      return { task: record.task, image, prompt: pickOne(record.prompt, random) };
    case "caption":
      return { task: record.task, image, prompt: "", text: pickOne(record.text, random) };
    case "edit": {
      const prompt = pickOne(record.instruction, random);
      return { task: record.task, image, prompt, target: resolve(folder, record.target) };
    }
    case "answer": {
      const { question, answer, questions } = record;
      const one = questions ? random.pick(questions) : { question, answer };
      if (!one.question || !one.answer)
        throw new InvalidRecordError("expected question and answer, or questions");
      return { task: record.task, image, prompt: one.question, text: one.answer };
    }
  }
}

export class Source {
  private order: { epoch: number; indices: Int32Array } | undefined;

  private constructor(
    readonly path: string,
    private readonly lines: readonly string[],
    private readonly seed: bigint,
    private readonly stream: number,
  ) {}

  /** `stream`: the source's place among those of the run, which names its randomness. */
  static async open(path: string, seed: bigint, stream: number): Promise<Source> {
    let content: string;
    try {
      content = await readFile(path, "utf8");
    } catch (cause) {
      throw new TrainingDataError(`cannot read ${path}: ${(cause as Error).message}`, { cause });
    }
    const lines = content.split("\n").filter((line) => line.trim() !== "");
    if (lines.length === 0) throw new TrainingDataError(`${path} has no records`);
    return new Source(path, lines, seed, stream);
  }

  get length(): number {
    return this.lines.length;
  }

  /** The record that comes `position`-th: each once an epoch, in a fresh order. */
  at(position: number): number {
    const epoch = Math.floor(position / this.length);
    if (this.order?.epoch !== epoch) {
      const random = new Random(this.seed, 100 + this.stream, epoch);
      const indices = Int32Array.from({ length: this.length }, (_, i) => i);
      for (let i = this.length - 1; i > 0; i--) {
        const j = random.below(i + 1);
        [indices[i], indices[j]] = [indices[j] as number, indices[i] as number];
      }
      this.order = { epoch, indices };
    }
    return this.order.indices[position % this.length] as number;
  }

  /** Record `index` as an example; `random` picks among its texts. Throws `INVALID_RECORD`. */
  example(index: number, random: Random): TrainingExample {
    return toExample(this.record(index), dirname(this.path), random);
  }

  /** Paths of the pictures of record `index`, which needs no task. Throws `INVALID_RECORD`. */
  pictures(index: number): string[] {
    const { image, target } = checked(picturesSchema, this.record(index));
    const folder = dirname(this.path);
    return [image, ...(target ? [target] : [])].map((path) => resolve(folder, path));
  }

  private record(index: number): unknown {
    try {
      return JSON.parse(this.lines[index] as string);
    } catch (cause) {
      throw new InvalidRecordError(`not JSON: ${(cause as Error).message}`, { cause });
    }
  }
}
