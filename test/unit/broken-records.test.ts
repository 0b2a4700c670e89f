/** Which failures are a record's own, and which are not to be laid at its door. */
import { InsufficientMemoryError, InvalidImageError, InvalidRecordError } from "../../lib/errors";
import { BrokenRecords } from "../../lib/train/broken-records";

const failing = (error: unknown) => () => Promise.reject(error);
const system = (code: string) => Object.assign(new Error(code), { code, errno: -1 });

test("a record that is wrong, or whose picture is wrong or missing, is skipped and told once", async () => {
  const told: string[] = [];
  const broken = new BrokenRecords(0.1, (message) => told.push(message));
  for (const [i, error] of [
    new InvalidRecordError("no task"),
    new InvalidImageError("IMAGE_UNDECODABLE", "no picture"),
    system("ENOENT"),
    system("EACCES"),
    system("EISDIR"),
  ].entries())
    for (let again = 0; again < 2; again++) await broken.attempt(`record ${i}`, failing(error));
  expect(told).toHaveLength(5);
});

test("counting goes on after a stop, and one that was told is tried again but neither told nor counted", async () => {
  const told: string[] = [];
  const open = () => new BrokenRecords(0.01, (message) => told.push(message));
  const before = open();
  const invalid = () => new InvalidRecordError("no task");
  for (let i = 0; i < 300; i++) await before.attempt(`good ${i}`, async () => {});
  await before.attempt("record 1", failing(invalid()));
  const { counts } = before;
  expect(counts).toEqual({ seen: 301, broken: 1 });
  // What is read ahead of the checkpoint is no part of it.
  await before.attempt("record 2", failing(invalid()));
  expect(before.stateAt(counts)).toEqual({ seen: 301, broken: ["record 1"] });

  const after = open();
  after.restore(before.stateAt(counts));
  expect(after.counts).toEqual(counts);
  told.length = 0;
  await after.attempt("record 1", failing(invalid()));
  expect(told).toEqual([]);
  await after.attempt("record 2", failing(invalid()));
  await after.attempt("record 3", failing(invalid()));
  expect(after.counts).toEqual({ seen: 304, broken: 3 });
  // With those of before the stop it is one too many.
  await expect(after.attempt("record 4", failing(invalid()))).rejects.toMatchObject({
    code: "TRAINING_DATA",
    message: expect.stringMatching(/^4 of 305 records/),
  });
  // One that was mended is used.
  const mended = open();
  mended.restore(before.stateAt(counts));
  let used = false;
  await mended.attempt("record 1", async () => {
    used = true;
  });
  expect(used).toBe(true);
});

test.each([
  ["a full disk", system("ENOSPC")],
  ["too many open files", system("EMFILE")],
  ["no memory for the autoencoder", new InsufficientMemoryError("too little")],
  ["a defect", new TypeError("undefined is not a function")],
])("%s is no record's fault", async (_, error) => {
  const told: string[] = [];
  const broken = new BrokenRecords(0.1, (message) => told.push(message));
  await expect(broken.attempt("record 1", failing(error))).rejects.toBe(error);
  expect(told).toEqual([]);
  // It is tried again when the machine can.
  let done = false;
  await broken.attempt("record 1", async () => {
    done = true;
  });
  expect(done).toBe(true);
});

test("a record is the same whatever its line, as before there were any in names", async () => {
  const told: string[] = [];
  const broken = new BrokenRecords(0.1, (message) => told.push(message));
  broken.restore({ seen: 5, broken: ["a.jsonl: record 1"] });
  const error = new InvalidRecordError("no task");
  await broken.attempt("a.jsonl: record 1 (line 2)", failing(error));
  await broken.attempt("a.jsonl: record 3 (line 5)", failing(error));
  expect(told).toEqual(["skipped a.jsonl: record 3 (line 5): no task"]);
  expect(broken.stateAt(broken.counts)).toEqual({
    seen: 7,
    broken: ["a.jsonl: record 1", "a.jsonl: record 3"],
  });
});

test("what is odd about a source is told once and not counted", () => {
  const told: string[] = [];
  const broken = new BrokenRecords(0, (message) => told.push(message));
  for (let i = 0; i < 2; i++) broken.remark("a.tar lacks its end");
  expect(told).toEqual(["a.tar lacks its end"]);
  expect(broken.counts).toEqual({ seen: 0, broken: 0 });
});
