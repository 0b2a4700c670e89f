/** Jobs on their way into a queue: when they are sent. */

import { Outbox } from "../../lib/queue/outbox";

beforeEach(() => jest.useFakeTimers());
afterEach(() => jest.useRealTimers());

/** An outbox that remembers what it sent. */
function remembering() {
  const bulks: number[][] = [];
  const outbox = new Outbox<number>(async (bulk) => {
    bulks.push(bulk);
  });
  return { outbox, bulks };
}

test("many are sent at once", async () => {
  const { outbox, bulks } = remembering();
  for (let job = 0; job < 1001; job++) await outbox.add(job, 10);
  expect(bulks.map(({ length }) => length)).toEqual([500, 500]);
  await outbox.send();
  expect(bulks.flat()).toEqual(Array.from({ length: 1001 }, (_, i) => i));
  expect(jest.getTimerCount()).toBe(0);
});

test("a few that are long are sent, too", async () => {
  const { outbox, bulks } = remembering();
  for (let job = 0; job < 10; job++) await outbox.add(job, 2 ** 22);
  outbox.stop();
  expect(bulks).toEqual([
    [0, 1, 2, 3],
    [4, 5, 6, 7],
  ]);
});

test("no job waits longer than a second for others", async () => {
  const { outbox, bulks } = remembering();
  await outbox.add(0, 1);
  await jest.advanceTimersByTimeAsync(900);
  await outbox.add(1, 1);
  expect(bulks).toEqual([]);
  await jest.advanceTimersByTimeAsync(100);
  expect(bulks).toEqual([[0, 1]]);
  await outbox.add(2, 1);
  await jest.advanceTimersByTimeAsync(1000);
  expect(bulks).toEqual([[0, 1], [2]]);
});

test("while some are being sent, others wait, and go together", async () => {
  const bulks: number[][] = [];
  let arrived = () => {};
  const outbox = new Outbox<number>((bulk) => {
    bulks.push(bulk);
    return new Promise((resolve) => {
      arrived = resolve;
    });
  });
  await outbox.add(0, 1);
  await jest.advanceTimersByTimeAsync(1000);
  for (const job of [1, 2]) {
    await outbox.add(job, 1);
    await jest.advanceTimersByTimeAsync(1000);
  }
  expect(bulks).toEqual([[0]]);
  arrived();
  await jest.advanceTimersByTimeAsync(0);
  expect(bulks).toEqual([[0], [1, 2]]);
});

test("whoever waits is told that some could not be sent, though no other comes", async () => {
  const refusal = new Error("no");
  const outbox = new Outbox<number>(() => Promise.reject(refusal));
  await outbox.add(0, 1);
  const told = expect(outbox.failure).rejects.toBe(refusal);
  await jest.advanceTimersByTimeAsync(1000);
  await told;
  await expect(outbox.send()).rejects.toBe(refusal);
});
