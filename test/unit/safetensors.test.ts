import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { headerLength, readSafetensorsHeader } from "../../lib/checkpoint/safetensors";
import { joinSafetensors } from "../support/checkpoints";

const folder = mkdtempSync(join(tmpdir(), "unifluid-safetensors-"));
afterAll(() => rmSync(folder, { recursive: true }));

const path = join(folder, "model.safetensors");

function read(file: Uint8Array) {
  writeFileSync(path, file);
  return readSafetensorsHeader(path);
}

const tensor = (dtype: string, shape: unknown, begin: unknown, end: unknown) => ({
  dtype,
  shape,
  data_offsets: [begin, end],
});
const a = tensor("F32", [2, 3], 0, 24);
const b = tensor("BF16", [4], 24, 32);
const data = Buffer.alloc(32);

test("reads names, types, shapes and places in the order of the file", async () => {
  const header = { b, __metadata__: { format: "pt" }, a };
  const file = joinSafetensors(header, data);
  const start = file.length - data.length;
  expect(await read(file)).toEqual({
    tensors: [
      { name: "a", dtype: "F32", shape: [2, 3], offset: start, bytes: 24 },
      { name: "b", dtype: "BF16", shape: [4], offset: start + 24, bytes: 8 },
    ],
  });
});

test("scalars, empty tensors, padding after the header and odd names are allowed", async () => {
  const header = {
    '__proto__ "quoted": {': tensor("F32", [], 0, 4),
    empty: tensor("F16", [0, 3], 4, 4),
    constructor: tensor("I64", [1], 4, 12),
  };
  const { tensors } = await read(joinSafetensors(`${JSON.stringify(header)}   `, Buffer.alloc(12)));
  expect(tensors.map(({ bytes }) => bytes)).toEqual([4, 0, 8]);
  expect((await read(joinSafetensors({}, Buffer.alloc(0)))).tensors).toEqual([]);
});

const length = (value: bigint) => {
  const bytes = Buffer.alloc(8);
  bytes.writeBigUInt64LE(value);
  return bytes;
};
const good = joinSafetensors({ a, b }, data);
const text = (json: string) => joinSafetensors(json, data);

test.each<[string, Uint8Array, string]>([
  ["an empty file", Buffer.alloc(0), "SAFETENSORS_TRUNCATED"],
  ["fewer than eight bytes", Buffer.alloc(7), "SAFETENSORS_TRUNCATED"],
  ["data cut off", good.subarray(0, -1), "SAFETENSORS_TRUNCATED"],
  ["all data cut off", good.subarray(0, -32), "SAFETENSORS_TRUNCATED"],
  ["a header beyond the file", good.subarray(0, 20), "SAFETENSORS_HEADER_TOO_LONG"],
  [
    "a header of a gigabyte",
    Buffer.concat([length(1n << 30n), data]),
    "SAFETENSORS_HEADER_TOO_LONG",
  ],
  [
    "a header of 2^64 - 1",
    Buffer.concat([length((1n << 64n) - 1n), data]),
    "SAFETENSORS_HEADER_TOO_LONG",
  ],
  ["an empty header", length(0n), "SAFETENSORS_INVALID_HEADER"],
  ["no JSON", text("{"), "SAFETENSORS_INVALID_HEADER"],
  [
    "bytes that are not UTF-8",
    Buffer.concat([length(4n), Buffer.from([0x22, 0xff, 0xfe, 0x22])]),
    "SAFETENSORS_INVALID_HEADER",
  ],
  ["a list", text("[]"), "SAFETENSORS_INVALID_HEADER"],
  ["null", text("null"), "SAFETENSORS_INVALID_HEADER"],
  [
    "a name twice",
    text(`{"a":${JSON.stringify(a)},"a":${JSON.stringify(a)}}`),
    "SAFETENSORS_INVALID_HEADER",
  ],
  [
    "a field twice",
    text('{"a":{"dtype":"F32","dtype":"F32","shape":[8],"data_offsets":[0,32]}}'),
    "SAFETENSORS_INVALID_HEADER",
  ],
  [
    "metadata of numbers",
    joinSafetensors({ __metadata__: { x: 1 } }, Buffer.alloc(0)),
    "SAFETENSORS_INVALID_HEADER",
  ],
  ["a tensor that is a list", text('{"a":[]}'), "SAFETENSORS_INVALID_HEADER"],
  ["no shape", text('{"a":{"dtype":"F32","data_offsets":[0,32]}}'), "SAFETENSORS_INVALID_HEADER"],
  [
    "a negative size",
    joinSafetensors({ a: tensor("F32", [-2, -4], 0, 32) }, data),
    "SAFETENSORS_INVALID_HEADER",
  ],
  [
    "a fractional size",
    joinSafetensors({ a: tensor("F32", [1.5], 0, 6) }, data),
    "SAFETENSORS_INVALID_HEADER",
  ],
  [
    "an unknown dtype",
    joinSafetensors({ a: tensor("F31", [8], 0, 32) }, data),
    "SAFETENSORS_UNKNOWN_DTYPE",
  ],
  [
    "an inherited name as dtype",
    joinSafetensors({ a: tensor("toString", [8], 0, 32) }, data),
    "SAFETENSORS_UNKNOWN_DTYPE",
  ],
  ["no dtype", text('{"a":{"shape":[8],"data_offsets":[0,32]}}'), "SAFETENSORS_UNKNOWN_DTYPE"],
  [
    "negative offsets",
    joinSafetensors({ a: tensor("F32", [2], -8, 0) }, data),
    "SAFETENSORS_INVALID_OFFSETS",
  ],
  [
    "fractional offsets",
    joinSafetensors({ a: tensor("F32", [8], 0.5, 32.5) }, data),
    "SAFETENSORS_INVALID_OFFSETS",
  ],
  [
    "offsets that are text",
    joinSafetensors({ a: tensor("F32", [8], "0", "32") }, data),
    "SAFETENSORS_INVALID_OFFSETS",
  ],
  [
    "three offsets",
    text('{"a":{"dtype":"F32","shape":[8],"data_offsets":[0,16,32]}}'),
    "SAFETENSORS_INVALID_OFFSETS",
  ],
  [
    "an end before the begin",
    joinSafetensors({ a: tensor("F32", [8], 32, 0) }, data),
    "SAFETENSORS_INVALID_OFFSETS",
  ],
  [
    "bytes that do not fit the shape",
    joinSafetensors({ a: tensor("F32", [7], 0, 32) }, data),
    "SAFETENSORS_INVALID_OFFSETS",
  ],
  [
    "overlapping tensors",
    joinSafetensors({ a, b: tensor("F32", [3], 20, 32) }, data),
    "SAFETENSORS_INVALID_OFFSETS",
  ],
  ["the same bytes twice", joinSafetensors({ a, c: a, b }, data), "SAFETENSORS_INVALID_OFFSETS"],
  [
    "a gap",
    joinSafetensors({ a, b: tensor("F32", [1], 28, 32) }, data),
    "SAFETENSORS_INVALID_OFFSETS",
  ],
  [
    "offsets out of range",
    joinSafetensors({ a, b: tensor("BF16", [4], 4096, 4104) }, data),
    "SAFETENSORS_INVALID_OFFSETS",
  ],
  ["bytes of no tensor", Buffer.concat([good, Buffer.alloc(1)]), "SAFETENSORS_INVALID_OFFSETS"],
  [
    "a shape beyond integers",
    joinSafetensors({ a: tensor("F32", [2 ** 52, 2 ** 52], 0, 32) }, data),
    "SAFETENSORS_INVALID_OFFSETS",
  ],
])("%s is refused", async (_name, file, code) => {
  await expect(read(file)).rejects.toMatchObject({
    name: "InvalidSafetensorsError",
    code,
    message: expect.stringContaining(path),
  });
});

test("a pointer of Git LFS is told, with what fetches the file", async () => {
  const pointer = `version https://git-lfs.github.com/spec/v1\noid sha256:${"0".repeat(64)}\nsize 4\n`;
  expect(() => headerLength(Buffer.from(pointer).subarray(0, 8), pointer.length, "f")).toThrow(
    expect.objectContaining({
      code: "SAFETENSORS_HEADER_TOO_LONG",
      message:
        'f: expected weights but found a Git LFS pointer; "git lfs pull" fetches what it points to',
    }),
  );
});

test("a file that is not there, and a folder", async () => {
  for (const wrong of [join(folder, "none"), folder]) {
    await expect(readSafetensorsHeader(wrong)).rejects.toMatchObject({
      code: "CHECKPOINT_NOT_FOUND",
    });
  }
});
