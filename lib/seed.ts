/** Seeds: one unsigned 64-bit number decides one image (spec section 7). */

import { randomInt } from "node:crypto";
import { invalidOption } from "./options.js";

/** An integer from 0 to 2^64 - 1: a safe integer or a bigint. */
export type Seed = number | bigint;

const SEEDS = 1n << 64n;

/** The seed asked for, or a random one, which a number holds exactly. */
export function parseSeed(seed: unknown): bigint {
  if (seed === undefined) return BigInt(randomInt(2 ** 48 - 1));
  if (typeof seed === "bigint" && seed >= 0n && seed < SEEDS) return seed;
  if (Number.isSafeInteger(seed) && (seed as number) >= 0) return BigInt(seed as number);
  throw invalidOption("a whole number from 0 to 2^64 - 1 (a bigint above 2^53 - 1)", "seed", seed);
}

/** The seed of item `index` of a batch. */
export function seedOfItem(seed: bigint, index: number): bigint {
  return (seed + BigInt(index)) % SEEDS;
}
