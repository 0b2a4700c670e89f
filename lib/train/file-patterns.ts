/** Names of many files in one: `{000..011}` and `{a,b}` as in a shell, `*` and `?` in the file's name. */
import { readdir } from "node:fs/promises";
import { basename, dirname, join } from "node:path";
import { TrainingDataError } from "../errors.js";
import { matches } from "./wildcards.js";

/** More names than this are a slip of the pen. */
const MOST = 100_000;

const BRACES = /\{(?:(\d+)\.\.(\d+)|([^{}]*,[^{}]*))\}/;

function range(from: string, to: string): string[] {
  const [first, last] = [Number(from), Number(to)];
  // As shells do: a leading zero asks for numbers of one width.
  const padded = [from, to].some((text) => /^0\d/.test(text));
  const width = padded ? Math.max(from.length, to.length) : 0;
  const step = first <= last ? 1 : -1;
  const count = Math.abs(last - first) + 1;
  if (count > MOST) throw new TrainingDataError(`{${from}..${to}} has more than ${MOST} names`);
  return Array.from({ length: count }, (_, i) => String(first + i * step).padStart(width, "0"));
}

/** All names that a pattern's braces stand for, in the order in which a shell gives them. */
export function expandBraces(pattern: string): string[] {
  const names: string[] = [];
  const expand = (text: string): void => {
    const match = BRACES.exec(text);
    if (!match) {
      names.push(text);
      if (names.length > MOST)
        throw new TrainingDataError(`${pattern} has more than ${MOST} names`);
      return;
    }
    const [whole, from, to, list] = match;
    const choices = list === undefined ? range(from as string, to as string) : list.split(",");
    const before = text.slice(0, match.index);
    const after = text.slice(match.index + whole.length);
    for (const choice of choices) expand(`${before}${choice}${after}`);
  };
  expand(pattern);
  return [...new Set(names)];
}

const isGlob = (path: string) => /[*?]/.test(path);

async function matching(path: string): Promise<string[]> {
  const [folder, name] = [dirname(path), basename(path)];
  if (isGlob(folder))
    throw new TrainingDataError(`expected * and ? in the file's name alone but received ${path}`);
  const names = await readdir(folder).catch((cause) => {
    throw new TrainingDataError(`cannot read ${folder}: ${(cause as Error).message}`, { cause });
  });
  // As with shells, a name that begins with a dot has to be asked for.
  const found = names.filter(
    (n) => matches(n, name, "?") && n.startsWith(".") === name.startsWith("."),
  );
  if (found.length === 0) throw new TrainingDataError(`no file matches ${path}`);
  return found.sort().map((n) => join(folder, n));
}

/** The files that patterns name, each once; that they exist is known of those with * and ? only. Throws `TRAINING_DATA`. */
export async function listFiles(patterns: readonly string[]): Promise<string[]> {
  const files: string[] = [];
  for (const path of patterns.flatMap(expandBraces))
    files.push(...(isGlob(path) ? await matching(path) : [path]));
  return [...new Set(files)];
}
