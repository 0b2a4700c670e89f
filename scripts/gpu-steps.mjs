// Steps that run one after another, for scripts/gpu.mjs: each with a time limit, none of them the end of the rest, and
// a summary at the end.
import { spawn } from "node:child_process";

/** Seconds after which a killed program is left behind: one that waits in the driver may never end. */
const PATIENCE = 10;
/** Seconds that are kept of a budget, to end in good order. */
const SPARE = 5;

function signal({ child }, name) {
  if (!child.pid) return;
  try {
    process.kill(-child.pid, name);
  } catch {
    // It has ended meanwhile.
  }
}

export class Steps {
  /** `budget`: seconds for all steps; `cwd`, `env`: theirs. */
  constructor({ budget = Number.POSITIVE_INFINITY, cwd, env }) {
    Object.assign(this, { cwd, env, results: [], running: new Set() });
    this.deadline = performance.now() + 1000 * budget;
    for (const signal of ["SIGINT", "SIGTERM"])
      process.once(signal, () => {
        this.kill();
        this.summarize();
        process.exit(1);
      });
  }

  /** Of the budget, less what is kept to end in good order. */
  secondsLeft() {
    return (this.deadline - performance.now()) / 1000 - SPARE;
  }

  /**
   * Runs a program for at most `limit` seconds; with less than `least` left of the budget it is skipped. `args` may be a
   * function of the seconds that it has. Whether it succeeded; false where it was skipped.
   */
  async run(title, command, args, { limit, least = 10, env = {} }) {
    const seconds = this.secondsFor(title, limit, least);
    if (!seconds) return false;
    const list = typeof args === "function" ? args(Math.floor(seconds)) : args;
    return this.end(title, this.start(command, list, env, "ignore"), seconds);
  }

  /** Programs that run at the same time, as { title, args } each. */
  async runTogether(title, command, programs, { limit, least = 10, env = {} }) {
    const seconds = this.secondsFor(title, limit, least);
    if (!seconds) return;
    await Promise.all(
      programs.map((each) =>
        this.end(each.title, this.start(command, each.args, env, "ignore"), seconds),
      ),
    );
  }

  /**
   * Starts a program that prepares itself beside other steps; a line on its standard input says that its turn has come,
   * and how many seconds it has: finish().
   */
  prepare(title, command, args) {
    return { title, program: this.start(command, args, {}, "pipe") };
  }

  /** Its turn, in which the others that were prepared do nothing. `keep`: seconds of the budget for those after it. */
  async finish({ title, program }, { limit, least = 10, keep = 0 }) {
    const seconds = this.secondsFor(title, limit, least, keep);
    if (!seconds) return signal(program, "SIGKILL");
    for (const other of this.running) if (other !== program) signal(other, "SIGSTOP");
    program.child.stdin.on("error", () => {}); // it may have ended
    program.child.stdin.end(`${Math.floor(seconds)}\n`);
    await this.end(title, program, seconds);
    for (const other of this.running) signal(other, "SIGCONT");
  }

  /** Of a step that begins; 0 where it is skipped. */
  secondsFor(title, limit, least, keep = 0) {
    console.log(`\n== ${title}`);
    const seconds = Math.min(limit, this.secondsLeft() - keep);
    if (seconds >= Math.min(least, limit) && seconds > 0) return seconds;
    this.note(title, "skipped: no time is left for it");
    return 0;
  }

  /** For the summary; what FAILED decides the exit code. */
  note(title, outcome, succeeded = false) {
    console.log(`== ${title}: ${outcome}`);
    this.results.push([title, outcome]);
    return succeeded;
  }

  /** `ended`: why it failed; null where it did not. */
  start(command, args, env, stdin) {
    // A group of its own, so that its children end with it.
    const child = spawn(command, args, {
      cwd: this.cwd,
      stdio: [stdin, "inherit", "inherit"],
      env: { ...process.env, ...this.env, ...env },
      detached: true,
    });
    const program = { child };
    program.ended = new Promise((resolve) => {
      child.once("error", (error) => resolve(`${command} did not start: ${error.message}`));
      child.once("exit", (status, name) =>
        resolve(status === 0 ? null : `it ended with ${name ?? `status ${status}`}`),
      );
    }).finally(() => this.running.delete(program));
    this.running.add(program);
    return program;
  }

  /** Waits for its end, which comes after so many seconds. Whether it succeeded. */
  async end(title, program, seconds) {
    const begin = performance.now();
    const late = `not done within ${seconds.toFixed(0)} s`;
    const timers = [];
    let killed = false;
    const left = new Promise((resolve) => {
      const kill = () => {
        killed = true;
        signal(program, "SIGKILL");
      };
      const leave = () => resolve(`${late}, and could not be killed`);
      timers.push(setTimeout(kill, 1000 * seconds), setTimeout(leave, 1000 * (seconds + PATIENCE)));
    });
    const ended = program.ended.then((reason) => (killed ? late : reason));
    const reason = await Promise.race([left, ended]);
    timers.forEach(clearTimeout);
    const taken = `${((performance.now() - begin) / 1000).toFixed(0)} s`;
    return this.note(title, reason ? `FAILED: ${reason} (${taken})` : `done (${taken})`, !reason);
  }

  kill() {
    for (const program of this.running) signal(program, "SIGKILL");
  }

  /** Prints what became of each step; the number of those that failed. */
  summarize() {
    console.log("\n== summary");
    for (const [title, outcome] of this.results) console.log(`${title}: ${outcome}`);
    return this.results.filter(([, outcome]) => outcome.startsWith("FAILED")).length;
  }
}
