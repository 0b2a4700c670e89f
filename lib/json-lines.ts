/** Files of JSON lines that a process appends to, read a piece at a time: they may be larger than the longest string. */
import { open } from "node:fs/promises";
import { isObject } from "./checkpoint/fields.js";

const LINE_BREAK = 0x0a;
const PIECE = 2 ** 20;
/** Bytes of a line at most: what is longer was not written by this program, whose texts may be long. */
const LONGEST = 64 * 2 ** 20;

/**
 * Calls `see` with each object and with the byte behind its line. Other lines are passed over, and so is a last one
 * without a line break, which is half-written. Throws what the file system says.
 */
export async function readJsonLines(
  path: string,
  see: (value: object, end: number) => void,
): Promise<void> {
  const file = await open(path);
  try {
    const piece = Buffer.allocUnsafe(PIECE);
    /** What was read of a line whose end was not. */
    let [begun, length] = [[] as Buffer[], 0];
    for (let at = 0; ; ) {
      const { bytesRead } = await file.read(piece, 0, PIECE, at);
      if (bytesRead === 0) return;
      const bytes = piece.subarray(0, bytesRead);
      let start = 0;
      for (;;) {
        const end = bytes.indexOf(LINE_BREAK, start);
        if (end < 0) break;
        const rest = bytes.subarray(start, end);
        const value = objectOf(length > 0 ? Buffer.concat([...begun, rest]) : rest);
        [begun, length] = [[], 0];
        start = end + 1;
        if (value) see(value, at + start);
      }
      at += bytesRead;
      begun.push(Buffer.from(bytes.subarray(start)));
      length += bytesRead - start;
      // The rest of a line that is too long is no JSON either.
      if (length > LONGEST) [begun, length] = [[], 0];
    }
  } finally {
    await file.close();
  }
}

function objectOf(line: Buffer): object | undefined {
  try {
    const value: unknown = JSON.parse(line.toString());
    return isObject(value) ? value : undefined;
  } catch {
    return undefined;
  }
}
