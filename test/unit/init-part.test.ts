/** Values of tensors that are taken from another model. */
import { mkdtemp, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { bfloat16Bytes } from "../../lib/checkpoint/safetensors-writer";
import { Part } from "../../lib/init/part";
import { fromBFloat16, fromFloat16 } from "../support/numbers";

let folder: string;
beforeAll(async () => {
  folder = await mkdtemp(join(tmpdir(), "part-"));
});
afterAll(() => rm(folder, { recursive: true }));

/** Bytes before the tensor in its file. */
const OFFSET = 6;

async function valuesOf(dtype: "F32" | "F16" | "BF16", stored: Uint16Array | Float32Array) {
  const path = join(folder, dtype);
  const shape = [stored.length / 2, 2];
  await writeFile(path, Buffer.concat([Buffer.alloc(OFFSET, 1), new Uint8Array(stored.buffer)]));
  const tensor = { dtype, shape, offset: OFFSET, bytes: stored.byteLength, file: 0, name: "x" };
  const part = new Part({
    source: path,
    fields: {},
    sizes: {},
    files: [path],
    where: path,
    spellings: [],
    tensors: [{ name: "x", stored: tensor, path }],
  });
  part.match([{ name: "x", shape }]);
  return part.values({ name: "x", shape });
}

/** All there are: subnormal numbers, infinities and what is no number among them. */
const HALVES = Uint16Array.from({ length: 2 ** 16 }, (_, i) => i);

test("of both half types all values are read as they are, and as float32", async () => {
  for (const [dtype, value] of [
    ["BF16", fromBFloat16],
    ["F16", fromFloat16],
  ] as const) {
    const values = await valuesOf(dtype, HALVES);
    expect(Array.from(values)).toEqual(Array.from(HALVES, value));
  }
  const floats = Float32Array.of(1, -0, Infinity, NaN, 1e-40, 3e38);
  expect(Array.from(await valuesOf("F32", floats))).toEqual(Array.from(floats));
});

test("no list is made of a tensor's values, of which there may be more than a list can have", async () => {
  const maps = jest.spyOn(Object.getPrototypeOf(Float32Array), "from");
  try {
    await valuesOf("BF16", HALVES);
    await valuesOf("F16", HALVES);
    bfloat16Bytes(new Float32Array(8));
    expect(maps).not.toHaveBeenCalled();
  } finally {
    maps.mockRestore();
  }
});
