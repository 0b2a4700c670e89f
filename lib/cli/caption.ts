/** `unifluid caption`: pictures to descriptions. */

import type { Command } from "commander";
import { runAll } from "../bulk.js";
import type { WriteOptions } from "../call-options.js";
import { seedOfItem } from "../seed.js";
import { type Context, note, type OutputFlags, runCommand } from "./context.js";
import { addFlags, CAPTION_FLAGS, MODEL_FLAGS, OUTPUT_FLAGS } from "./flags.js";
import { checkSingleStandardInput, readImage } from "./input.js";
import { type ModelFlags, withModel } from "./load.js";
import { write, writeJson } from "./output.js";
import { sampling } from "./sampling.js";
import { Outcomes } from "./several.js";

interface CaptionFlags extends ModelFlags, OutputFlags, WriteOptions {}

/** Images that the engine has at once: enough to keep it busy, and few enough to hold their pixels. */
const TOGETHER = 16;

export function addCaption(program: Command): void {
  const command = program
    .command("caption")
    .description("describe images; with several, each line starts with its image")
    .argument("<image...>", "image files, file URLs or data URIs; -: standard input");
  addFlags(command, ...CAPTION_FLAGS, ...MODEL_FLAGS, ...OUTPUT_FLAGS).action(
    (names: string[], flags: CaptionFlags) =>
      runCommand(flags, (context) => caption(names, flags, context)),
  );
}

/** A sampled caption may hold line breaks. */
const oneLine = (text: string) => text.replace(/\s*[\r\n]\s*/g, " ");

async function caption(
  names: readonly string[],
  flags: CaptionFlags,
  context: Context,
): Promise<void> {
  const { signal, json } = context;
  checkSingleStandardInput(...names);
  await withModel(flags, signal, async (model) => {
    const { options, seed, sampled } = sampling(model, flags, signal);
    const outcomes = new Outcomes(context, names.length);
    const describe = async (name: string, index: number, ends: AbortSignal) => {
      const image = await readImage(name, ends);
      return model.caption(image, { ...options, seed: seedOfItem(seed, index), signal: ends });
    };
    const settings = { concurrency: TOGETHER, ordered: true, stopOnError: false, signal };
    for await (const { index, item: image, value, error } of runAll(names, describe, settings)) {
      if (error) {
        outcomes.fail(error, { label: image, describe: { image } });
        continue;
      }
      const own = sampled ? { seed: seedOfItem(seed, index) } : {};
      if (json) await writeJson({ image, caption: value, ...own });
      else await write(names.length === 1 ? `${value}\n` : `${image}\t${oneLine(value)}\n`);
      outcomes.done++;
    }
    const what = names.length === 1 ? "" : `${outcomes.done} captions from `;
    if (sampled) note(context, `${what}seed ${seed}`);
    outcomes.end();
  });
}
