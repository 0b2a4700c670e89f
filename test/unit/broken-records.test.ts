/** Which failures are a record's own, and which are not to be laid at its door. */
import { InsufficientMemoryError, InvalidImageError, InvalidRecordError } from "../../lib/errors";
import { BrokenRecords } from "../../lib/train/broken-records";

const failing = (error: unknown) => () => Promise.reject(error);
const system = (code: string) =>
  Object.assign(new Error(code), { code, errno: -1, syscall: "open" });
const named = (name: string) => ({ name, counted: name });
const unread = (cause: Error) =>
  new InvalidImageError("IMAGE_NOT_FOUND", `cannot read a.png: ${cause.message}`, { cause });

test("a record that is wrong, or whose picture is wrong or missing, is skipped and told once", async () => {
  const told: string[] = [];
  const broken = new BrokenRecords(0.1, (message) => told.push(message));
  for (const [i, error] of [
    new InvalidRecordError("no task"),
    new InvalidImageError("IMAGE_UNDECODABLE", "no picture"),
    unread(system("ENOENT")),
    unread(system("EACCES")),
    unread(system("EISDIR")),
  ].entries())
    for (let again = 0; again < 2; again++)
      await broken.attempt(named(`record ${i}`), failing(error));
  expect(told).toHaveLength(5);
});

test("counting goes on after a stop, and one that was told is tried again but neither told nor counted", async () => {
  const told: string[] = [];
  const open = () => new BrokenRecords(0.01, (message) => told.push(message));
  const before = open();
  const invalid = () => new InvalidRecordError("no task");
  for (let i = 0; i < 300; i++) await before.attempt(named(`good ${i}`), async () => {});
  await before.attempt(named("record 1"), failing(invalid()));
  const { counts } = before;
  expect(counts).toMatchObject({ seen: 301, broken: 1 });
  // What is read ahead of the checkpoint is no part of it.
  await before.attempt(named("record 2"), failing(invalid()));
  expect(before.stateAt(counts)).toEqual({ seen: 301, broken: ["record 1"] });

  const after = open();
  after.restore(before.stateAt(counts));
  expect(after.counts).toMatchObject({ seen: 301, broken: 1 });
  told.length = 0;
  await after.attempt(named("record 1"), failing(invalid()));
  expect(told).toEqual([]);
  await after.attempt(named("record 2"), failing(invalid()));
  await after.attempt(named("record 3"), failing(invalid()));
  expect(after.counts).toMatchObject({ seen: 304, broken: 3 });
  // With those of before the stop it is one too many.
  await expect(after.attempt(named("record 4"), failing(invalid()))).rejects.toMatchObject({
    code: "TRAINING_DATA",
    message: expect.stringMatching(/^4 of 305 records/),
  });
});

test("the share is of different records, however often epochs read them", async () => {
  const broken = new BrokenRecords(0.01, () => {});
  broken.among(() => 300);
  const invalid = () => failing(new InvalidRecordError("no task"));
  for (let epoch = 0; epoch < 5; epoch++) {
    for (let i = 0; i < 299; i++) await broken.attempt(named(`good ${i}`), async () => {});
    if (epoch < 3) await broken.attempt(named(`bad ${epoch}`), invalid());
  }
  await expect(broken.attempt(named("bad 3"), invalid())).rejects.toMatchObject({
    code: "TRAINING_DATA",
    message: expect.stringMatching(/^4 of 300 records/),
  });
});

test("what is read beside the steps does not count, and is told once, here or there", async () => {
  const told: string[] = [];
  const broken = new BrokenRecords(0, (message) => told.push(message));
  broken.restore({ seen: 10, broken: ["record 1", "gone"] }, (kept) =>
    kept === "gone" ? undefined : kept,
  );
  const invalid = () => failing(new InvalidRecordError("no task"));
  for (let again = 0; again < 2; again++) {
    const beside = broken.uncounted();
    for (const i of [1, 2, 3]) await beside.attempt(named(`record ${i}`), invalid());
    await beside.attempt(named("record 4"), async () => {});
    beside.remark("a.tar lacks its end");
  }
  expect(told).toEqual([
    "skipped record 2: no task",
    "skipped record 3: no task",
    "a.tar lacks its end",
  ]);
  expect(broken.stateAt(broken.counts)).toEqual({ seen: 10, broken: ["record 1"] });
  await expect(broken.attempt(named("record 2"), invalid())).rejects.toMatchObject({
    code: "TRAINING_DATA",
  });
  expect(told).toHaveLength(3);
  expect(broken.counts).toMatchObject({ seen: 11, broken: 2 });
});

test("one that was mended since a stop is used and no longer counted, from the step on that used it", async () => {
  const told: string[] = [];
  const broken = new BrokenRecords(0.01, (message) => told.push(message));
  broken.restore({ seen: 10, broken: ["record 1", "record 2"] });
  const before = broken.counts;
  let used = false;
  await broken.attempt(named("record 1"), async () => {
    used = true;
  });
  expect(used).toBe(true);
  const between = broken.counts;
  expect(between).toMatchObject({ seen: 11, broken: 1 });
  // Broken again, it is told again.
  await broken.attempt(named("record 1"), failing(new InvalidRecordError("no task")));
  expect(told).toEqual(["skipped record 1: no task"]);
  expect(broken.counts.broken).toBe(2);
  expect(broken.stateAt(before)).toEqual({ seen: 10, broken: ["record 1", "record 2"] });
  expect(broken.stateAt(between)).toEqual({ seen: 11, broken: ["record 2"] });
});

test("one of before a stop must be usable as a whole; one that is not is skipped from then on", async () => {
  const broken = new BrokenRecords(0.1, () => {});
  broken.restore({ seen: 10, broken: ["record 1", "record 2"] });
  const suspects: [string, boolean][] = [];
  const attempt = (name: string, error?: Error) =>
    broken.attempt(named(name), async (suspect) => {
      suspects.push([name, suspect]);
      if (error) throw error;
    });
  for (let again = 0; again < 2; again++) {
    await attempt("record 1");
    await attempt("record 2", new InvalidRecordError("no task"));
    await attempt("record 3");
  }
  expect(suspects).toEqual([
    ["record 1", true],
    ["record 2", true],
    ["record 3", false],
    ["record 1", false],
    ["record 3", false],
  ]);
  // What is read beside the steps does as they did when they first came to it.
  broken.restore({ seen: 10, broken: ["record 4"] });
  await broken.uncounted().attempt(named("record 4"), async (suspect) => {
    expect(suspect).toBe(false);
  });
});

test("one that comes twice at once and is broken once stays counted, for it is skipped", async () => {
  const broken = new BrokenRecords(0.1, () => {});
  let end = () => {};
  const good = broken.attempt(named("record 1"), () => new Promise<void>((done) => (end = done)));
  await broken.attempt(named("record 1"), failing(new InvalidRecordError("no task")));
  end();
  await good;
  expect(broken.counts.broken).toBe(1);
});

test.each(["EMFILE", "EIO", "ENOMEM", "ESTALE"])(
  "a picture that the machine cannot read (%s) is no record's fault, and stops the run by its data",
  async (code) => {
    const told: string[] = [];
    const broken = new BrokenRecords(1, (message) => told.push(message));
    const cause = system(code);
    await expect(broken.attempt(named("record 1"), failing(unread(cause)))).rejects.toMatchObject({
      code: "TRAINING_DATA",
      message: `record 1: cannot read a.png: ${code}`,
      cause,
    });
    expect(told).toEqual([]);
    expect(broken.counts.broken).toBe(0);
  },
);

test.each([
  ["a full disk", system("ENOSPC")],
  ["too many open files", system("EMFILE")],
  ["a file of the model that is gone", system("ENOENT")],
  ["no memory for the autoencoder", new InsufficientMemoryError("too little")],
  ["a defect", new TypeError("undefined is not a function")],
])("%s is no record's fault", async (_, error) => {
  const told: string[] = [];
  const broken = new BrokenRecords(0.1, (message) => told.push(message));
  await expect(broken.attempt(named("record 1"), failing(error))).rejects.toBe(error);
  expect(told).toEqual([]);
  // It is tried again when the machine can.
  let done = false;
  await broken.attempt(named("record 1"), async () => {
    done = true;
  });
  expect(done).toBe(true);
});

test("a record is the same whatever its line, as before there were any in names", async () => {
  const told: string[] = [];
  const broken = new BrokenRecords(0.1, (message) => told.push(message));
  broken.restore({ seen: 5, broken: ["a.jsonl: record 1"] });
  const atLine = (counted: string, line: number) => ({
    name: `${counted} (line ${line})`,
    counted,
  });
  const error = new InvalidRecordError("no task");
  await broken.attempt(atLine("a.jsonl: record 1", 2), failing(error));
  await broken.attempt(atLine("a.jsonl: record 3", 5), failing(error));
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
  expect(broken.counts).toMatchObject({ seen: 0, broken: 0 });
});
