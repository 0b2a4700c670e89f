/**
 * A checkpoint directory, read and checked (spec section 1): configuration, names and shapes of all
 * weights, tokenizer, image preprocessing, default settings. Nothing native takes part.
 */

import { join } from "node:path";
import { CheckpointNotFoundError, InvalidConfigError } from "../errors.js";
import { isThere } from "../files.js";
import { type GenerationConfig, mostSteps, parseGenerationConfig } from "../generation-config.js";
import type { NativeModelSpec, NativeVaeConfig } from "../native.js";
import { stringOption } from "../options.js";
import { type PreprocessorConfig, parsePreprocessorConfig } from "../preprocess.js";
import { Tokenizer } from "../tokenizer.js";
import {
  type CheckpointKind,
  checkImageAgainstVae,
  type ModelConfig,
  parseModelConfig,
} from "./config.js";
import { Fields, isObject } from "./fields.js";
import { readJson } from "./read-json.js";
import { findWeights, readWeightFiles } from "./shards.js";
import {
  canonicalName,
  canonicalVaeName,
  isIgnored,
  type Spelling,
  spellingsOf,
} from "./tensor-names.js";
import {
  type ExpectedTensor,
  matchTensors,
  modelTensors,
  type NamedTensor,
  vaeTensors,
} from "./tensor-table.js";
import { eosTokens } from "./text-config.js";
import { parseVaeConfig } from "./vae-config.js";

/** The name of an autoencoder's weights, without extension. */
const VAE_WEIGHTS = "diffusion_pytorch_model";

/**
 * What a checkpoint directory holds. The package's own parts are left out of its published types, so exported functions
 * take it whole: a pattern among their parameters would name these parts in the declarations.
 */
export interface Checkpoint {
  directory: string;
  kind: CheckpointKind;
  /** Absent if the directory has only an autoencoder. @internal */
  config?: ModelConfig;
  /** The autoencoder, if there is one. @internal */
  vae?: NativeVaeConfig;
  generation: GenerationConfig;
  /** @internal */
  preprocessor?: PreprocessorConfig;
  /** Absent if the directory has only an autoencoder. @internal */
  tokenizer?: Tokenizer;
  /** What the native addon loads. @internal */
  spec: NativeModelSpec;
}

/** Reads and checks a checkpoint directory. */
export async function readCheckpoint(directory: string, signal?: AbortSignal): Promise<Checkpoint> {
  const configPath = join(stringOption("directory", directory), "config.json");
  const vaeDirectory = join(directory, "vae");
  const hasVae = await isThere(join(vaeDirectory, "config.json"));
  if (!(await isThere(configPath))) {
    if (hasVae) return readAutoencoder(directory);
    throw new CheckpointNotFoundError(
      `${directory} is not a checkpoint: it has neither config.json nor vae/config.json`,
    );
  }
  const json = await readJson(configPath);
  if (isObject(json) && json._class_name === "AutoencoderKL") {
    throw new InvalidConfigError(
      `${configPath} is that of an autoencoder, not of a model: move it and its weights to ${vaeDirectory}, and ${directory} is the checkpoint of an autoencoder alone`,
    );
  }
  const config = parseModelConfig(Fields.of(json, configPath));
  signal?.throwIfAborted();
  const spec: NativeModelSpec = { files: [], tensors: [] };
  const weights = await addTensors(
    spec,
    directory,
    "model",
    modelTensors(config),
    (name) => canonicalName(name, config.kind),
    spellingsOf(config.kind),
  );
  signal?.throwIfAborted();
  spec.text = { ...config.text, tied: !weights.has("lm_head.weight") };
  spec.vision = config.vision;
  spec.image = config.image;

  // Only a UniFluid model computes with an autoencoder.
  if (config.image && !hasVae) await expectNoWeights(vaeDirectory);
  if (hasVae && config.image) {
    spec.vae = await addVae(spec, vaeDirectory);
    checkImageAgainstVae(config.image, spec.vae, configPath);
  }
  signal?.throwIfAborted();
  const generationPath = join(directory, "generation_config.json");
  const generation = Fields.of(await readJson(generationPath, {}), generationPath);
  // transformers lets this file's list of end tokens stand above config.json's.
  const stops = eosTokens(generation, spec.text.vocabSize);
  return {
    directory,
    kind: config.kind,
    config: stops ? { ...config, eosTokens: stops } : config,
    vae: spec.vae,
    generation: parseGenerationConfig(generation, config.image ? mostSteps(config.image) : 1000),
    preprocessor: config.vision && (await readPreprocessor(directory, config.vision.imageSize)),
    tokenizer: await Tokenizer.load(join(directory, "tokenizer.json"), spec.text.vocabSize, signal),
    spec,
  };
}

/** Reads and checks the autoencoder of a checkpoint directory, as if there were nothing else. */
export async function readAutoencoder(directory: string): Promise<Checkpoint> {
  const spec: NativeModelSpec = { files: [], tensors: [] };
  spec.vae = await addVae(spec, join(directory, "vae"));
  return {
    directory,
    kind: "vae",
    vae: spec.vae,
    generation: parseGenerationConfig(Fields.of({}, directory), 1000),
    spec,
  };
}

/** An autoencoder that lost its configuration must not pass for one that was left out. */
async function expectNoWeights(vaeDirectory: string): Promise<void> {
  const weights = await findWeights(vaeDirectory, VAE_WEIGHTS);
  if (weights === undefined) return;
  throw new CheckpointNotFoundError(
    `there is ${weights} but no config.json beside it, which tells what the autoencoder is`,
  );
}

async function addVae(spec: NativeModelSpec, directory: string): Promise<NativeVaeConfig> {
  const path = join(directory, "config.json");
  const vae = parseVaeConfig(Fields.of(await readJson(path), path));
  await addTensors(
    spec,
    directory,
    VAE_WEIGHTS,
    vaeTensors(vae),
    canonicalVaeName,
    spellingsOf("vae"),
  );
  return vae;
}

/** Finds the expected tensors in a directory's weight files and adds them; the names found. */
async function addTensors(
  spec: NativeModelSpec,
  directory: string,
  name: string,
  expected: ExpectedTensor[],
  canonical: (stored: string) => string,
  spellings: readonly Spelling[],
): Promise<Set<string>> {
  const { path, files, tensors } = await readWeightFiles(directory, name);
  const named: NamedTensor[] = tensors
    .map((stored) => ({ name: canonical(stored.name), stored, path: files[stored.file]! }))
    .filter((tensor) => !isIgnored(tensor.name));
  const firstFile = spec.files.length;
  const matched = matchTensors(expected, named, { where: path, spellings, firstFile });
  spec.files.push(...files);
  spec.tensors.push(...matched);
  return new Set(matched.map((tensor) => tensor.name));
}

/**
 * What a directory says of preparing images, and what to call its place in messages. As in transformers, the section
 * `image_processor` of `processor_config.json`, all that version 5 writes, goes before `preprocessor_config.json`.
 */
export async function findPreprocessor(
  directory: string,
): Promise<{ json: unknown; where: string } | undefined> {
  const outer = join(directory, "processor_config.json");
  const processor = await readJson(outer, {});
  if (isObject(processor) && isObject(processor.image_processor))
    return { json: processor.image_processor, where: `${outer}: image_processor` };
  const where = join(directory, "preprocessor_config.json");
  return (await isThere(where)) ? { json: await readJson(where), where } : undefined;
}

async function readPreprocessor(directory: string, imageSize: number): Promise<PreprocessorConfig> {
  const found = await findPreprocessor(directory);
  const json = found ? found.json : { size: { height: imageSize, width: imageSize } };
  const config = parsePreprocessorConfig(json, found?.where);
  if (config.width !== imageSize || config.height !== imageSize) {
    throw new InvalidConfigError(
      `${found?.where}: expected vision_config.image_size (${imageSize}) for size but found ${config.width} x ${config.height}`,
    );
  }
  return config;
}
