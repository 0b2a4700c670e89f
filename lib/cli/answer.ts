/** `unifluid answer`: a picture and a question to an answer. */

import type { Command } from "commander";
import type { WriteOptions } from "../call-options.js";
import { note, type OutputFlags, runCommand } from "./context.js";
import { addFlags, MODEL_FLAGS, OUTPUT_FLAGS, WRITE_FLAGS } from "./flags.js";
import { checkNotBlank, checkSingleStandardInput, readImage, readText } from "./input.js";
import { type ModelFlags, withModel } from "./load.js";
import { writeJson, writePieces } from "./output.js";
import { sampling } from "./sampling.js";

export function addAnswer(program: Command): void {
  const command = program
    .command("answer")
    .description("answer a question about an image")
    .argument("<image>", "image file, file URL or data URI; -: standard input")
    .argument("<question>", "what to ask, quoted; -: standard input");
  addFlags(command, ...WRITE_FLAGS, ...MODEL_FLAGS, ...OUTPUT_FLAGS).action(
    (name: string, text: string, flags: ModelFlags & OutputFlags & WriteOptions) =>
      runCommand(flags, async (context) => {
        const { signal, json } = context;
        checkSingleStandardInput(name, text);
        const image = await readImage(name, signal);
        const question = await readText(text, signal);
        checkNotBlank(question, "the question");
        await withModel(flags, signal, async (model) => {
          const { options, seed, sampled } = sampling(model, flags, signal);
          if (json) {
            const answer = await model.answer(image, question, options);
            await writeJson({ image: name, question, answer, ...(sampled && { seed }) });
          } else {
            await writePieces(model.answerStream(image, question, options));
          }
          if (sampled) note(context, `seed ${seed}`);
        });
      }),
  );
}
