/** Reads the parity fixtures: checkpoints with what the reference computed from them. */
import { readFileSync } from "node:fs";
import { join, resolve } from "node:path";

export const FIXTURES = resolve(__dirname, "../fixtures");

const ARRAYS = {
  F64: Float64Array,
  F32: Float32Array,
  I32: Int32Array,
  U32: Uint32Array,
  F16: Uint16Array,
  BF16: Uint16Array,
};

export interface FixtureTensor {
  dtype: keyof typeof ARRAYS;
  shape: number[];
  data: Float64Array | Float32Array | Int32Array | Uint32Array | Uint16Array;
}

/** All tensors of a safetensors file, copied out of it. A missing name throws. */
export class Tensors {
  private readonly tensors = new Map<string, FixtureTensor>();

  constructor(path: string) {
    const file = readFileSync(path);
    const length = Number(file.readBigUInt64LE(0));
    const header = JSON.parse(file.toString("utf8", 8, 8 + length)) as Record<
      string,
      { dtype: keyof typeof ARRAYS; shape: number[]; data_offsets: [number, number] }
    >;
    for (const [name, { dtype, shape, data_offsets }] of Object.entries(header)) {
      if (name === "__metadata__") continue;
      const bytes = file.subarray(8 + length + data_offsets[0], 8 + length + data_offsets[1]);
      const data = new ARRAYS[dtype](Uint8Array.from(bytes).buffer);
      this.tensors.set(name, { dtype, shape, data });
    }
  }

  get names(): string[] {
    return [...this.tensors.keys()];
  }

  has(name: string): boolean {
    return this.tensors.has(name);
  }

  get(name: string): FixtureTensor {
    const tensor = this.tensors.get(name);
    if (!tensor) throw new Error(`the fixture has no tensor ${name}`);
    return tensor;
  }

  floats(name: string): Float32Array {
    const { data, dtype } = this.get(name);
    if (!(data instanceof Float32Array)) throw new Error(`${name} is ${dtype}, not F32`);
    return data;
  }
}

export function fixtureTensors(fixture: string, file = "expected.safetensors"): Tensors {
  return new Tensors(join(FIXTURES, fixture, file));
}

/** A JSON file of a fixture, as whatever the caller says it is. */
export function fixtureJson<T>(fixture: string, file = "expected.json"): T {
  return JSON.parse(readFileSync(join(FIXTURES, fixture, file), "utf8")) as T;
}
