/** Writes safetensors files: beside the name, then renamed, so that a broken-off write leaves what was there. */
import { type FileHandle, open, rename, rm } from "node:fs/promises";
import type { StoredType } from "../native.js";

export interface TensorToWrite {
  name: string;
  dtype: StoredType;
  shape: readonly number[];
  /** Its bytes, row-major; asked for one after another, so that only one tensor is in memory. */
  bytes: () => Uint8Array | Promise<Uint8Array>;
}

const BYTES: Readonly<Record<StoredType, number>> = { F32: 4, F16: 2, BF16: 2 };

/** Throws what the file system says, and where a tensor's bytes do not fit its shape. */
export async function writeSafetensors(
  path: string,
  tensors: readonly TensorToWrite[],
): Promise<void> {
  let offset = 0;
  const header: Record<string, unknown> = { __metadata__: { format: "pt" } };
  for (const { name, dtype, shape } of tensors) {
    const bytes = shape.reduce((n, d) => n * d, BYTES[dtype]);
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
    for (const { name, dtype, shape, bytes } of tensors) {
      const data = await bytes();
      const wanted = shape.reduce((n, d) => n * d, BYTES[dtype]);
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
