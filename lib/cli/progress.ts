/** A progress bar on standard error, for people only. */

import { Presets, SingleBar } from "cli-progress";
import type { Context } from "./context.js";

export interface Progress {
  /** One more image token is drawn. */
  advance(): void;
  stop(): void;
}

const NONE: Progress = { advance() {}, stop() {} };

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
  return { advance: () => bar.increment(), stop: () => bar.stop() };
}
