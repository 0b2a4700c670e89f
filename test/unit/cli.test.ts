/** The small parts of the command line; the program as a whole: test/e2e/cli.test.ts. */

import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { inflateSync } from "node:zlib";
import {
  ExitCode,
  exitCodeOf,
  Interrupted,
  OutputError,
  UsageError,
} from "../../lib/cli/exit-codes.js";
import {
  checkFilesOutput,
  numberedName,
  writeFileOutput,
  writingFailed,
} from "../../lib/cli/output.js";
import { run } from "../../lib/cli/program.js";
import { formatBytes, formatCount, formatTable } from "../../lib/cli/tables.js";
import { errorClass, errorCodes, UniFluidError } from "../../lib/errors.js";

test("what cannot be written is told of before anything is computed", async () => {
  const folder = mkdtempSync(join(tmpdir(), "unifluid-output-"));
  try {
    mkdirSync(join(folder, "x-0002.png"));
    writeFileSync(join(folder, "file"), "");
    const reason = (...names: string[]) =>
      checkFilesOutput(names.map((name) => join(folder, name))).then(
        () => "none",
        (error: OutputError) => `${error.code}: ${error.message.replaceAll(folder, "F")}`,
      );
    expect(await reason()).toBe("none");
    expect(await reason("x.png", "file")).toBe("none");
    expect(await reason("x-0001.png", "x-0002.png")).toBe(
      "OUTPUT: cannot write F/x-0002.png: it is a folder",
    );
    expect(await reason("no/x.png")).toBe(
      "OUTPUT: cannot write F/no/x.png: there is no folder F/no",
    );
    expect(await reason("file/x.png")).toBe(
      "OUTPUT: cannot write F/file/x.png: F/file is not a folder",
    );
    await expect(writeFileOutput(join(folder, "no/x.png"), Buffer.of(1))).rejects.toMatchObject({
      code: "OUTPUT",
      message: expect.not.stringContaining(".tmp"),
    });
  } finally {
    rmSync(folder, { recursive: true });
  }
});

let mockFailure: Error;
jest.mock("../../lib/scenes/dataset", () => ({ writeDataset: () => Promise.reject(mockFailure) }));
jest.mock("../../lib/bpe/tokenizer-files", () => ({
  trainTokenizer: () => Promise.reject(mockFailure),
}));

/** Runs a command in this process: what it says on standard error, and the exit code. */
async function told(...args: string[]): Promise<{ err: string; code: typeof process.exitCode }> {
  const write = jest.spyOn(process.stderr, "write").mockReturnValue(true);
  const { exitCode } = process;
  try {
    await run(args);
    return { err: write.mock.calls.map(([text]) => text).join(""), code: process.exitCode };
  } finally {
    process.exitCode = exitCode;
    write.mockRestore();
  }
}

describe.each([
  ["a data set", ["scenes"]],
  ["a tokenizer", ["tokenizer", "a.txt", "--vocab", "300"]],
])("of %s that cannot be made", (_what, command) => {
  test.each<[string, Error, string]>([
    ["a defect", new TypeError("x is no function"), "INTERNAL: x is no function"],
    [
      "a module that does not load",
      Object.assign(new Error("no sharp"), { code: "ERR_MODULE_NOT_FOUND" }),
      "ERR_MODULE_NOT_FOUND: no sharp",
    ],
    [
      "a full disk",
      Object.assign(new Error("ENOSPC: no space"), {
        code: "ENOSPC",
        errno: -28,
        syscall: "write",
      }),
      "OUTPUT: cannot write to few: ENOSPC: no space",
    ],
  ])("%s is told as what it is", async (_, error, message) => {
    mockFailure = error;
    expect(await told(...command, "--out", "few", "--quiet")).toEqual({
      err: `unifluid: ${message}\n`,
      code: message.startsWith("OUTPUT") ? ExitCode.output : ExitCode.internal,
    });
  });
});

test.each([
  ["serve", "--port", "", "0 to 65535"],
  ["serve", "--max-queue", " ", "0 to 1000000000"],
  ["serve", "--drain-timeout", "", "0 to 86400"],
  ["serve", "--max-pixels", "64000001", "1 to 64000000"],
  ["enqueue", "--attempts", "", "1 to 100"],
  ["worker", "--lock-seconds", "0", "1 to 86400"],
  ["worker", "--drain-timeout", "1.5", "1 to 86400"],
])("%s %s %j is no whole number of its range", async (command, option, value, range) => {
  await expect(run([command, option, value])).rejects.toMatchObject({
    code: "USAGE",
    message: expect.stringMatching(new RegExp(`${option} .*a whole number from ${range}\\.`)),
  });
});

test("the losses of a model are computed in one type", async () => {
  const { err, code } = await told(
    ...["eval", "nothing", "--suite", "loss", "--manifest", "a.jsonl", "--dtype", "bfloat16"],
  );
  expect([code, err]).toEqual([
    ExitCode.usage,
    "unifluid: USAGE: --dtype is an option of the suite scenes\n",
  ]);
});

/** Milliseconds, of a clock that goes on where the work is done. */
let mockClock = 0;
jest.mock("../../lib/cli/load", () => ({
  withModel: (_flags: object, _signal: AbortSignal, use: (model: object) => Promise<void>) => {
    mockClock += 100_000;
    return use({});
  },
}));
jest.mock("../../lib/jobs/run", () => ({
  runBatch: async (
    ...[, , , { onRecord }]: [object, object, object, { onRecord(o: string): void }]
  ) => {
    mockClock += 2000;
    for (let i = 0; i < 5; i++) onRecord("done");
  },
}));

test("the rate of a batch is that of its jobs, without the loading of the model", async () => {
  const folder = mkdtempSync(join(tmpdir(), "unifluid-rate-"));
  const clock = jest.spyOn(performance, "now").mockImplementation(() => mockClock);
  try {
    const jobs = join(folder, "jobs.txt");
    writeFileSync(jobs, "a star\n".repeat(5));
    const { err } = await told("batch", jobs, "--out", join(folder, "out"));
    expect(err).toContain("5 done, 0 failed; 2.0 s, 2.5 a second\n");
  } finally {
    clock.mockRestore();
    rmSync(folder, { recursive: true });
  }
});

test("what the file system says of a folder of results is of the output, and what zlib says of data is not", () => {
  const thrownBy = (work: () => unknown): Error => {
    try {
      work();
    } catch (error) {
      return error as Error;
    }
    throw new Error("nothing was thrown");
  };
  const folder = join(tmpdir(), "unifluid-output-none");
  const told = (error: Error) => thrownBy(() => writingFailed(folder)(error));
  expect(told(thrownBy(() => mkdirSync(join(folder, "x"))))).toMatchObject({ code: "OUTPUT" });
  const damaged = thrownBy(() => inflateSync(Buffer.of(1, 2, 3)));
  expect(told(damaged)).toBe(damaged);
});

test("numbered names keep folder and extension", () => {
  expect(numberedName("a.b/out.png", 0, 1)).toBe("a.b/out.png");
  expect(numberedName("a.b/out.png", 0, 2)).toBe("a.b/out-0001.png");
  expect(numberedName("a.b/out", 41, 99)).toBe("a.b/out-0042");
  expect(numberedName("out.tar.webp", 12344, 20000)).toBe("out.tar-12345.webp");
});

test.each([
  [0, "0 bytes"],
  [1023, "1023 bytes"],
  [1024, "1.0 KiB"],
  [150 * 1024, "150 KiB"],
  [5.25 * 2 ** 30, "5.3 GiB"],
  [2 ** 60, "1048576 TiB"],
])("%p bytes are %p", (bytes, text) => {
  expect(formatBytes(bytes)).toBe(text);
});

test.each([
  [0, "0"],
  [99_999, "99999"],
  [428_871, "0.43 million"],
  [250_000_000, "250 million"],
  [2_610_000_000, "2.61 billion"],
])("%p parameters are %p", (count, text) => {
  expect(formatCount(count)).toBe(text);
});

test("tables line up", () => {
  expect(
    formatTable([
      ["a", "1"],
      ["long", "2"],
      ["", "3"],
    ]),
  ).toBe("a     1\nlong  2\n      3\n");
});

describe("exit codes", () => {
  const expected: Record<string, number> = {
    INVALID_OPTION: 2,
    JOBS_CHANGED: 2,
    OUTPUT_LOCKED: 6,
    TRAINING_DIVERGED: 8,
    INSUFFICIENT_MEMORY: 4,
    QUEUE_FULL: 4,
    QUEUE_UNREACHABLE: 5,
    DEVICE_ERROR: 5,
    DEVICE_UNAVAILABLE: 5,
    NATIVE_NOT_FOUND: 5,
    NATIVE_LOAD_FAILED: 5,
    INTERNAL: 1,
    DISPOSED: 1,
    CANCELLED: 1,
  };

  test.each(errorCodes.map((code) => [code, expected[code] ?? 3] as const))(
    "%s: %i",
    (code, exit) => {
      expect(errorClass(code).prototype).toBeInstanceOf(UniFluidError);
      expect(exitCodeOf(new UniFluidError(code, "message"))).toBe(exit);
    },
  );

  test("of everything else", () => {
    expect(exitCodeOf(new UsageError("x"))).toBe(ExitCode.usage);
    expect(exitCodeOf(new OutputError("x"))).toBe(ExitCode.output);
    expect(exitCodeOf(new Interrupted(143))).toBe(143);
    expect(exitCodeOf(new TypeError("x"))).toBe(ExitCode.internal);
    expect(exitCodeOf("x")).toBe(ExitCode.internal);
  });
});
