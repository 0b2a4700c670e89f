/** Small checkpoints to change and break. */

import { cpSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { FIXTURES } from "./fixtures";

export interface HeaderEntry {
  dtype: string;
  shape: number[];
  data_offsets: [number, number];
}

/** Splits a safetensors file into its header and what follows it. */
export function splitSafetensors(file: Buffer): {
  header: Record<string, HeaderEntry>;
  data: Buffer;
} {
  const length = Number(file.readBigUInt64LE(0));
  return {
    header: JSON.parse(file.toString("utf8", 8, 8 + length)),
    data: file.subarray(8 + length),
  };
}

export function joinSafetensors(header: unknown, data: Uint8Array): Buffer {
  const text = Buffer.from(typeof header === "string" ? header : JSON.stringify(header));
  const length = Buffer.alloc(8);
  length.writeBigUInt64LE(BigInt(text.length));
  return Buffer.concat([length, text, data]);
}

/** Sets the field at a path of names joined by dots; undefined deletes it. */
export function setField(json: unknown, path: string, value: unknown): void {
  const names = path.split(".");
  const last = names.pop()!;
  let object = json as Record<string, unknown>;
  for (const name of names) {
    object[name] ??= {};
    object = object[name] as Record<string, unknown>;
  }
  if (value === undefined) delete object[last];
  else object[last] = value;
}

/** A copy of a fixture's checkpoint in a folder of its own, to be changed; `remove` it afterwards. */
export class CheckpointCopy {
  readonly directory: string;

  constructor(fixture: string) {
    this.directory = mkdtempSync(join(tmpdir(), "unifluid-test-"));
    const skip = /expected\.|\.png$/;
    cpSync(join(FIXTURES, fixture), this.directory, {
      recursive: true,
      filter: (path) => !skip.test(path),
    });
  }

  path(file: string): string {
    return join(this.directory, file);
  }

  write(file: string, content: string | Uint8Array): void {
    writeFileSync(this.path(file), content);
  }

  /** Sets fields of a JSON file: "a.b" is b in a; undefined deletes. */
  set(file: string, fields: Record<string, unknown>): void {
    const json = JSON.parse(readFileSync(this.path(file), "utf8"));
    for (const [path, value] of Object.entries(fields)) setField(json, path, value);
    this.write(file, JSON.stringify(json));
  }

  /** Changes the header of a safetensors file; the data may be replaced by what `change` returns. */
  header(
    change: (header: Record<string, HeaderEntry>, data: Buffer) => Uint8Array | undefined,
    file = "model.safetensors",
  ): void {
    const { header, data } = splitSafetensors(readFileSync(this.path(file)));
    const replaced = change(header, data);
    this.write(file, joinSafetensors(header, replaced ?? data));
  }

  delete(file: string): void {
    rmSync(this.path(file), { recursive: true });
  }

  remove(): void {
    rmSync(this.directory, { recursive: true, force: true });
  }
}
