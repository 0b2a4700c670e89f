/** Finds and loads the compiled part. */

import { existsSync } from "node:fs";
import { join, resolve } from "node:path";
import { checkBinary, explainLoadError, libcOfProcess } from "./binary-check.js";
import { NativeLoadError } from "./errors.js";
import type { NativeAddon } from "./native.js";

/** Where an addon may lie. The paths are literal, so that bundlers see what to take along. */
interface Candidate {
  path: string;
  load: () => unknown;
}

const PREBUILT: Readonly<Record<string, () => unknown>> = {
  "linux-x64": () => {
    try {
      return require("../prebuilds/linux-x64/unifluid.node");
    } catch (error) {
      return rethrow(error);
    }
  },
  "linux-arm64": () => {
    try {
      return require("../prebuilds/linux-arm64/unifluid.node");
    } catch (error) {
      return rethrow(error);
    }
  },
};

const compiled = () => {
  try {
    return require("../build/Release/unifluid.node");
  } catch (error) {
    return rethrow(error);
  }
};

/** Bundlers stop at a file that is not there, as some of these always are, unless the `require` is in a `try`. */
function rethrow(error: unknown): never {
  throw error;
}

export interface LoadedAddon {
  addon: NativeAddon;
  /** The file it came from. */
  path: string;
}

let loaded: LoadedAddon | undefined;

/** The addon. Throws `NativeLoadError` with what was tried and what to do. */
export function loadAddon(): NativeAddon {
  return findAddon().addon;
}

/** The addon and where it was found; loaded once. */
export function findAddon(): LoadedAddon {
  loaded ??= loadFrom(candidates(process.env.UNIFLUID_NATIVE));
  return loaded;
}

/** @internal */
export function candidates(explicit: string | undefined): Candidate[] {
  if (explicit) {
    const path = resolve(explicit);
    return [{ path, load: () => require(path) }];
  }
  const root = join(__dirname, "..");
  const target = `${process.platform}-${process.arch}`;
  const prebuilt = Object.hasOwn(PREBUILT, target) ? PREBUILT[target] : undefined;
  return [
    ...(prebuilt
      ? [{ path: join(root, "prebuilds", target, "unifluid.node"), load: prebuilt }]
      : []),
    { path: join(root, "build", "Release", "unifluid.node"), load: compiled },
  ];
}

/** The version of this package. A literal path again: bundlers take the file along. */
export const packageVersion = (): string =>
  (require("../package.json") as { version: string }).version;

/** Loads the first candidate that is there and works. @internal */
export function loadFrom(list: readonly Candidate[]): LoadedAddon {
  const failures: string[] = [];
  let cause: unknown;
  for (const { path, load } of list) {
    // Not so in a bundle, which has the file elsewhere: there `load` alone finds it.
    const there = existsSync(path);
    const problem = there ? checkBinary(path) : undefined;
    if (problem) {
      cause ??= new Error(problem);
      failures.push(`${path}: ${problem}`);
      continue;
    }
    try {
      const addon = load() as NativeAddon;
      if (typeof addon?.loadModel !== "function") throw new Error("not this package's addon");
      const version = packageVersion();
      if (addon.version !== version)
        throw new Error(`its version is ${addon.version}, this package's is ${version}`);
      return { addon, path };
    } catch (error) {
      if (!there && (error as { code?: unknown }).code === "MODULE_NOT_FOUND") {
        failures.push(`${path}: not there`);
        continue;
      }
      cause ??= error;
      failures.push(`${path}: ${explainLoadError((error as Error).message, libcOfProcess())}`);
    }
  }
  const target = `${process.platform}-${process.arch}`;
  const advice = process.env.UNIFLUID_NATIVE
    ? "UNIFLUID_NATIVE names the file to load: correct or unset it."
    : (Object.hasOwn(PREBUILT, target)
        ? "If node_modules came from another machine, install the package again on this one. "
        : `Binaries are made for ${Object.keys(PREBUILT).join(" and ")}; ${target} is untested. `) +
      "To compile it here: npx unifluid build (it needs g++ 12 or later, cmake, make and the packages cmake-js and node-addon-api).";
  throw new NativeLoadError(
    cause === undefined ? "NATIVE_NOT_FOUND" : "NATIVE_LOAD_FAILED",
    `the compiled part of unifluid ${cause === undefined ? "is not there" : "does not load"} ` +
      `on this machine (${describeMachine()}). Tried:\n${failures.map((line) => `  ${line}`).join("\n")}\n${advice}`,
    { cause },
  );
}

/** Platform, architecture, C library and Node version, in words. */
export function describeMachine(): string {
  const { platform, arch, version } = process;
  return [`${platform}-${arch}`, libc(), `Node ${version}`].filter(Boolean).join(", ");
}

function libc(): string | undefined {
  const found = libcOfProcess();
  if (!found) return undefined;
  return found.version ? `${found.name} ${found.version}` : "no glibc (musl?)";
}
