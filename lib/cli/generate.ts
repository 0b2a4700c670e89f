/** `unifluid generate`: prompts to pictures. */

import type { Command } from "commander";
import { DRAW_COMMAND_FLAGS, type DrawFlags, runDrawings } from "./draw.js";
import { addFlags } from "./flags.js";
import { checkSingleStandardInput, readLines } from "./input.js";

export function addGenerate(program: Command): void {
  const command = program
    .command("generate")
    .description("draw an image from a prompt; several prompts are drawn together")
    .argument("<prompt...>", "what to draw, quoted; -: standard input, one prompt per line")
    .option(
      "-o, --out <file>",
      "png, webp or jpeg file; several images are numbered; -: standard output",
      "image.png",
    );
  addFlags(command, ...DRAW_COMMAND_FLAGS).action((prompts: string[], flags: DrawFlags) =>
    runDrawings(flags, async ({ signal }) => {
      checkSingleStandardInput(...prompts);
      const lines = await readLines(prompts, signal);
      return lines.map((prompt) => ({
        label: prompt,
        describe: { prompt },
        start: (model, options) => model.generateStream(prompt, options),
      }));
    }),
  );
}
