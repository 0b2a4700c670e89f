/** Writes safetensors files: beside the name, then renamed, so that a broken-off write leaves what was there. */
import { type FileHandle, open, rename, rm } from "node:fs/promises";
import type { StoredType } from "../native.js";
import { storedBytes } from "./stored-types.js";

export interface TensorToWrite {
  name: string;
  dtype: StoredType;
  shape: readonly number[];
  /** Its bytes, row-major; asked for one after another, so that only one tensor is in memory. */
  bytes: () => Uint8Array | Promise<Uint8Array>;
}

/** The bytes of values rounded to bfloat16, to the nearest, ties to even. */
export function bfloat16Bytes(values: Float32Array): Uint8Array {
  const bits = new Uint32Array(values.buffer, values.byteOffset, values.length);
  const rounded = new Uint16Array(bits.length);
  // A loop: Uint16Array.from makes a list of all values, of which there may be more than a list can have.
  for (let i = 0; i < bits.length; i++) {
    const b = bits[i] as number;
    rounded[i] = (b + 0x7fff + ((b >>> 16) & 1)) >>> 16;
  }
  return new Uint8Array(rounded.buffer);
}

/** Throws what the file system says, and where a tensor's bytes do not fit its shape. */
export async function writeSafetensors(
  path: string,
  tensors: readonly TensorToWrite[],
): Promise<void> {
  let offset = 0;
  const header: Record<string, unknown> = { __metadata__: { format: "pt" } };
  for (const { name, dtype, shape } of tensors) {
    const bytes = storedBytes({ dtype, shape });
    header[name] = { dtype, shape, data_offsets: [offset, offset + bytes] };
    offset += bytes;
  }
  const json = JSON.stringify(header);
  // Data begins at a multiple of eight.
  const text = Buffer.from(json + " ".repeat((8 - (Buffer.byteLength(json) % 8)) % 8));
  const length = Buffer.alloc(8);
  length.writeBigUInt64LE(BigInt(text.length));

  const beside = `${path}.partial`;
  let file: FileHandle | undefined;
  try {
    file = await open(beside, "w");
    await file.writeFile(Buffer.concat([length, text]));
    for (const tensor of tensors) {
      const { name } = tensor;
      const data = await tensor.bytes();
      const wanted = storedBytes(tensor);
      if (data.length !== wanted)
        throw new RangeError(`expected ${wanted} bytes for ${name} but received ${data.length}`);
      await file.writeFile(data);
    }
    await file.sync();
    await file.close();
    file = undefined;
    await rename(beside, path);
  } catch (error) {
    await file?.close();
    await rm(beside, { force: true });
    throw error;
  }
}
