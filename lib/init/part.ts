/** A part of another model, to be taken into a fresh one: its configuration and its weights. */
import { open } from "node:fs/promises";
import { isObject, show } from "../checkpoint/fields.js";
import { readFully } from "../checkpoint/read-fully.js";
import { storedBytes } from "../checkpoint/stored-types.js";
import type { Spelling } from "../checkpoint/tensor-names.js";
import { type ExpectedTensor, matchTensors, type NamedTensor } from "../checkpoint/tensor-table.js";
import { InvalidConfigError } from "../errors.js";
import type { NativeTensor } from "../native.js";
import type { Templates } from "../prompts.js";
import type { Resizing } from "./resize.js";

/** What a UniFluid model's `config.json` says beside its sections, and its parts were trained with. */
export interface ModelSettings {
  prefix_attention?: "bidirectional" | "causal";
  edit_source_latents?: boolean;
  prompts: Templates;
}

export interface PartContents {
  /** What users called it, for messages. */
  source: string;
  /** Absent: the part's model has none. */
  settings?: ModelSettings;
  /** Fields of its configuration, as the file has them. */
  fields: Record<string, unknown>;
  /** Those that the weights decide, defaults included. */
  sizes: Record<string, unknown>;
  /** One of them that may be asked for at another value. */
  resizing?: Resizing;
  files: string[];
  /** What to call the place of a missing tensor: the file, or the index of shards. */
  where: string;
  /** How such a file may spell canonical names. */
  spellings: readonly Spelling[];
  /** Under canonical names; all of the part and nothing else. */
  tensors: NamedTensor[];
}

export class Part {
  private matched = new Map<string, NativeTensor>();

  constructor(private readonly contents: PartContents) {}

  get source(): string {
    return this.contents.source;
  }

  get settings(): ModelSettings | undefined {
    return this.contents.settings;
  }

  /**
   * The part's configuration under what a YAML file says of it: fields that the weights do not decide may be
   * others. Throws `INVALID_CONFIG`, which names both sizes where they differ.
   *
   * @param where What to call `given` in messages: the file and the section.
   */
  configUnder(given: unknown, where: string): Record<string, unknown> {
    const { source, fields, sizes, resizing } = this.contents;
    if (given === undefined || given === null) return fields;
    if (!isObject(given)) throw new InvalidConfigError(`expected a mapping for ${where}`);
    for (const [name, own] of Object.entries(sizes)) {
      const asked = given[name];
      if (asked === undefined || JSON.stringify(asked) === JSON.stringify(own)) continue;
      const bound = resizing?.field === name ? resizing.bound : undefined;
      if (bound && typeof asked === "number" && typeof own === "number")
        if (bound === "at least" ? asked > own : asked < own) continue;
      throw new InvalidConfigError(
        `${where}: expected ${bound ? `${bound} ` : ""}${show(own)} for ${name}, which ${source} has, but found ${show(asked)}; leave out sizes of parts that are taken`,
      );
    }
    return { ...fields, ...given };
  }

  /**
   * Finds the tensors that a model asks for, but those that only its other size has. Those of `optional` are left
   * out all together where one is missing or of another shape. Throws `MISSING_TENSOR`, `UNEXPECTED_TENSOR`,
   * `TENSOR_SHAPE`.
   */
  match(asked: readonly ExpectedTensor[], optional?: RegExp): void {
    const { tensors, resizing, where, spellings } = this.contents;
    const expected = asked.flatMap((tensor) => {
      const shape = resizing ? resizing.ownShape(tensor) : tensor.shape;
      return shape ? [{ ...tensor, shape }] : [];
    });
    const fits = ({ name, shape }: ExpectedTensor) =>
      tensors.some((t) => t.name === name && t.stored.shape.join() === shape.join());
    const leave = expected.some((t) => optional?.test(t.name) && !fits(t));
    const kept = ({ name }: { name: string }) => !leave || !optional?.test(name);
    const found = tensors.filter(kept);
    for (const tensor of matchTensors(expected.filter(kept), found, { where, spellings }))
      this.matched.set(tensor.name, tensor);
  }

  has(name: string): boolean {
    return this.matched.has(name);
  }

  /** The values of a tensor that was matched, in the shape that is asked for. */
  values(tensor: ExpectedTensor): Promise<Float32Array> {
    const { resizing } = this.contents;
    const read = (name: string) => this.read(name);
    return resizing ? resizing.fit(tensor, read) : read(tensor.name);
  }

  private async read(name: string): Promise<Float32Array> {
    const { dtype, shape, file, offset } = this.matched.get(name) as NativeTensor;
    const stored = storedBytes({ dtype, shape });
    const values = new Float32Array(shape.reduce((product, n) => product * n, 1));
    // Halves lie at the end, and are widened where they lie: a vocabulary's rows are gigabytes.
    const bytes = new Uint8Array(values.buffer, values.byteLength - stored);
    const path = this.contents.files[file] as string;
    const handle = await open(path);
    try {
      await readFully(handle, bytes, offset, path);
    } finally {
      await handle.close();
    }
    if (dtype !== "F32") widen(values, dtype);
    return values;
  }
}

/**
 * Makes float32 of the halves that fill the end of `values`, the first of them first: what one is written over was read
 * before. In loops: TypedArray.from makes a list of all values, of which there may be more than a list can have.
 */
function widen(values: Float32Array, dtype: "BF16" | "F16"): void {
  const { buffer, length } = values;
  const halves = new Uint16Array(buffer, 2 * length);
  if (dtype === "BF16") {
    const bits = new Uint32Array(buffer);
    for (let i = 0; i < length; i++) bits[i] = (halves[i] as number) << 16;
  } else {
    for (let i = 0; i < length; i++) values[i] = halfToFloat(halves[i] as number);
  }
}

function halfToFloat(bits: number): number {
  const sign = bits & 0x8000 ? -1 : 1;
  const exponent = (bits >> 10) & 31;
  const fraction = bits & 1023;
  if (exponent === 0) return sign * fraction * 2 ** -24;
  if (exponent === 31) return fraction ? Number.NaN : sign * Infinity;
  return sign * (1 + fraction / 1024) * 2 ** (exponent - 15);
}
