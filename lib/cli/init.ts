/** `unifluid init`: a fresh checkpoint to train. */

import type { Command } from "commander";
import { countParameters } from "../memory.js";
import { parseSeed } from "../seed.js";
import { note, type OutputFlags, runCommand } from "./context.js";
import { addFlags, OUTPUT_FLAGS } from "./flags.js";
import { writeJson, writingFailed } from "./output.js";
import { formatCount } from "./tables.js";

interface InitFlags extends OutputFlags {
  out: string;
  seed?: number | bigint;
  tokenizer?: string;
  text?: string;
  vision?: string;
  image?: string;
  vae?: string;
}

export function addInit(program: Command): void {
  const command = program
    .command("init <config>")
    .description("create a fresh checkpoint from a YAML file of sizes (config.json's fields)")
    .requiredOption("-o, --out <folder>", "checkpoint directory to create")
    .option(
      "--tokenizer <model>",
      "use this model's tokenizer, or a standalone one (default: that of --text, or shapes-64)",
    )
    .option("--text <model>", "use this model's decoder (Gemma, Gemma 2, PaliGemma, UniFluid)")
    .option("--vision <model>", "use this model's vision tower (SigLIP, PaliGemma, UniFluid)")
    .option(
      "--image <model>",
      "use this model's diffusion head and image token embeddings (UniFluid)",
    )
    .option("--vae <model>", "use the autoencoder of this directory, or of a file like KL-16's");
  addFlags(command, "initSeed", ...OUTPUT_FLAGS).action((config: string, flags: InitFlags) =>
    runCommand(flags, async (context) => {
      const { initCheckpoint } = await import("../init/init.js");
      const { out, tokenizer, text, vision, image, vae } = flags;
      const seed = parseSeed(flags.seed);
      const { signal } = context;
      const options = { seed, tokenizer, text, vision, image, vae, signal };
      const made = await initCheckpoint(config, out, options).catch(writingFailed(out));
      const parameters = Object.values(countParameters(made)).reduce((sum, n) => sum + n, 0);
      note(context, `${formatCount(parameters)} parameters in ${out}, seed ${seed}`);
      if (context.json) await writeJson({ folder: out, parameters, seed });
    }),
  );
}
