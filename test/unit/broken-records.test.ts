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
