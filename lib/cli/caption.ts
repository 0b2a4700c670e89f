/** `unifluid caption`: pictures to descriptions. */

import type { Command } from "commander";
import type { WriteOptions } from "../model.js";
import { parseSeed, seedOfItem } from "../seed.js";
import { type OutputFlags, runCommand } from "./context.js";
import { addFlags, MODEL_FLAGS, OUTPUT_FLAGS, WRITE_FLAGS, writeOptions } from "./flags.js";
import { checkSingleStandardInput, readImage } from "./input.js";
import { type ModelFlags, withModel } from "./load.js";
import { write, writeJson } from "./output.js";

/** Images that the engine has at once: enough to keep it busy, and few enough to hold their pixels. */
const TOGETHER = 16;

export function addCaption(program: Command): void {
  const command = program
    .command("caption")
    .description("describe images; of several, each line names its image first")
    .argument("<image...>", "image files, file URLs or data URIs; -: standard input");
  addFlags(command, ...WRITE_FLAGS, ...MODEL_FLAGS, ...OUTPUT_FLAGS).action(
    (names: string[], flags: ModelFlags & OutputFlags & WriteOptions) =>
      runCommand(flags, ({ signal, json }) => {
        checkSingleStandardInput(...names);
        const seed = parseSeed(flags.seed);
        return withModel(flags, signal, async (model) => {
          for (let first = 0; first < names.length; first += TOGETHER) {
            const group = names.slice(first, first + TOGETHER);
            const images = await Promise.all(group.map((name) => readImage(name, signal)));
            // Image i has seed + i, as if all were written together.
            const options = { ...writeOptions(flags, signal), seed: seedOfItem(seed, first) };
            const captions = await model.caption(images, options);
            for (const [i, caption] of captions.entries()) {
              const image = group[i]!;
              if (json) await writeJson({ image, caption });
              else await write(names.length === 1 ? `${caption}\n` : `${image}\t${caption}\n`);
            }
          }
        });
      }),
  );
}
