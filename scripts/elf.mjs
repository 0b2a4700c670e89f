// What a shared object of Linux needs and gives, read from its dynamic section.
import { readFileSync } from "node:fs";

const MACHINES = { 62: "x64", 183: "arm64" };

/** Machine, exported names and the versions of symbols that are needed, such as GLIBC_2.28. */
export function readSharedObject(path) {
  const file = readFileSync(path);
  if (file.length < 64 || file.readUInt32BE(0) !== 0x7f454c46)
    throw new Error(`${path} is no ELF file`);
  if (file[4] !== 2 || file[5] !== 1)
    throw new Error(`${path} is not of 64 bits, little end first`);
  const big = (at) => Number(file.readBigUInt64LE(at));
  const sections = [];
  const [table, size, count] = [big(40), file.readUInt16LE(58), file.readUInt16LE(60)];
  for (let i = 0; i < count; i++) {
    const at = table + i * size;
    sections.push({
      type: file.readUInt32LE(at + 4),
      offset: big(at + 24),
      size: big(at + 32),
      link: file.readUInt32LE(at + 40),
      info: file.readUInt32LE(at + 44),
    });
  }
  const text = ({ link }, at) => {
    const begin = sections[link].offset + at;
    return file.toString("latin1", begin, file.indexOf(0, begin));
  };
  const DYNAMIC_SYMBOLS = 11;
  const VERSIONS_NEEDED = 0x6ffffffe;
  const exported = [];
  const imported = [];
  const versions = [];
  for (const section of sections) {
    if (section.type === DYNAMIC_SYMBOLS) {
      for (let at = section.offset + 24; at < section.offset + section.size; at += 24) {
        const local = file[at + 4] >> 4 === 0;
        if (local) continue;
        const name = text(section, file.readUInt32LE(at));
        (file.readUInt16LE(at + 6) === 0 ? imported : exported).push(name);
      }
    } else if (section.type === VERSIONS_NEEDED) {
      let at = section.offset;
      for (let i = 0; i < section.info; i++) {
        let needed = at + file.readUInt32LE(at + 8);
        for (let j = 0; j < file.readUInt16LE(at + 2); j++) {
          versions.push(text(section, file.readUInt32LE(needed + 8)));
          needed += file.readUInt32LE(needed + 12);
        }
        at += file.readUInt32LE(at + 12);
      }
    }
  }
  return {
    machine: MACHINES[file.readUInt16LE(18)] ?? `machine ${file.readUInt16LE(18)}`,
    exported: exported.sort(),
    imported: imported.sort(),
    versions: versions.sort(),
  };
}

/** The newest version of a library, of names such as GLIBC_2.28; undefined where there is none. */
export function floorOf(versions, library) {
  const numbers = versions
    .filter((name) => name.startsWith(`${library}_`))
    .map((name) => name.slice(library.length + 1));
  return numbers.sort(compareVersions).at(-1);
}

export function compareVersions(a, b) {
  const [x, y] = [a, b].map((version) => version.split(".").map(Number));
  for (let i = 0; i < Math.max(x.length, y.length); i++) {
    if ((x[i] ?? 0) !== (y[i] ?? 0)) return (x[i] ?? 0) - (y[i] ?? 0);
  }
  return 0;
}
