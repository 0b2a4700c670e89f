/** Progress on standard error, for people only. */

import { Presets, SingleBar } from "cli-progress";
import type { RecordOutcome } from "../jobs/run.js";
import type { Metrics } from "../train/run-folder.js";
import { type Context, isSilent, note } from "./context.js";

/** Progress of work, told on standard error. `Step`: what each step tells of itself. */
export interface Progress<Step extends unknown[]> {
  step(...step: Step): void;
  /** Makes room for a line on the terminal; the next step draws the bar again. */
  clear(): void;
  stop(): void;
}

export type RecordProgress = Progress<[RecordOutcome]>;

const SILENT: Progress<unknown[]> = { step() {}, clear() {}, stop() {} };

/** Milliseconds between two lines of progress where there is no terminal. */
const LINE_EVERY = { records: 10_000, training: 30_000 };

/**
 * A bar on the terminal that makes room for lines. To remove a bar, cli-progress goes back to where the cursor was when
 * that bar began, and clears the line: one that was written since. So a bar ends before a line, and the next step begins
 * another. `format` has `{bar}` and `{text}`.
 */
function openBar(format: string) {
  const bar = new SingleBar(
    {
      format,
      stream: process.stderr,
      hideCursor: true,
      clearOnComplete: true,
      // Ctrl-C is the command's to handle.
      gracefulExit: false,
    },
    Presets.shades_classic,
  );
  let [shown, over] = [false, false];
  return {
    show(value: number, total: number, text: string): void {
      // Work that is given up may tell of its last steps after the end; a bar would keep the process alive.
      if (over) return;
      if (shown) bar.update(value, { text });
      else bar.start(total, value, { text });
      shown = true;
    },
    /** To be called in the moment in which the line is written: the next step may come at any other. */
    clear(): void {
      if (shown) bar.stop();
      shown = false;
    },
    stop(): void {
      this.clear();
      over = true;
    },
  };
}

/** A bar of `total` image tokens, unless standard error is no terminal or silence was asked for. */
export function startDrawing(context: Context, total: number): Progress<[]> {
  if (isSilent(context) || !process.stderr.isTTY) return SILENT;
  const started = performance.now();
  let done = 0;
  const bar = openBar("drawing {bar} {text}");
  bar.show(0, total, `0/${total} tokens`);
  return {
    step() {
      done++;
      const seconds = (performance.now() - started) / 1000;
      const left = duration((seconds / done) * (total - done));
      bar.show(done, total, `${done}/${total} tokens, ${left} left`);
    },
    clear: () => bar.clear(),
    stop: () => bar.stop(),
  };
}

/**
 * Progress over many records: a bar with rate and time left on a terminal, a line now and then elsewhere,
 * nothing where silence was asked for. `total` may be unknown.
 */
export function startRecords(context: Context, total: number | undefined): RecordProgress {
  if (isSilent(context)) return SILENT;
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
    const timer = setInterval(() => note(context, text()), LINE_EVERY.records);
    timer.unref();
    return {
      step: (outcome) => void counts[outcome]++,
      clear() {},
      stop: () => clearInterval(timer),
    };
  }
  const bar = openBar(total === undefined ? "{text}" : "{bar} {text}");
  let records = 0;
  bar.show(0, total ?? 1, "");
  return {
    step: (outcome) => {
      counts[outcome]++;
      bar.show(++records, total ?? 1, text());
    },
    clear: () => bar.clear(),
    stop: () => bar.stop(),
  };
}

/** A bar with loss, speed and time left on a terminal, a line now and then elsewhere. */
export function startTraining(context: Context): Progress<[metrics: Metrics, total: number]> {
  if (isSilent(context)) return SILENT;
  const number = (v: number | null | undefined) => v?.toFixed(4) ?? "-";
  const timeLeft = startTimeLeft();
  const text = (m: Metrics, total: number) => {
    const seconds = timeLeft(m, total);
    const left = seconds === undefined ? "" : `, ${duration(seconds)} left`;
    const losses =
      m.psnr === undefined
        ? `image ${number(m.imageLoss)}, text ${number(m.textLoss)}`
        : `loss ${number(m.loss)}, ${m.psnr.toFixed(1)} dB`;
    const broken = m.brokenRecords ? `, ${m.brokenRecords} broken records` : "";
    return `${losses}, ${m.examplesPerSecond.toFixed(0)} examples a second${left}${broken}`;
  };
  if (!process.stderr.isTTY) {
    let last = 0;
    return {
      step(m: Metrics, total: number) {
        if (performance.now() - last < LINE_EVERY.training && m.step < total) return;
        last = performance.now();
        note(context, `step ${m.step} of ${total}: ${text(m, total)}`);
      },
      clear() {},
      stop() {},
    };
  }
  const bar = openBar("{bar} {value}/{total} {text}");
  return {
    step: (m: Metrics, total: number) => bar.show(m.step, total, text(m, total)),
    clear: () => bar.clear(),
    stop: () => bar.stop(),
  };
}

/**
 * Seconds that the rest of a run takes, by the steps that this process has seen: those before may have been on another
 * machine. `seconds` is a run's time up to a step, so samples and checkpoints count. Unknown at the first step seen.
 */
export function startTimeLeft() {
  let first: { step: number; seconds: number } | undefined;
  return (now: { step: number; seconds: number }, total: number): number | undefined => {
    first ??= now;
    if (now.step === first.step) return undefined;
    return ((now.seconds - first.seconds) / (now.step - first.step)) * (total - now.step);
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
