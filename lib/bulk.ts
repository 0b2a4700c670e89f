/**
 * Many items through one model: takes them from an iterable as the engine has room, and gives results as they
 * come. Memory is bounded by the concurrency, however long the source is.
 */

import { setImmediate as otherWork } from "node:timers/promises";
import { types } from "node:util";
import { follow, leavable, onAbort } from "./abort.js";
import { show } from "./checkpoint/fields.js";
import { CancelledError, endsModel } from "./errors.js";
import {
  booleanOption,
  integerOption,
  invalidOption,
  optionsObject,
  signalOption,
} from "./options.js";

/** Options of `generateAll` and the like, besides those of each item's call. */
export interface BulkOptions {
  /** Items in progress at once. Default: `maxSequences` plus as many waiting, or `maxQueue` if that is fewer. */
  concurrency?: number;
  /** Yield results in item order instead of as they finish; a slow item then holds up the rest. */
  ordered?: boolean;
  /**
   * Throw the error of the first item that fails. Default: a failure is a result with `error`; only one that ends the
   * model, such as `DISPOSED`, is thrown.
   */
  stopOnError?: boolean;
}

const BULK_OPTIONS = ["concurrency", "ordered", "stopOnError"] as const;

/**
 * Result of one item: a `value` or an `error`. Test with `error === undefined` or `if (error)`, also after
 * destructuring. Errors that the package detects are `UniFluidError`s. An item's own signal may cause others; a reason
 * that is not an `Error` becomes the `cause` of a `CancelledError`.
 */
export type BulkResult<Item, Value> =
  | { index: number; item: Item; value: Value; error?: undefined }
  | { index: number; item: Item; value?: undefined; error: Error };

export type AnyIterable<T> = Iterable<T> | AsyncIterable<T>;

interface Settings {
  concurrency: number;
  ordered: boolean;
  stopOnError: boolean;
  signal: AbortSignal | undefined;
}

/** Takes the options of a bulk run out of those of the calls, which have the other `names`. */
export function bulkSettings<T extends BulkOptions & { signal?: AbortSignal }>(
  options: T | undefined,
  defaultConcurrency: number,
  names: readonly (keyof T & string)[],
): { settings: Settings; rest: Omit<T, keyof BulkOptions | "signal"> } {
  const {
    concurrency = defaultConcurrency,
    ordered = false,
    stopOnError = false,
    signal,
    ...rest
  } = optionsObject(options, [...names, ...BULK_OPTIONS]);
  const settings = {
    concurrency: integerOption("concurrency", concurrency, { min: 1, max: 65_536 }),
    ordered: booleanOption("ordered", ordered),
    stopOnError: booleanOption("stopOnError", stopOnError),
    signal: signalOption(signal),
  };
  return { settings, rest };
}

function iteratorOf<T>(items: AnyIterable<T>): Iterator<T> | AsyncIterator<T> {
  const source = items as Partial<Iterable<T> & AsyncIterable<T>> | null | undefined;
  // A string is an iterable of characters and an image's bytes are one of numbers, which nobody means.
  if (typeof source === "object" && source !== null && !ArrayBuffer.isView(source)) {
    if (typeof source[Symbol.asyncIterator] === "function") return source[Symbol.asyncIterator]!();
    if (typeof source[Symbol.iterator] === "function") return source[Symbol.iterator]!();
  }
  throw invalidOption("an iterable or async iterable", "items", items);
}

/** Results after which whatever else the process has to do gets its turn, where items fail without a wait. */
const TURN = 32;

/** An error as it is, also one of another realm; any other reason as the cause of one. */
function asError(reason: unknown): Error {
  const isError =
    reason instanceof Error ||
    types.isNativeError(reason) ||
    Object.prototype.toString.call(reason) === "[object DOMException]";
  if (isError) return reason as Error;
  return new CancelledError(`cancelled: ${show(reason)}`, { cause: reason });
}

/**
 * Runs `call` for each item, at most `concurrency` of them at once. An item counts until its result is taken,
 * so a reader that falls behind slows the source down. Leaving the loop, an abort and a first error under
 * `stopOnError` give up what runs, wait for its end and close the source; so does an error after which the model
 * does nothing more.
 */
export function runAll<Item, Value>(
  items: AnyIterable<Item>,
  call: (item: Item, index: number, signal: AbortSignal) => Promise<Value>,
  settings: Settings,
): AsyncGenerator<BulkResult<Item, Value>, void, undefined> {
  return leavable((leave) => results(items, call, settings, leave));
}

async function* results<Item, Value>(
  items: AnyIterable<Item>,
  call: (item: Item, index: number, signal: AbortSignal) => Promise<Value>,
  { concurrency, ordered, stopOnError, signal }: Settings,
  leave: AbortController,
): AsyncGenerator<BulkResult<Item, Value>, void, undefined> {
  const source = iteratorOf(items);
  let wake = () => {};
  const finished: BulkResult<Item, Value>[] = [];
  const running = new Set<Promise<void>>();
  // Items that were taken and whose results were not.
  let open = 0;
  let taken = 0;
  let given = 0;
  let ended = false;
  let reading: Promise<void> | undefined;
  let sourceFailure: { error: unknown } | undefined;

  const start = (item: Item) => {
    const index = taken++;
    open++;
    const run = (async (): Promise<BulkResult<Item, Value>> => {
      try {
        return { index, item, value: await call(item, index, leave.signal) };
      } catch (error) {
        return { index, item, error: asError(error) };
      }
    })().then((result) => {
      running.delete(run);
      finished.push(result);
      wake();
    });
    running.add(run);
  };
  const read = async () => {
    try {
      const next = await source.next();
      if (next.done) ended = true;
      else if (!leave.signal.aborted) start(next.value);
    } catch (error) {
      ended = true;
      sourceFailure = { error };
    }
    reading = undefined;
    wake();
  };
  const next = (): BulkResult<Item, Value> | undefined => {
    const at = ordered ? finished.findIndex((result) => result.index === given) : 0;
    return finished.splice(at, at < 0 ? 0 : 1)[0];
  };

  const unhook = signal && follow(leave, signal);
  onAbort(leave.signal, () => wake());
  try {
    for (;;) {
      leave.signal.throwIfAborted();
      if (!ended && !reading && open < concurrency) reading = read();
      const result = next();
      if (result) {
        if (result.error && (stopOnError || endsModel(result.error))) throw result.error;
        given++;
        if (given % TURN === 0) await otherWork();
        open--;
        yield result;
        continue;
      }
      if (ended && open === 0) {
        // What came before the source broke was given first.
        if (sourceFailure) throw sourceFailure.error;
        return;
      }
      await new Promise<void>((resolve) => {
        wake = resolve;
      });
    }
  } finally {
    unhook?.();
    leave.abort(signal?.reason);
    await Promise.all(running);
    if (!ended) {
      // A source that is still making its next item closes when it has; nobody waits for that.
      const closing = Promise.resolve(source.return?.());
      if (reading) closing.catch(() => {});
      else await closing;
    }
  }
}
