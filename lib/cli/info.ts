/** `unifluid info`: what a checkpoint is, what it can do, the memory it takes, and the device that it would get. */

import type { Command } from "commander";
import { estimateActivations } from "../activation-memory.js";
import { loadAddon } from "../addon.js";
import { type Checkpoint, readCheckpoint } from "../checkpoint/checkpoint.js";
import { locateCheckpoint } from "../checkpoint/locate.js";
import { visionRows } from "../checkpoint/vision-config.js";
import { chooseDevice, type DeviceNeed, shortage, surveyDevices } from "../device.js";
import { fromNative, NonFiniteWeightError } from "../errors.js";
import { deviceNeed } from "../load-model.js";
import { parseLoadOptions } from "../load-options.js";
import { countParameters, estimateMemory, type ModelPart } from "../memory.js";
import { tasksOf } from "../tasks.js";
import { type OutputFlags, runCommand } from "./context.js";
import { gpuLine, reportGpus, tryAddon } from "./devices.js";
import { addFlags } from "./flags.js";
import { write, writeJson } from "./output.js";
import { formatBytes, formatCount, formatTable } from "./tables.js";

interface InfoFlags extends OutputFlags {
  check?: boolean;
}

export function addInfo(program: Command): void {
  const command = program
    .command("info")
    .description("describe a checkpoint: its parts, tasks, memory and device on this machine")
    .argument("[model]", "included model or checkpoint directory", "shapes-64")
    .option("--check", "read all weights, and fail if one is NaN or infinite");
  addFlags(command, "json").action((model: string, flags: InfoFlags) =>
    runCommand(flags, async ({ signal, json }) => {
      const checkpoint = await readCheckpoint(await locateCheckpoint(model), signal);
      if (flags.check) await checkWeights(checkpoint);
      const facts = { ...describeCheckpoint(checkpoint), ...(await describeDevice(checkpoint)) };
      if (json) await writeJson(flags.check ? { ...facts, finite: true } : facts);
      else await write(formatFacts(facts, flags.check ?? false));
    }),
  );
}

async function checkWeights(checkpoint: Checkpoint): Promise<void> {
  const found = await loadAddon()
    .findNonFinite(checkpoint.spec)
    .catch((failure) => {
      throw fromNative(failure);
    });
  if (found) {
    throw new NonFiniteWeightError(
      `${checkpoint.directory}: weight ${found.index} of ${found.name} is ${found.value}`,
    );
  }
}

/** What stands in the JSON document. Memory in bytes. */
function describeCheckpoint(checkpoint: Checkpoint) {
  const { directory, kind, spec, config, vae, generation } = checkpoint;
  const parameters = countParameters(checkpoint);
  const { weights, copied, cachePerRow } = estimateMemory(checkpoint);
  const types = [...new Set(spec.tensors.map((tensor) => tensor.dtype))].sort();
  const cells = config?.image && config.image.grid ** 2;
  return {
    directory,
    kind,
    tasks: tasksOf(checkpoint),
    types,
    parameters: {
      ...parameters,
      total: Object.values(parameters).reduce((sum, count) => sum + count, 0),
    },
    text: spec.text && {
      layers: spec.text.layers,
      hiddenSize: spec.text.hiddenSize,
      heads: spec.text.heads,
      kvHeads: spec.text.kvHeads,
      headDim: spec.text.headDim,
      vocabSize: spec.text.vocabSize,
      maxPositions: config?.text.maxPositions,
      gemma2: spec.text.gemma2,
    },
    vision: spec.vision && {
      layers: spec.vision.layers,
      hiddenSize: spec.vision.hiddenSize,
      imageSize: spec.vision.imageSize,
      rows: visionRows(spec.vision),
    },
    image: config?.image && {
      imageSize: config.image.imageSize,
      tokens: cells,
      tokenChannels: config.image.tokenChannels,
      headWidth: config.image.headWidth,
      headDepth: config.image.headDepth,
      objective: config.image.flow ? "flow" : "ddpm",
      editSourceLatents: config.image.editSourceLatents,
    },
    vae: vae && {
      blockOutChannels: vae.blockOutChannels,
      latentChannels: vae.latentChannels,
    },
    generation: config && generation,
    memory: {
      weightsMapped: weights,
      weightsCopied: copied,
      cachePerRow,
      // Drawn with guidance, every image has a second sequence for the empty prompt.
      cachePerImage: cells && 2 * cells * cachePerRow,
      activations: estimateActivations(checkpoint),
    },
  };
}

/** The device that `device: "auto"` would choose for the checkpoint, and why; the GPUs that there are. */
async function describeDevice(checkpoint: Checkpoint) {
  const none = ({ message }: Error) => ({
    device: { kind: "none", reason: message.split("\n")[0]! },
    gpus: [],
  });
  const { addon: loaded, failure } = tryAddon();
  if (!loaded) return none(failure!);
  let need: DeviceNeed;
  try {
    need = deviceNeed(checkpoint, parseLoadOptions({}, loaded.addon));
  } catch (error) {
    return none(error as Error); // UNIFLUID_ISA names what is not there
  }
  const survey = await surveyDevices(loaded.addon, loaded.path);
  const reports = await reportGpus(loaded, survey);
  const chosen = await chooseDevice({ kind: "auto" }, need, {
    survey: async () => survey,
    memory: (_library, index) => {
      const { memory, problem } = reports[index]!;
      return memory ? Promise.resolve(memory) : Promise.reject(new Error(problem));
    },
  });
  const gpus = reports.map(({ memory, ...report }) => ({
    ...report,
    // Weights, the largest step of one request, and what every model takes.
    ...(memory && {
      needed: need.bytes + memory.overhead,
      fits: shortage(need, report.name, memory) === undefined,
    }),
  }));
  const device =
    chosen.kind === "cpu"
      ? { kind: "cpu", reason: chosen.reason }
      : { kind: `cuda:${chosen.index}`, library: chosen.library };
  return { device, gpus };
}

type Facts = ReturnType<typeof describeCheckpoint> & Awaited<ReturnType<typeof describeDevice>>;

const PART_NAMES: Record<ModelPart, string> = {
  text: "decoder",
  vision: "vision encoder",
  image: "diffusion head and image tokens",
  vae: "autoencoder",
};

function roomOf({ needed, fits }: Facts["gpus"][number]): string {
  if (needed === undefined) return "whether this model fits is unknown";
  return `this model takes at least ${formatBytes(needed)}${fits ? "" : ", more than it has room for"}`;
}

function formatFacts(facts: Facts, checked: boolean): string {
  const { text, vision, image, vae, generation, parameters, memory } = facts;
  const parts = (Object.keys(PART_NAMES) as ModelPart[])
    .filter((part) => parameters[part] > 0)
    .map((part): [string, string] => ["", `${formatCount(parameters[part])} ${PART_NAMES[part]}`]);
  const rows: ([string, string] | false | undefined)[] = [
    ["checkpoint", facts.directory],
    ["kind", facts.kind],
    ["tasks", facts.tasks.join(", ")],
    ["parameters", `${formatCount(parameters.total)}, ${facts.types.join(" and ")}`],
    ...parts,
    text && [
      "decoder",
      `${text.gemma2 ? "Gemma 2" : "Gemma"}, ${text.layers} layers, ${text.hiddenSize} wide, ${text.heads} heads ` +
        `(${text.kvHeads} for keys and values) of ${text.headDim}, vocabulary ${text.vocabSize}, ` +
        `${text.maxPositions} rows`,
    ],
    vision && [
      "vision",
      `SigLIP, ${vision.layers} layers, ${vision.hiddenSize} wide, images of ${vision.imageSize} x ` +
        `${vision.imageSize}, ${vision.rows} rows`,
    ],
    image && [
      "drawing",
      `${image.imageSize} x ${image.imageSize} pixels in ${image.tokens} tokens of ${image.tokenChannels} values, ` +
        `head of ${image.headDepth} blocks, ${image.headWidth} wide, objective ${image.objective}`,
    ],
    vae && [
      "autoencoder",
      `${vae.latentChannels} latent channels, blocks of ${vae.blockOutChannels.join(", ")} channels`,
    ],
    image &&
      generation && [
        "defaults",
        Object.entries(generation.image)
          .map(([name, value]) => `${name} ${value}`)
          .join(", "),
      ],
    [
      "weights",
      `${formatBytes(memory.weightsMapped)} mapped, ${formatBytes(memory.weightsCopied)} of them copied`,
    ],
    memory.cachePerRow > 0 && [
      "cache",
      `${formatBytes(memory.cachePerRow)} per row` +
        (memory.cachePerImage
          ? `, ${formatBytes(memory.cachePerImage)} plus twice the prompt's rows for an image with guidance`
          : ""),
    ],
    ["activations", `about ${formatBytes(memory.activations)} in the largest step`],
    [
      "device",
      facts.device.reason ? `${facts.device.kind}; ${facts.device.reason}` : facts.device.kind,
    ],
    ...facts.gpus.map((gpu, i): [string, string] => [
      `cuda:${i}`,
      `${gpuLine(gpu)}; ${roomOf(gpu)}`,
    ]),
    checked && ["weights", "all finite"],
  ];
  return formatTable(rows.filter((row): row is [string, string] => Boolean(row)));
}
