/** The types that weights are stored in. */
import type { StoredType } from "../native.js";

/** Bytes of one value. */
export const STORED_BYTES: Readonly<Record<StoredType, number>> = { F32: 4, F16: 2, BF16: 2 };

/** Bytes of a whole tensor. */
export function storedBytes({
  dtype,
  shape,
}: {
  dtype: StoredType;
  shape: readonly number[];
}): number {
  return shape.reduce((bytes, size) => bytes * size, STORED_BYTES[dtype]);
}
