/** Fields of a file of sizes that nothing reads: a misspelt one would mean its default without a word. */
import { type Fields, isObject, type UnreadField } from "../checkpoint/fields.js";
import { InvalidConfigError } from "../errors.js";

/** What the libraries that such fields come from write beside sizes, and what their models alone need. */
const IDLE = new Set([
  "_diffusers_version",
  "_name_or_path",
  "_vocab_size",
  "architectures",
  "attention_dropout",
  "cache_implementation",
  "dtype",
  "force_upcast",
  "hidden_act",
  "ignore_index",
  "image_token_index",
  "initializer_range",
  "num_image_tokens",
  "pad_token_id",
  "projection_dim",
  "projector_hidden_act",
  "sample_size",
  "tie_word_embeddings",
  "torch_dtype",
  "transformers_version",
  "use_cache",
  "vision_use_head",
]);

/** Whether a model that is made does not do what the field asks for. */
const isMeant = ({ name, value }: UnreadField) => name === "tie_word_embeddings" && value === false;

/**
 * Throws `INVALID_CONFIG` for a field of the file that was not asked for while its configuration was read. `given`: what
 * the file says, of what `read` has; the rest comes from parts of other models. `where`: what to call the file.
 */
export function refuseUnread(read: Fields, given: Record<string, unknown>, where: string): void {
  const isGiven = ({ name, path }: UnreadField) => {
    let at: unknown = given;
    for (const step of path) at = isObject(at) ? at[step] : undefined;
    return isObject(at) && Object.hasOwn(at, name);
  };
  for (const field of read.unread()) {
    if (!isGiven(field) || (IDLE.has(field.name) && !isMeant(field))) continue;
    const near = nearest(field.name, field.asked);
    throw new InvalidConfigError(
      `${[where, ...field.path].join(": ")}: unknown field ${field.name}${near ? `; did you mean ${near}?` : ""}`,
    );
  }
}

/** The name that a misspelt one is likely to stand for. */
function nearest(name: string, names: readonly string[]): string | undefined {
  const [best] = names
    .map((known) => ({ known, edits: edits(name.toLowerCase(), known) }))
    .sort((a, b) => a.edits - b.edits);
  return best && best.edits <= name.length / 3 ? best.known : undefined;
}

/** Characters to add, leave out or change to make one text of another (Levenshtein). */
function edits(from: string, to: string): number {
  let before = Array.from({ length: to.length + 1 }, (_, j) => j);
  for (const [i, a] of [...from].entries()) {
    const row = [i + 1];
    for (const [j, b] of [...to].entries())
      row.push(Math.min(row[j]! + 1, before[j + 1]! + 1, before[j]! + (a === b ? 0 : 1)));
    before = row;
  }
  return before[to.length]!;
}
