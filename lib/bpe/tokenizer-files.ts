/** A learned vocabulary as the files of a tokenizer, in the form of Gemma's. */
import { writeFile } from "node:fs/promises";
import { join } from "node:path";
import { TrainingDataError } from "../errors.js";
import { expectNoFolder, fillNewFolder } from "../new-folder.js";
import { countWords, SPACE } from "./corpus.js";
import { type LearnedVocabulary, learnVocabulary } from "./learn.js";

/** The ids 0 to 3 are those that `unifluid init` gives a model by default. */
const SPECIAL = ["<pad>", "<eos>", "<bos>", "<unk>"];
/** What no token spells is written in these. */
const BYTES = Array.from(
  { length: 256 },
  (_, byte) => `<0x${byte.toString(16).toUpperCase().padStart(2, "0")}>`,
);
/** Entries that every vocabulary has. */
export const FIXED_TOKENS = SPECIAL.length + BYTES.length;

/** `tokenizer.json`: spaces become \u2581, merges run over the whole text, bytes stand for the rest. */
export function tokenizerJson({ tokens, merges }: LearnedVocabulary): object {
  return {
    version: "1.0",
    truncation: null,
    padding: null,
    added_tokens: SPECIAL.map((content, id) => ({
      id,
      content,
      single_word: false,
      lstrip: false,
      rstrip: false,
      normalized: false,
      special: true,
    })),
    normalizer: { type: "Replace", pattern: { String: " " }, content: SPACE },
    pre_tokenizer: null,
    post_processor: null,
    decoder: {
      type: "Sequence",
      decoders: [
        { type: "Replace", pattern: { String: SPACE }, content: " " },
        { type: "ByteFallback" },
        { type: "Fuse" },
      ],
    },
    model: {
      type: "BPE",
      dropout: null,
      unk_token: "<unk>",
      continuing_subword_prefix: null,
      end_of_word_suffix: null,
      fuse_unk: true,
      byte_fallback: true,
      ignore_merges: false,
      vocab: Object.fromEntries([...SPECIAL, ...BYTES, ...tokens].map((token, id) => [token, id])),
      merges,
    },
  };
}

const CONFIG = {
  tokenizer_class: "GemmaTokenizer",
  add_bos_token: true,
  add_eos_token: false,
  pad_token: "<pad>",
  eos_token: "<eos>",
  bos_token: "<bos>",
  unk_token: "<unk>",
  clean_up_tokenization_spaces: false,
};

export interface TrainedTokenizer {
  /** Entries of the vocabulary: as many as were asked for, unless the texts give fewer. */
  tokens: number;
  merges: number;
}

/**
 * Learns a tokenizer of at most `vocabulary` tokens from files and writes it to `folder`, which must not exist; it
 * appears when it is complete. Throws `INVALID_OPTION`, `TRAINING_DATA`, `INVALID_RECORD` and the signal's reason.
 */
export async function trainTokenizer(
  files: readonly string[],
  vocabulary: number,
  folder: string,
  signal?: AbortSignal,
): Promise<TrainedTokenizer> {
  const target = await expectNoFolder(folder);
  const words = await countWords(files, signal);
  if (words.size === 0) throw new TrainingDataError(`there is no text in ${files.join(", ")}`);
  const learned = await learnVocabulary(words, vocabulary - FIXED_TOKENS, signal);
  await fillNewFolder(target, async (beside) => {
    const write = (name: string, value: object) =>
      writeFile(join(beside, name), `${JSON.stringify(value, null, 2)}\n`);
    await write("tokenizer.json", tokenizerJson(learned));
    await write("tokenizer_config.json", CONFIG);
  });
  return { tokens: FIXED_TOKENS + learned.tokens.length, merges: learned.merges.length };
}
