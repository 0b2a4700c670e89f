/** A progress bar on standard error, for people only. */

import { Presets, SingleBar } from "cli-progress";
import type { RecordOutcome } from "../jobs/run.js";
import type { Context } from "./context.js";

export interface Progress {
  /** One more image token is drawn. */
  advance(): void;
  /** Makes room for a line on the terminal; the next token draws the bar again. */
  clear(): void;
  stop(): void;
}

/** To the line's begin, and all of it away. */
export const clearLine = (): void => {
  process.stderr.write("\r\x1b[K");
};

const NONE: Progress = { advance() {}, clear() {}, stop() {} };

/** A bar of `total` image tokens, unless standard error is no terminal or silence was asked for. */
export function startProgress(context: Context, total: number): Progress {
  if (context.quiet || context.json || !process.stderr.isTTY) return NONE;
  const bar = new SingleBar(
    {
      format: "drawing {bar} {value}/{total} tokens, {eta_formatted} left",
      stream: process.stderr,
      hideCursor: true,
      clearOnComplete: true,
      // Ctrl-C is the command's to handle.
      gracefulExit: false,
    },
    Presets.shades_classic,
  );
  bar.start(total, 0);
  return {
    advance: () => bar.increment(),
    clear: clearLine,
    stop: () => bar.stop(),
  };
}

export interface RateProgress {
  advance(outcome: RecordOutcome): void;
  /** As `Progress` has it. */
  clear(): void;
  stop(): void;
}

/** Milliseconds between two lines of progress where there is no terminal. */
const LINE_EVERY = 10_000;

/**
 * Progress over many records: a bar with rate and time left on a terminal, a line now and then elsewhere,
 * nothing where silence was asked for. `total` may be unknown.
 */
export function startRate(context: Context, total: number | undefined): RateProgress {
  if (context.quiet || context.json) return { advance() {}, clear() {}, stop() {} };
  const counts: Record<RecordOutcome, number> = {
    done: 0,
    failed: 0,
    doneBefore: 0,
    failedBefore: 0,
  };
  const started = performance.now();
  const text = (): string => {
    const { done, failed } = counts;
    const now = done + failed;
    const skipped = counts.doneBefore + counts.failedBefore;
    const rate = now / ((performance.now() - started) / 1000);
    const of = total === undefined ? "" : ` of ${total}`;
    const left =
      total === undefined || rate === 0 ? "" : `, ${duration((total - now - skipped) / rate)} left`;
    const bad = failed === 0 ? "" : `, ${failed} failed`;
    return `${now + skipped}${of}${bad}, ${rate.toFixed(1)} a second${left}`;
  };
  if (!process.stderr.isTTY) {
    const timer = setInterval(() => process.stderr.write(`unifluid: ${text()}\n`), LINE_EVERY);
    timer.unref();
    return {
      advance: (outcome) => void counts[outcome]++,
      clear() {},
      stop: () => clearInterval(timer),
    };
  }
  const bar = new SingleBar(
    {
      format: total === undefined ? "{text}" : "{bar} {text}",
      stream: process.stderr,
      hideCursor: true,
      clearOnComplete: true,
      gracefulExit: false,
    },
    Presets.shades_classic,
  );
  bar.start(total ?? 1, 0, { text: "" });
  return {
    advance: (outcome) => {
      counts[outcome]++;
      bar.increment(1, { text: text() });
    },
    clear: clearLine,
    stop: () => bar.stop(),
  };
}

/** `45 s`, `3 min 20 s`, `2 h 5 min`. */
export function duration(seconds: number): string {
  const whole = Math.max(0, Math.round(seconds));
  if (whole < 60) return `${whole} s`;
  const minutes = Math.floor(whole / 60);
  if (minutes < 60) return `${minutes} min ${whole % 60} s`;
  return `${Math.floor(minutes / 60)} h ${minutes % 60} min`;
}
