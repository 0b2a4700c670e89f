/** `unifluid complete`: a text and what follows it. */

import type { Command } from "commander";
import type { WriteOptions } from "../model.js";
import { type OutputFlags, runCommand } from "./context.js";
import { addFlags, MODEL_FLAGS, OUTPUT_FLAGS, WRITE_FLAGS, writeOptions } from "./flags.js";
import { readText } from "./input.js";
import { type ModelFlags, withModel } from "./load.js";
import { writeJson, writePieces } from "./output.js";

export function addComplete(program: Command): void {
  const command = program
    .command("complete")
    .description(
      "continue a text, with a Gemma checkpoint (--model <directory>) or a UniFluid model",
    )
    .argument("<text>", "the beginning, quoted; -: standard input");
  addFlags(command, ...WRITE_FLAGS, ...MODEL_FLAGS, ...OUTPUT_FLAGS).action(
    (text: string, flags: ModelFlags & OutputFlags & WriteOptions) =>
      runCommand(flags, async ({ signal, json }) => {
        const prompt = await readText(text, signal);
        const options = writeOptions(flags, signal);
        await withModel(flags, signal, async (model) => {
          if (json) await writeJson({ prompt, text: await model.complete(prompt, options) });
          else await writePieces(model.completeStream(prompt, options));
        });
      }),
  );
}
