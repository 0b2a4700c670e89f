/** Reading bytes from an open file. */
import type { FileHandle } from "node:fs/promises";
import { InvalidSafetensorsError } from "../errors.js";

/** Reads until `bytes` is full: a single read gives at most 2 GiB. Throws `SAFETENSORS_TRUNCATED`. */
export async function readFully(
  file: FileHandle,
  bytes: Uint8Array,
  offset: number,
  path: string,
): Promise<void> {
  for (let done = 0; done < bytes.length; ) {
    const length = Math.min(bytes.length - done, 2 ** 30);
    const { bytesRead } = await file.read(bytes, done, length, offset + done);
    if (bytesRead === 0) {
      const { size } = await file.stat();
      throw new InvalidSafetensorsError(
        "SAFETENSORS_TRUNCATED",
        `${path} has ${size} bytes; expected it to reach byte ${offset + bytes.length}`,
      );
    }
    done += bytesRead;
  }
}
