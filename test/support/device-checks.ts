/** What is checked of a CUDA library on a device, beside the CPU: operations, whole models, steps of training. */
import { readFileSync } from "node:fs";
import { basename } from "node:path";
import { UniFluid } from "../../lib";
import { readCheckpoint } from "../../lib/checkpoint/checkpoint";
import { families } from "../cuda/cases";
import { QUICK } from "../cuda/cases/quick";
import { besideCpu, PROMPT } from "./beside-cpu";
import { type Comparison, compare, FLOAT32_SHARE } from "./cuda-cases";
import { Random } from "./numbers";
import { addon, type Backend } from "./ops";
import { openFixture } from "./parity";
import { type Precision, parityCases, quickest } from "./parity-cases";
import { decodePng } from "./png";
import {
  batchOf,
  bf16Gradient,
  createTrainer,
  F32_GRADIENT,
  GRADIENT,
  gradientError,
  norm,
  picturesOf,
  readFloats,
  type TrainerChange,
  trained,
} from "./training";

/** Whether Hopper's warpgroups are used, of a backend that opens (cuda/kernels/warpgroup_probe.h). */
export const WARPGROUPS = "UNIFLUID_CUDA_WARPGROUPS";

/** Losses to rounding, and gradients of all weights together; of each tensor see test/support/training.ts. */
const TRAINING_TOLERANCES = {
  f32: { loss: 1e-5, gradient: 1e-4 },
  bf16: { loss: 1e-2, gradient: 0.05 },
} as const;

/** Begins a line that tells of a case before it runs: one that never ends is known by it. */
export const BEGUN = "@ ";

export interface DeviceCheckOptions {
  library: string;
  /** A case or two of each kernel. */
  quick: boolean;
  /** What is too large for the simulation is left out. */
  simulated: boolean;
}

export class DeviceChecks {
  failures = 0;

  constructor(readonly options: DeviceCheckOptions) {}

  /** Opens a backend, which tries Hopper's kernels, and multiplies. */
  open(): void {
    const compared = "linear [64, 72] by 96";
    const cuda = new addon.TestBackend({ library: this.options.library, compute: "bf16" });
    console.log(cuda.description());
    const cpu = new addon.TestBackend({ threads: 1 });
    const found = families.linear!.cases.find(({ name }) => name === compared)!;
    this.compare(`bf16 ${compared}`, () => compare(found, cuda, cpu, () => new Random(7)));
    cuda.close();
    cpu.close();
  }

  /** Its cases in float32 and bfloat16, and rows alone beside rows in company. */
  family(family: string): void {
    const cpu = new addon.TestBackend({ threads: this.options.simulated ? 1 : 4 });
    for (const compute of ["f32", "bf16"] as const) {
      // Training's activations are float32, and its products round their operands.
      if (compute === "bf16" && families[family]!.training) continue;
      const cuda = new addon.TestBackend({ library: this.options.library, compute });
      console.log(cuda.description());
      this.cases(family, compute, cuda, cpu);
      // Forced, Hopper's kernels may round otherwise than those that few rows take.
      if (process.env[WARPGROUPS] !== "1") this.company(family, compute, cuda);
      cuda.close();
    }
    cpu.close();
  }

  /** Of each kernel what a sanitizer has the time for, in one process. */
  everyKernel(): void {
    for (const family of Object.keys(families)) this.family(family);
  }

  private cases(family: string, compute: "f32" | "bf16", cuda: Backend, cpu: Backend): void {
    const { quick, simulated } = this.options;
    const { cases, training } = families[family]!;
    const share = compute === "f32" && !training ? FLOAT32_SHARE : 1;
    const chosen = cases.filter(({ name, deviceOnly, bf16Only }) =>
      quick
        ? QUICK[family]!.includes(name)
        : !(deviceOnly && simulated) && !(bf16Only && compute === "f32"),
    );
    let worst = 0;
    for (const c of chosen) {
      const { seed } = new Random();
      const found = this.compare(
        `${compute} ${family}: ${c.name} (seed ${seed})`,
        () => compare(c, cuda, cpu, () => new Random(seed)),
        share,
      );
      // Of results that must be equal nothing may be used up.
      if (found?.tolerance) worst = Math.max(worst, found.error / (found.tolerance * share));
    }
    const most = (100 * worst).toFixed(0);
    console.log(`${compute} ${family}: ${chosen.length} cases; worst ${most} % of its tolerance`);
  }

  private company(family: string, compute: "f32" | "bf16", cuda: Backend): void {
    const { quick, simulated } = this.options;
    const invariants = families[family]!.invariants.filter(
      (c) => !(c.deviceOnly && simulated) && !(c.bf16Only && compute === "f32"),
    );
    const chosen = quick ? invariants.slice(0, 1) : invariants;
    for (const c of chosen)
      this.try(`${compute} ${family}, same bits in company: ${c.name}`, (title) => {
        const { whole, alone } = c.run(cuda, new Random(7));
        const same = Buffer.from(whole.buffer).equals(Buffer.from(alone.buffer));
        this.report(title, same ? 0 : 1, 0);
      });
    console.log(`${compute} ${family}: ${chosen.length} cases of company`);
  }

  /** What the reference computed of a fixture; `directory`: its checkpoint, where that lies elsewhere. */
  async parity(
    name: string,
    folder: string,
    precision: Precision,
    directory?: string,
  ): Promise<void> {
    const fixture = openFixture(name, folder, directory);
    const image = (path: string) => decodePng(readFileSync(path));
    const cases = parityCases(fixture, { precision, image });
    const model = await UniFluid.load(fixture.directory, { device: "cuda", dtype: precision });
    let compared = 0;
    for (const { name: title, run } of this.options.quick ? quickest(cases) : cases)
      for (const { what, error, tolerance, where } of await run(model)) {
        this.report(`parity ${precision} ${name}, ${title}: ${what}`, error, tolerance, where);
        compared++;
      }
    await model.dispose();
    console.log(`parity ${precision} ${name}: ${compared} results beside the reference's`);
  }

  /** Beside the CPU: drawn, edited and written; and alone beside in company. */
  async model(directory: string, precision: Precision): Promise<void> {
    const name = `${precision} ${basename(directory)}`;
    const cpu = await UniFluid.load(directory, { device: "cpu" });
    const options = { device: "cuda", dtype: precision, maxSequences: 16 } as const;
    const cuda = await UniFluid.load(directory, options);
    for (const { what, error, tolerance, where } of await besideCpu(
      cuda,
      cpu,
      directory,
      precision,
    ))
      this.report(`${name}: ${what}`, error, tolerance, where);
    const draw = (seed: number) => cuda.generateLatents(PROMPT, { seed, steps: 4 });
    const alone = await draw(7);
    const among = draw(7);
    const others = Array.from({ length: 7 }, (_, i) => draw(100 + i));
    const same = Buffer.from((await among).buffer).equals(Buffer.from(alone.buffer));
    await Promise.all(others);
    this.report(`${name}: a drawing among 8 is the drawing alone`, same ? 0 : 1, 0);
    console.log(`${name}: drawn, edited, written and in company`);
    await Promise.all([cpu.dispose(), cuda.dispose()]);
  }

  /** One step of training: losses, and the gradients of every tensor. `vae`: the autoencoder's. */
  async training(directory: string, compute: "f32" | "bf16", vae: boolean): Promise<void> {
    const { spec } = await readCheckpoint(directory);
    const options = {
      compute: compute === "bf16" ? ("bfloat16" as const) : ("float32" as const),
      optimizer: GRADIENT,
      ...(vae && { vae: { klWeight: 1e-3, latentNoise: 0.2 } }),
    };
    const step = async (change: TrainerChange) => {
      const trainer = await createTrainer(spec, { ...options, ...change });
      const at = { step: 1, learningRate: 0 };
      const result = vae
        ? await trainer.step([picturesOf(spec, 1)], at)
        : await trainer.step([batchOf(spec, 1)], at);
      const gradient = trained(spec, vae).map((name) => readFloats(trainer, name, "first"));
      trainer.dispose();
      // A loss of no tokens is no number.
      const [image, text] = [spec.image && result.imageLoss, spec.vision && result.textLoss];
      const loss = result.vae?.loss ?? (image ?? 0) + (text ?? 0);
      return { loss, gradient };
    };
    const cpu = await step({ compute: "float32" });
    const { library } = this.options;
    const cuda = await step({ cuda: { library, device: 0, dtype: "float32" } });
    const far = cpu.gradient.map((g, i) => norm(g.map((v, k) => v - cuda.gradient[i]![k]!)));
    const title = `training ${compute} ${basename(directory)}${vae ? ", autoencoder" : ""}`;
    const allowed = TRAINING_TOLERANCES[compute];
    this.report(`${title}: loss`, Math.abs(cuda.loss / cpu.loss - 1), allowed.loss);
    const total = norm(cpu.gradient.map((g) => norm(g)));
    const error = norm(far) / total;
    this.report(`${title}: gradients`, error, allowed.gradient);
    const each = cpu.gradient.map((g, i) => gradientError(cuda.gradient[i]!, g, total));
    const worst = each.reduce((most, e, i) => (e <= each[most]! ? most : i), 0);
    const tolerance = compute === "f32" ? F32_GRADIENT : bf16Gradient(spec);
    this.report(
      `${title}: gradient of a tensor`,
      each[worst]!,
      tolerance,
      trained(spec, vae)[worst],
    );
    console.log(
      `${title}: gradients ${error.toPrecision(2)} from the CPU's, the worst ${each[worst]!.toPrecision(2)}`,
    );
  }

  private compare(title: string, run: () => Comparison, share = 1): Comparison | undefined {
    return this.try(title, () => {
      const found = run();
      this.report(title, found.error, found.tolerance * share, found.where);
      return found;
    });
  }

  /** An error is a failure of its case alone, unless the device is gone for the whole process. */
  private try<T>(title: string, run: (title: string) => T): T | undefined {
    console.log(BEGUN + title);
    try {
      return run(title);
    } catch (error) {
      const { code, message } = error as { code?: string; message: string };
      this.failures++;
      console.log(`FAIL ${title}: ${message}`);
      if (code === "DEVICE_ERROR") throw error;
      return undefined;
    }
  }

  private report(title: string, error: number, tolerance: number, where = ""): void {
    const right = error <= tolerance;
    if (!right) this.failures++;
    if (!right || process.stdout.isTTY)
      console.log(
        `${right ? "ok  " : "FAIL"} ${title}: ${error.toPrecision(3)} of ${tolerance} ${where}`,
      );
  }
}
