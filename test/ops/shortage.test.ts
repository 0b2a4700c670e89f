/** The system's memory runs out: what was begun ends, and the process goes on. */
import { execFileSync } from "node:child_process";
import { join } from "node:path";
import { addon } from "../support/ops";

test("a pool of threads without memory for one of them ends those that have begun", () => {
  // Its lists of threads and of their scratch, and each thread but the caller's.
  expect(addon.threadPoolFailures(4)).toBe(2 + 3);
});

test("what a callback throws that nothing guards is an exception of JavaScript's", () => {
  expect(() => addon.lackMemory()).toThrow(/bad_alloc/);
});

test("without a file descriptor left the memory is what it was last, not without a limit", () => {
  const script = `
    const { openSync, closeSync } = require("node:fs");
    const { addon } = require(process.argv[1]).findAddon();
    const before = addon.availableMemory();
    const open = [];
    try {
      for (;;) open.push(openSync("/dev/null"));
    } catch {}
    const without = addon.availableMemory();
    open.forEach(closeSync);
    console.log(JSON.stringify({ before, without }));`;
  const node = [process.execPath, "-e", script, join(__dirname, "../../dist/addon.js")];
  const limited = ["-c", 'ulimit -n 200 && exec "$@"', "sh", ...node];
  const { before, without } = JSON.parse(execFileSync("/bin/sh", limited, { encoding: "utf8" }));
  expect(without).toBe(before);
});
