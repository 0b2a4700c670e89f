/** Rounding to bfloat16. */
import { bfloat16Bytes } from "../../lib/checkpoint/safetensors-writer";

test("values are rounded to the nearest, ties to even", () => {
  const one = 2 ** -7; // of a bfloat16's last place at 1
  const values = [0, 1, -1, 1 + 0.49 * one, 1 + 0.5 * one, 1 + 1.5 * one, 1 + 0.51 * one, -3.4e38];
  const wanted = [0, 1, -1, 1, 1, 1 + 2 * one, 1 + one, -Infinity];
  const bytes = bfloat16Bytes(Float32Array.from([9, ...values]).subarray(1)); // of a part of a buffer
  const halves = new Uint16Array(bytes.buffer, bytes.byteOffset, bytes.length / 2);
  const back = new Float32Array(Uint32Array.from(halves, (half) => half << 16).buffer);
  expect(Array.from(back)).toEqual(wanted);
  expect(bfloat16Bytes(new Float32Array(0))).toHaveLength(0);
});
