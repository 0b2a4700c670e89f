// Steps that run one after another, for scripts/gpu.mjs: each with a time limit, none of them the end of the rest, and
// a summary at the end.
import { spawn } from "node:child_process";

/** Seconds after which a killed program is left behind: one that waits in the driver may never end. */
const PATIENCE = 10;
/** Seconds that are kept of a budget, to end in good order. */
const SPARE = 5;

export class Steps {
  /** `budget`: seconds for all steps; `cwd`, `env`: theirs. */
  constructor({ budget = Number.POSITIVE_INFINITY, cwd, env }) {
    Object.assign(this, { cwd, env, results: [] });
    this.end = performance.now() + 1000 * budget;
    for (const signal of ["SIGINT", "SIGTERM"])
      process.once(signal, () => {
        this.kill();
        this.summarize();
        process.exit(1);
      });
  }

  /** Of the budget, less what is kept to end in good order. */
  secondsLeft() {
    return (this.end - performance.now()) / 1000 - SPARE;
  }

  /**
   * Runs a program for at most `limit` seconds; with less than `least` left of the budget it is skipped. `args` may be a
   * function of the seconds that it has. Whether it succeeded; false where it was skipped.
   */
  async run(title, command, args, { limit, least = 10, env = {} }) {
    console.log(`\n== ${title}`);
    const seconds = Math.min(limit, this.secondsLeft());
    if (seconds < Math.min(least, limit))
      return this.note(title, "skipped: no time is left for it");
    const begin = performance.now();
    const list = typeof args === "function" ? args(Math.floor(seconds)) : args;
    const reason = await this.wait(command, list, seconds, env);
    const taken = `${((performance.now() - begin) / 1000).toFixed(0)} s`;
    return this.note(title, reason ? `FAILED: ${reason} (${taken})` : `done (${taken})`, !reason);
  }

  /** For the summary; what FAILED decides the exit code. */
  note(title, outcome, succeeded = false) {
    console.log(`== ${title}: ${outcome}`);
    this.results.push([title, outcome]);
    return succeeded;
  }

  /** Why it failed; null where it did not. */
  wait(command, args, seconds, env) {
    return new Promise((resolve) => {
      // A group of its own, so that its children end with it.
      this.child = spawn(command, args, {
        cwd: this.cwd,
        stdio: ["ignore", "inherit", "inherit"],
        env: { ...process.env, ...this.env, ...env },
        detached: true,
      });
      const late = `not done within ${seconds.toFixed(0)} s`;
      let killed = false;
      const timers = [
        setTimeout(() => {
          killed = true;
          this.kill();
        }, 1000 * seconds),
        setTimeout(() => done(`${late}, and could not be killed`), 1000 * (seconds + PATIENCE)),
      ];
      const done = (reason) => {
        timers.forEach(clearTimeout);
        this.child = null;
        resolve(reason);
      };
      this.child.once("error", (error) => done(`${command} did not start: ${error.message}`));
      this.child.once("exit", (status, signal) => {
        if (killed) done(late);
        else done(status === 0 ? null : `it ended with ${signal ?? `status ${status}`}`);
      });
    });
  }

  kill() {
    if (!this.child?.pid) return;
    try {
      process.kill(-this.child.pid, "SIGKILL");
    } catch {
      // It has ended meanwhile.
    }
  }

  /** Prints what became of each step; the number of those that failed. */
  summarize() {
    console.log("\n== summary");
    for (const [title, outcome] of this.results) console.log(`${title}: ${outcome}`);
    return this.results.filter(([, outcome]) => outcome.startsWith("FAILED")).length;
  }
}
