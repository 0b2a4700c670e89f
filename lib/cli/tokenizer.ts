/** `unifluid tokenizer`: a vocabulary for texts of one's own. */

import type { Command } from "commander";
import { note, type OutputFlags, runCommand } from "./context.js";
import { addFlags, integerFlag, OUTPUT_FLAGS } from "./flags.js";
import { writeJson, writingFailed } from "./output.js";

interface TokenizerFlags extends OutputFlags {
  out: string;
  vocab: number;
}

/** The special tokens, the bytes and a character. */
const LEAST = 261;

export function addTokenizer(program: Command): void {
  const command = program
    .command("tokenizer <files...>")
    .description(
      "learn a byte-pair tokenizer from texts, or from the records of .jsonl and .tar files",
    )
    .requiredOption(
      "--vocab <n>",
      "maximum tokens, 260 of them special tokens and bytes",
      integerFlag(LEAST, 1_000_000),
    )
    .requiredOption("-o, --out <folder>", "folder to create, for init's --tokenizer");
  addFlags(command, ...OUTPUT_FLAGS).action((files: string[], flags: TokenizerFlags) =>
    runCommand(flags, async (context) => {
      const { trainTokenizer } = await import("../bpe/tokenizer-files.js");
      const { out, vocab } = flags;
      const { signal } = context;
      const { tokens, merges } = await trainTokenizer(files, vocab, out, signal).catch(
        writingFailed(out),
      );
      note(context, `${tokens} tokens in ${out}, ${merges} from merges`);
      if (tokens < vocab) note(context, `the texts have no more pairs that occur twice`);
      if (context.json) await writeJson({ folder: out, tokens, merges });
    }),
  );
}
