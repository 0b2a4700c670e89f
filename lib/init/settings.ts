/** What `config.json` of a fresh model says beside its sections. */
import { isObject, show } from "../checkpoint/fields.js";
import { InvalidConfigError } from "../errors.js";
import { DEFAULT_TEMPLATES } from "../prompts.js";
import type { Part } from "./part.js";

type Json = Record<string, unknown>;

/**
 * The fields of a YAML file over those that parts bring from their models, over defaults. Throws `INVALID_CONFIG` where
 * two models differ in what the file does not say.
 *
 * @param where What to call the file in messages.
 */
export function modelSettings(
  parts: readonly (Part | undefined)[],
  given: Json,
  where: string,
): Json {
  const taken = parts.flatMap((part) =>
    part?.settings ? [{ source: part.source, ...part.settings }] : [],
  );
  const prompts = given.prompts ?? {};
  const settings = taken.map(({ source, prompts: _, ...fields }) => ({ source, fields }));
  const templates = taken.map(({ source, prompts: fields }) => ({ source, fields }));
  return {
    prefix_attention: "bidirectional",
    edit_source_latents: true,
    ...under(given, settings, where),
    prompts: isObject(prompts)
      ? { ...DEFAULT_TEMPLATES, ...under(prompts, templates, `${where}: prompts`) }
      : prompts,
  };
}

function under(
  given: Json,
  taken: readonly { source: string; fields: object }[],
  where: string,
): Json {
  const first = new Map<string, { source: string; value: unknown }>();
  for (const { source, fields } of taken) {
    for (const [name, value] of Object.entries(fields)) {
      const other = first.get(name);
      if (!other) first.set(name, { source, value });
      else if (other.value !== value && !Object.hasOwn(given, name))
        throw new InvalidConfigError(
          `${where}: expected ${name}, which is ${show(other.value)} in ${other.source} and ${show(value)} in ${source}`,
        );
    }
  }
  return { ...Object.fromEntries([...first].map(([name, { value }]) => [name, value])), ...given };
}
