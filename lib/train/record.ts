/** What a record of training data says, whatever it is kept in. */
import { z } from "zod";
import { InvalidRecordError } from "../errors.js";
import type { Random } from "../philox.js";
import { TEMPLATE_TASKS, type TemplateTask } from "../prompts.js";

const text = z.string("expected a text").min(1, "expected a text that is not empty");
const texts = z.union([text, z.array(text).min(1)], {
  error: "expected a text or a list of texts, none of them empty",
});
/** No file's name holds a NUL, and the system's calls throw where they get one. */
const picture = text.refine((path) => !path.includes("\0"), "expected a path without a NUL");

const recordSchema = z.discriminatedUnion(
  "task",
  [
    z.object({ task: z.literal("generate"), image: picture, prompt: texts }),
    z.object({ task: z.literal("caption"), image: picture, text: texts }),
    z.object({
      task: z.literal("answer"),
      image: picture,
      question: text.optional(),
      answer: text.optional(),
      questions: z
        .array(z.object({ question: text, answer: text }))
        .min(1)
        .optional(),
    }),
    z.object({
      task: z.literal("edit"),
      image: picture,
      target: picture,
      instruction: texts,
    }),
  ],
  {
    error: ({ code }) =>
      code === "invalid_union" ? `expected ${TEMPLATE_TASKS.join(" or ")}` : "expected an object",
  },
);

/** What an autoencoder takes of a record, whatever its task. */
const picturesSchema = z.object({ image: picture, target: picture.optional() });

type ParsedRecord = z.infer<typeof recordSchema>;

/** What is said of a picture: a prompt, question or instruction, empty for a caption, and what is to be written. */
export interface Said {
  prompt: string;
  text?: string;
}

/** A record with all that may be said; a source names its pictures. */
export interface TrainingRecord {
  task: TemplateTask;
  /** As the record has them. */
  image: string;
  /** The picture after an edit. */
  target?: string;
  /** One of these is drawn each time. */
  said: readonly Said[];
}

const listOf = (value: string | string[]): string[] =>
  typeof value === "string" ? [value] : value;

function saidOf(record: ParsedRecord): Said[] {
  switch (record.task) {
    case "generate":
      return listOf(record.prompt).map((prompt) => ({ prompt }));
    case "caption":
      return listOf(record.text).map((text) => ({ prompt: "", text }));
    case "edit":
      return listOf(record.instruction).map((prompt) => ({ prompt }));
    case "answer": {
      const { question, answer, questions } = record;
      if (questions) return questions.map((q) => ({ prompt: q.question, text: q.answer }));
      if (!question || !answer)
        throw new InvalidRecordError("expected question and answer, or questions");
      return [{ prompt: question, text: answer }];
    }
  }
}

function checked<T>(schema: z.ZodType<T>, value: unknown): T {
  const result = schema.safeParse(value);
  if (result.success) return result.data;
  const { path, message } = result.error.issues[0]!;
  throw new InvalidRecordError(`${path.join(".") || "record"}: ${message}`);
}

/** Checks a record. Throws `INVALID_RECORD`. */
export function parseRecord(value: unknown): TrainingRecord {
  const record = checked(recordSchema, value);
  const { task, image } = record;
  const target = record.task === "edit" ? record.target : undefined;
  return { task, image, target, said: saidOf(record) };
}

/** The pictures that a record names; it needs no task. Throws `INVALID_RECORD`. */
export function parsePictures(value: unknown): string[] {
  const { image, target } = checked(picturesSchema, value);
  return target === undefined ? [image] : [image, target];
}

/** Without a byte order mark, which some programs begin a file with. */
const UTF8 = new TextDecoder("utf-8", { fatal: true });

/** The text of UTF-8 bytes: what is not must not be learned as U+FFFD. Throws `INVALID_RECORD`. */
export function decodeText(bytes: Uint8Array): string {
  let text: string;
  try {
    text = UTF8.decode(bytes);
  } catch (cause) {
    throw new InvalidRecordError("expected UTF-8 text", { cause });
  }
  // UTF-16 without a mark is UTF-8 as well, with a NUL beside each letter.
  if (text.includes("\0")) throw new InvalidRecordError("expected UTF-8 text but found a NUL");
  return text;
}

/** Parses the JSON text of a record. Throws `INVALID_RECORD`. */
export function parseRecordText(bytes: Uint8Array): unknown {
  const text = decodeText(bytes);
  try {
    return JSON.parse(text);
  } catch (cause) {
    throw new InvalidRecordError(`not JSON: ${(cause as Error).message}`, { cause });
  }
}

/** What of a record is learned this time; a record of one text draws nothing from `random`. */
export function pickSaid({ said }: TrainingRecord, random: Random): Said {
  return said.length === 1 ? (said[0] as Said) : random.pick(said);
}
