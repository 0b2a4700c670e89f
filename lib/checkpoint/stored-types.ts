/** The types that weights are stored in. */
import type { StoredType } from "../native.js";

const BYTES: Readonly<Record<StoredType, number>> = { F32: 4, F16: 2, BF16: 2 };

/** Bytes of a whole tensor. */
export function storedBytes(tensor: { dtype: StoredType; shape: readonly number[] }): number {
  return tensor.shape.reduce((bytes, size) => bytes * size, BYTES[tensor.dtype]);
}
