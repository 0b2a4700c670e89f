/** `unifluid edit`: a picture and an instruction to another picture. */

import type { Command } from "commander";
import { DRAW_COMMAND_FLAGS, type DrawFlags, runDrawings } from "./draw.js";
import { addFlags } from "./flags.js";
import { checkNotBlank, checkSingleStandardInput, readImage, readText } from "./input.js";

export function addEdit(program: Command): void {
  const command = program
    .command("edit")
    .description("redraw an image as instructed")
    .argument("<image>", "image file, file URL or data URI; -: standard input")
    .argument("<instruction>", "what to change, quoted; -: standard input")
    .option(
      "-o, --out <file>",
      "png, webp or jpeg file; several images are numbered; -: standard output",
      "edited.png",
    );
  addFlags(command, ...DRAW_COMMAND_FLAGS).action(
    (name: string, instruction: string, flags: DrawFlags) =>
      runDrawings(flags, async ({ signal }) => {
        checkSingleStandardInput(name, instruction);
        const image = await readImage(name, signal);
        const text = await readText(instruction, signal);
        checkNotBlank(text, "the instruction");
        return [
          {
            label: text,
            describe: { image: name, instruction: text },
            start: (model, options) => model.editStream(image, text, options),
          },
        ];
      }),
  );
}
