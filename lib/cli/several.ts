/** Commands over several inputs: one that cannot be used does not keep the others from being done. */

import { show } from "../checkpoint/fields.js";
import { UniFluidError } from "../errors.js";
import { type Context, tell } from "./context.js";
import { ExitCode, exitCodeOf } from "./exit-codes.js";

/** Errors of one input alone: any other would be met by the next one as well, and ends the command. */
const OF_INPUT: ReadonlySet<string> = new Set([
  "PROMPT_TOO_LONG",
  "IMAGE_NOT_FOUND",
  "IMAGE_EMPTY",
  "IMAGE_UNDECODABLE",
  "IMAGE_TOO_LARGE",
  "IMAGE_UNSUPPORTED_INPUT",
  "INSUFFICIENT_MEMORY",
  "NUMERICAL_ERROR",
]);

/** An input as messages have it. */
export interface NamedInput {
  label: string;
  /** What the JSON document of its error says beside the error. */
  describe: Record<string, unknown>;
}

/** What became of the inputs of a command. */
export class Outcomes {
  done = 0;
  failed = 0;
  private firstError: unknown;
  private lastFailed: NamedInput | undefined;

  /** `count`: of the inputs. The error of a single one is the command's own. */
  constructor(
    private readonly context: Context,
    private readonly count: number,
  ) {}

  /** Tells of an input's error, once where it comes several times running. Throws what ends the command. */
  fail(error: unknown, input: NamedInput): void {
    if (!(error instanceof UniFluidError && OF_INPUT.has(error.code)) || this.count === 1) {
      throw error;
    }
    this.failed++;
    this.firstError ??= error;
    if (input === this.lastFailed) return;
    this.lastFailed = input;
    const { code, message } = error;
    // The messages about files name them.
    const named = message.includes(input.label) ? message : `${show(input.label)}: ${message}`;
    tell({ code, message: this.context.json ? message : named }, this.context.json, input.describe);
  }

  /** Sets the exit code: what failed alone does not make that of the whole. */
  end(): void {
    if (this.failed === 0) return;
    process.exitCode = this.done > 0 ? ExitCode.partial : exitCodeOf(this.firstError);
  }
}
