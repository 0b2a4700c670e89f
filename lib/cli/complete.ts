/** `unifluid complete`: a text and what follows it. */

import type { Command } from "commander";
import type { WriteOptions } from "../call-options.js";
import { note, type OutputFlags, runCommand } from "./context.js";
import { addFlags, MODEL_FLAGS, OUTPUT_FLAGS, WRITE_FLAGS } from "./flags.js";
import { readText } from "./input.js";
import { type ModelFlags, withModel } from "./load.js";
import { writeJson, writePieces } from "./output.js";
import { sampling } from "./sampling.js";

export function addComplete(program: Command): void {
  const command = program
    .command("complete")
    .description(
      "continue a text, with a Gemma checkpoint (--model <directory>) or a UniFluid model",
    )
    .argument("<text>", "text to continue, quoted; -: standard input");
  addFlags(command, ...WRITE_FLAGS, ...MODEL_FLAGS, ...OUTPUT_FLAGS).action(
    (text: string, flags: ModelFlags & OutputFlags & WriteOptions) =>
      runCommand(flags, async (context) => {
        const { signal, json } = context;
        const prompt = await readText(text, signal);
        await withModel(flags, signal, async (model) => {
          const { options, seed, sampled } = sampling(model, flags, signal);
          if (json) {
            const text = await model.complete(prompt, options);
            await writeJson({ prompt, text, ...(sampled && { seed }) });
          } else {
            await writePieces(model.completeStream(prompt, options));
          }
          if (sampled) note(context, `seed ${seed}`);
        });
      }),
  );
}
