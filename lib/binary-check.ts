/** Why a binary does not load here, in words: what it is, what it needs, and what this machine has. */

import { closeSync, openSync, readSync, statSync } from "node:fs";

/** ELF's numbers of machines, by Node's names. */
const MACHINES: Readonly<Record<number, string>> = {
  3: "ia32",
  40: "arm",
  62: "x64",
  183: "arm64",
  243: "riscv64",
};

/** The C library of this process. */
export interface Libc {
  name: "glibc" | "musl";
  version?: string;
}

/** undefined where there is none to speak of: not Linux. */
export function libcOfProcess(): Libc | undefined {
  if (process.platform !== "linux" || !process.report) return undefined;
  // Without this the report resolves the names of all open connections.
  const { report } = process as unknown as { report: { excludeNetwork?: boolean } };
  const before = report.excludeNetwork;
  report.excludeNetwork = true;
  const { header } = process.report.getReport() as { header?: { glibcVersionRuntime?: string } };
  report.excludeNetwork = before;
  const version = header?.glibcVersionRuntime;
  return version ? { name: "glibc", version } : { name: "musl" };
}

/**
 * What is wrong with a file before it is loaded, in words; undefined where nothing is. Only Linux's format is
 * read: a wrong one there makes the loader say "cannot open shared object file", which helps nobody.
 */
export function checkBinary(
  path: string,
  { platform, arch }: { platform: string; arch: string } = process,
): string | undefined {
  if (platform !== "linux") return undefined;
  const head = Buffer.alloc(64);
  const file = openSync(path, "r");
  let length: number;
  try {
    length = readSync(file, head, 0, head.length, 0);
  } finally {
    closeSync(file);
  }
  if (length < 64 || head.readUInt32BE(0) !== 0x7f454c46) {
    return `it is damaged: ${statSync(path).size} bytes that are no ELF file`;
  }
  const machine = head.readUInt16LE(18);
  const name = MACHINES[machine] ?? `machine ${machine}`;
  if (name !== arch) return `it is for ${name}, and this is ${arch}`;
  // The table of sections ends a whole file.
  const end = Number(head.readBigUInt64LE(40)) + head.readUInt16LE(58) * head.readUInt16LE(60);
  const { size } = statSync(path);
  return size < end ? `it is cut short: ${size} of ${end} bytes` : undefined;
}

/** What the system's loader said, made plain. */
export function explainLoadError(message: string, libc: Libc | undefined): string {
  const [, library, version] =
    /version `(GLIBC|GLIBCXX|CXXABI)_([\d.]+)' not found/.exec(message) ?? [];
  if (library === "GLIBC") {
    return `it needs glibc ${version} or later, and this machine has ${libc?.version ?? "an older one"}`;
  }
  if (library) {
    return `it needs a libstdc++ with ${library}_${version}, newer than this machine's`;
  }
  if (libc?.name === "musl" && /^Error (loading|relocating)/.test(message)) {
    return `it is made for glibc, and this machine has musl (Alpine?): ${message}`;
  }
  return message;
}
