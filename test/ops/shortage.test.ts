/** The system's memory runs out: what was begun ends, and the process goes on. */
import { addon } from "../support/ops";

test("a pool of threads without memory for one of them ends those that have begun", () => {
  // Its lists of threads and of their scratch, and each thread but the caller's.
  expect(addon.threadPoolFailures(4)).toBe(2 + 3);
});

test("what a callback throws that nothing guards is an exception of JavaScript's", () => {
  expect(() => addon.lackMemory()).toThrow(/bad_alloc/);
});
