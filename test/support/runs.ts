/** Training runs of a tiny model on a few scenes, in a folder that goes when the tests are done. */
import { mkdtemp, readFile, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { stringify } from "yaml";
import { type RunSettings, Trainer, type TrainOptions } from "../../lib";
import { loadAddon } from "../../lib/addon";
import { initCheckpoint } from "../../lib/init/init";
import { writeDataset } from "../../lib/scenes/dataset";
import { TINY_MODEL } from "./training";

/** A run to its end or its stop, with the checkpoint that it leaves. */
export async function trained(settings: RunSettings, options: TrainOptions) {
  await using trainer = await Trainer.open(settings, options);
  const { checkpoint, ...summary } = await trainer.run();
  return { ...summary, checkpoint: checkpoint! };
}

/** Settings that every kind of run has and that a native trainer gets under the same names, none of them the default. */
export const COMMON_SETTINGS = { compute: "float32", threads: 1 } as const;
/** The same, of the optimizer. */
export const OPTIMIZER_SETTINGS = {
  beta1: 0.8,
  beta2: 0.95,
  epsilon: 1e-6,
  weightDecay: 0.05,
  clipNorm: 2,
} as const;

/** What the native trainers get that a run makes as it is opened. */
export async function nativeOptions(settings: RunSettings, out: string) {
  const create = jest.spyOn(loadAddon(), "createTrainer");
  try {
    const trainer = await Trainer.open(settings, { out });
    await trainer.close();
    return create.mock.calls.map(([, options]) => options);
  } finally {
    create.mockRestore();
  }
}

export class Runs {
  folder!: string;

  /** With a model to start from, `start`, and scenes to learn, `data`. */
  async open(model: object = TINY_MODEL): Promise<void> {
    this.folder = await mkdtemp(join(tmpdir(), "train-"));
    await this.start("start", model);
    await writeDataset(join(this.folder, "data"), { count: 24, seed: 1n });
  }

  async start(name: string, model: object): Promise<string> {
    const [path, out] = [join(this.folder, `${name}.yaml`), join(this.folder, name)];
    await writeFile(path, stringify(model));
    await initCheckpoint(path, out, { seed: 1n, tokenizer: "shapes-64", vae: "shapes-64" });
    return out;
  }

  close(): Promise<void> {
    return rm(this.folder, { recursive: true });
  }

  config(change: object = {}): RunSettings {
    return {
      model: join(this.folder, "start"),
      sources: ["generate", "caption", "answer", "edit"].map((task) => ({
        manifest: join(this.folder, "data", `${task}.jsonl`),
        examples: 2,
      })),
      steps: 8,
      learningRate: 3e-3,
      warmup: 2,
      seed: 5,
      threads: 2,
      checkpoint: { every: 4, keep: 2 },
      ...change,
    };
  }

  async train(out: string, change: object = {}, options: Partial<TrainOptions> = {}) {
    const to = { out: join(this.folder, out), ...options };
    return trained(this.config(change), to);
  }

  checkpoint(out: string, step: number): string {
    const name = `step-${String(step).padStart(8, "0")}`;
    return join(this.folder, out, "checkpoints", name);
  }

  weightsOf(out: string, step: number): Promise<Buffer> {
    return readFile(join(this.checkpoint(out, step), "trainer.safetensors"));
  }

  async metricsOf(out: string) {
    const text = await readFile(join(this.folder, out, "metrics.jsonl"), "utf8");
    return text
      .trimEnd()
      .split("\n")
      .map((line) => JSON.parse(line));
  }
}
