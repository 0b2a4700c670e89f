/**
 * Reads fields of parsed JSON, one at a time, with type and range checked: whatever a configuration file
 * holds, what comes out is what the type says, or an `InvalidConfigError` that names file and field.
 */

import { InvalidConfigError } from "../errors.js";

export interface NumberRange {
  min?: number;
  max?: number;
  /** The bounds themselves are excluded. */
  open?: boolean;
}

export interface FieldDefault<T> {
  /** What an absent field means; without it an absent field is an error. */
  default?: T;
}

/** A short form of any value for an error message. */
export function show(value: unknown): string {
  if (value === undefined) return "nothing";
  if (typeof value === "bigint") return `${value}`;
  if (typeof value === "number") return String(value);
  if (typeof value === "function") return "a function";
  if (ArrayBuffer.isView(value)) return `a ${value.constructor.name}`;
  let text: string;
  try {
    text = JSON.stringify(value) ?? String(value);
  } catch {
    text = Object.prototype.toString.call(value);
  }
  return text.length > 80 ? `${text.slice(0, 77)}...` : text;
}

export function isObject(value: unknown): value is Record<string, unknown> {
  return typeof value === "object" && value !== null && !Array.isArray(value);
}

/** A range in words, after "a number". */
export function rangeText({ min, max, open }: NumberRange): string {
  const [above, below] = open ? ["above", "below"] : ["of at least", "of at most"];
  if (min !== undefined && max !== undefined) {
    return open ? ` between ${min} and ${max}` : ` from ${min} to ${max}`;
  }
  if (min !== undefined) return ` ${above} ${min}`;
  return max === undefined ? "" : ` ${below} ${max}`;
}

export function inRange(
  value: number,
  { min = -Infinity, max = Infinity, open }: NumberRange,
): boolean {
  return open ? value > min && value < max : value >= min && value <= max;
}

/** A field that nothing has asked for. */
export interface UnreadField {
  name: string;
  value: unknown;
  /** Names from the outermost object to the one that has it. */
  path: readonly string[];
  /** What was asked for in that object. */
  asked: readonly string[];
}

/** The fields of one JSON object. `null` counts as absent, as transformers and diffusers write it. */
export class Fields {
  /** Names that were asked for, in each object that is read from the same outermost one. */
  private asked = new Map<object, Set<string>>();

  /** @param where What to call the object in messages: a file, then the path within it. */
  constructor(
    private readonly object: Record<string, unknown>,
    readonly where: string,
  ) {}

  /** The fields of parsed JSON that must be an object. */
  static of(value: unknown, where: string): Fields {
    if (!isObject(value)) {
      throw new InvalidConfigError(`${where}: expected an object but found ${show(value)}`);
    }
    return new Fields(value, where);
  }

  /** The field's value as it stands; `undefined` if absent or null. Inherited names are absent. */
  raw(name: string): unknown {
    this.ask(name);
    return Object.hasOwn(this.object, name) ? (this.object[name] ?? undefined) : undefined;
  }

  has(name: string): boolean {
    return this.raw(name) !== undefined;
  }

  /** The field is there and says `null`, where that means something other than absence. */
  isNull(name: string): boolean {
    this.ask(name);
    return Object.hasOwn(this.object, name) && this.object[name] === null;
  }

  private ask(name: string): void {
    const names = this.asked.get(this.object);
    if (names) names.add(name);
    else this.asked.set(this.object, new Set([name]));
  }

  /** Fields that nothing has asked for so far, here and in the objects within that something was read from. */
  unread(): UnreadField[] {
    const within = (object: object, path: readonly string[]): UnreadField[] => {
      const names = this.asked.get(object);
      return Object.entries(object).flatMap(([name, value]: [string, unknown]) => {
        if (!names?.has(name)) return { name, value, path, asked: [...(names ?? [])] };
        return isObject(value) && this.asked.has(value) ? within(value, [...path, name]) : [];
      });
    };
    return within(this.object, []);
  }

  fail(name: string, expected: string, found: unknown = this.raw(name)): never {
    throw new InvalidConfigError(
      `${this.where}: expected ${expected} for ${name} but found ${show(found)}`,
    );
  }

  private read<T>(
    name: string,
    expected: string,
    accepts: (value: unknown) => value is T,
    fallback: T | undefined,
  ): T {
    const value = this.raw(name);
    if (value === undefined && fallback !== undefined) return fallback;
    return accepts(value) ? value : this.fail(name, expected);
  }

  integer(name: string, range: NumberRange & FieldDefault<number> = {}): number {
    const accepts = (v: unknown): v is number =>
      typeof v === "number" && Number.isSafeInteger(v) && inRange(v, range);
    return this.read(name, `an integer${rangeText(range)}`, accepts, range.default);
  }

  number(name: string, range: NumberRange & FieldDefault<number> = {}): number {
    const accepts = (v: unknown): v is number =>
      typeof v === "number" && Number.isFinite(v) && inRange(v, range);
    return this.read(name, `a number${rangeText(range)}`, accepts, range.default);
  }

  boolean(name: string, options: FieldDefault<boolean> = {}): boolean {
    const accepts = (v: unknown): v is boolean => typeof v === "boolean";
    return this.read(name, "true or false", accepts, options.default);
  }

  string(name: string, options: FieldDefault<string> = {}): string {
    const accepts = (v: unknown): v is string => typeof v === "string";
    return this.read(name, "a string", accepts, options.default);
  }

  oneOf<T extends string>(name: string, values: readonly T[], options: FieldDefault<T> = {}): T {
    const accepts = (v: unknown): v is T => (values as readonly unknown[]).includes(v);
    const list = values.map((value) => JSON.stringify(value)).join(" or ");
    return this.read(name, list, accepts, options.default);
  }

  /** A non-empty list of integers. */
  integers(
    name: string,
    range: NumberRange & FieldDefault<number[]> & { maxLength?: number } = {},
  ): number[] {
    const { maxLength = 1024 } = range;
    const accepts = (v: unknown): v is number[] =>
      Array.isArray(v) &&
      v.length > 0 &&
      v.length <= maxLength &&
      v.every((n) => typeof n === "number" && Number.isSafeInteger(n) && inRange(n, range));
    const expected = `a list of 1 to ${maxLength} integers${rangeText(range)}`;
    return this.read(name, expected, accepts, range.default);
  }

  /** An object within this one; absent: an empty one. */
  child(name: string): Fields {
    const value = this.raw(name) ?? {};
    if (!isObject(value)) return this.fail(name, "an object");
    const child = new Fields(value, `${this.where}: ${name}`);
    child.asked = this.asked;
    return child;
  }

  /** Refuses any value of a field but those listed; absent is always allowed. */
  only(name: string, ...supported: readonly (string | number | boolean | null)[]): void {
    const value = this.raw(name);
    if (value === undefined || supported.some((s) => s === value)) return;
    this.fail(name, `${supported.map(show).join(" or ")} (nothing else is supported)`);
  }
}
