/** Checks of what callers pass: "expected X for Y but received Z". */

import { types } from "node:util";
import { inRange, isObject, type NumberRange, rangeText, show } from "./checkpoint/fields.js";
import { InvalidOptionError } from "./errors.js";

export function invalidOption(
  expected: string,
  name: string,
  received: unknown,
): InvalidOptionError {
  return new InvalidOptionError(`expected ${expected} for ${name} but received ${show(received)}`);
}

export function integerOption(name: string, value: unknown, range: NumberRange): number {
  if (Number.isSafeInteger(value) && inRange(value as number, range)) return value as number;
  throw invalidOption(`an integer${rangeText(range)}`, name, value);
}

export function numberOption(name: string, value: unknown, range: NumberRange): number {
  if (typeof value === "number" && Number.isFinite(value) && inRange(value, range)) return value;
  throw invalidOption(`a number${rangeText(range)}`, name, value);
}

export function choiceOption<T extends string>(
  name: string,
  value: unknown,
  choices: readonly T[],
): T {
  if (choices.includes(value as T)) return value as T;
  throw invalidOption(choices.map((c) => JSON.stringify(c)).join(" or "), name, value);
}

export function stringOption(name: string, value: unknown): string {
  if (typeof value === "string") return value;
  throw invalidOption("a string", name, value);
}

export function booleanOption(name: string, value: unknown): boolean {
  if (typeof value === "boolean") return value;
  throw invalidOption("a boolean", name, value);
}

/** A function, or nothing. */
export function callbackOption(name: string, value: unknown): void {
  if (value !== undefined && typeof value !== "function")
    throw invalidOption("a function", name, value);
}

/** A non-empty list of token ids below `vocabSize`. */
export function tokensOption(
  name: string,
  value: unknown,
  vocabSize: number,
  { empty = false } = {},
): Int32Array {
  if (!Array.isArray(value) && !isNumbers(value)) {
    throw invalidOption("an array of token ids", name, value);
  }
  if (isTransferred(value)) {
    throw new InvalidOptionError(`${name} is no longer available: its buffer was transferred`);
  }
  if (value.length === 0 && !empty) throw invalidOption("at least one token id", name, value);
  const ids = value as ArrayLike<unknown>;
  return Int32Array.from(ids, (id, i) =>
    integerOption(`${name}[${i}]`, id, { min: 0, max: vocabSize - 1 }),
  );
}

/** A typed array of numbers, whichever they are. */
function isNumbers(value: unknown): value is NodeJS.TypedArray & ArrayLike<number> {
  if (types.isBigInt64Array(value) || types.isBigUint64Array(value)) return false;
  return types.isTypedArray(value);
}

/** Whether an array's memory went to another owner; its length is 0 then, as that of an empty one. */
function isTransferred(value: object): boolean {
  if (!ArrayBuffer.isView(value)) return false;
  try {
    new Uint8Array(value.buffer);
    return false;
  } catch {
    return true;
  }
}

/** A list of floats; copied, unless they are float32 already. */
export function floatsOption(name: string, value: unknown): Float32Array {
  if (types.isFloat32Array(value)) return value;
  if (Array.isArray(value) && value.every((v) => typeof v === "number")) {
    return Float32Array.from(value);
  }
  throw invalidOption("a Float32Array", name, value);
}

/**
 * An object of options with no other names than those listed: a misspelt option must not be silence.
 * `undefined` is an empty one.
 */
export function optionsObject<T extends object>(
  value: T | undefined,
  names: readonly (keyof T & string)[],
  what = "options",
): T {
  if (value === undefined) return {} as T;
  if (!isObject(value)) throw invalidOption("an object", what, value);
  for (const name of Object.keys(value)) {
    if (!(names as readonly string[]).includes(name)) {
      throw new InvalidOptionError(
        `expected only the options ${names.join(", ")} but received ${JSON.stringify(name)}`,
      );
    }
  }
  return value;
}

/** The entries that are set. */
export function definedOf<T extends object>(options: T): Partial<T> {
  return Object.fromEntries(
    Object.entries(options).filter(([, value]) => value !== undefined),
  ) as Partial<T>;
}

/**
 * An `AbortSignal`, as one of Node's. Those of jsdom or a polyfill are followed by one: Node's own functions take no
 * other, and older polyfills have neither `reason` nor `throwIfAborted`.
 */
export function signalOption(value: unknown): AbortSignal | undefined {
  if (value === undefined) return undefined;
  try {
    const signal = value as AbortSignal;
    const complete =
      typeof signal.aborted === "boolean" &&
      typeof signal.addEventListener === "function" &&
      typeof signal.removeEventListener === "function";
    if (complete) return signal instanceof AbortSignal ? signal : follower(signal);
  } catch {
    // Not one: what only inherits from AbortSignal throws where it is asked for `aborted`.
  }
  throw invalidOption("an AbortSignal", "signal", value);
}

/** A signal of another make, and Node's that follows it: it has one listener, however many calls it is given to. */
const followers = new WeakMap<AbortSignal, AbortController>();

function follower(foreign: AbortSignal): AbortSignal {
  let controller = followers.get(foreign);
  if (!controller) {
    const follows = new AbortController();
    foreign.addEventListener("abort", () => follows.abort(foreign.reason), { once: true });
    controller = follows;
    followers.set(foreign, controller);
  }
  if (foreign.aborted) controller.abort(foreign.reason);
  return controller.signal;
}

/** A request's priority; absent: as the engine's default. */
export function priorityOption(value: unknown): number | undefined {
  return value === undefined
    ? undefined
    : integerOption("priority", value, { min: -1000, max: 1000 });
}
