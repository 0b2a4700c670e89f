// Runs the PyTorch sides of benchmarks: programs in Python that answer in lines of JSON and may take no longer than
// they are given.
import { spawn } from "node:child_process";
import { readdirSync, readFileSync } from "node:fs";
import { createInterface } from "node:readline";

/** A process and all that it started, such as compilers; where the system tells (Linux). */
function family(pid) {
  try {
    const children = readdirSync(`/proc/${pid}/task`)
      .map((task) => readFileSync(`/proc/${pid}/task/${task}/children`, "utf8"))
      .flatMap((line) => line.split(" ").filter(Boolean).map(Number));
    return [pid, ...children.flatMap(family)];
  } catch {
    return [pid]; // it has ended, or there is no /proc
  }
}

export class Peer {
  /** `limit`: seconds that the whole program may take; it is killed then. `env`: beside this process's. */
  constructor(python, args, limit = Number.POSITIVE_INFINITY, env = {}) {
    const stdio = ["pipe", "pipe", "inherit"];
    this.child = spawn(python, args, { stdio, env: { ...process.env, ...env } });
    this.lines = createInterface({ input: this.child.stdout })[Symbol.asyncIterator]();
    this.ended = new Promise((resolve) => {
      this.child.once("error", (error) => resolve(`${python} did not start: ${error.message}`));
      this.child.once("exit", (status, signal) => {
        clearTimeout(this.timer);
        resolve(status === 0 ? null : `the program ended with ${signal ?? `status ${status}`}`);
      });
    });
    // A program that has ended reads no more.
    this.child.stdin.on("error", () => {});
    this.within(limit);
  }

  /** From now on it has so many seconds. */
  within(limit) {
    clearTimeout(this.timer);
    if (limit === Number.POSITIVE_INFINITY) return;
    this.timer = setTimeout(() => {
      this.late = `not done within ${Math.round(limit)} s`;
      this.child.kill("SIGKILL");
    }, limit * 1000);
  }

  /** Until resume() it computes nothing, nor does what it started. */
  pause() {
    this.signal("SIGSTOP");
  }

  resume() {
    this.signal("SIGCONT");
  }

  signal(name) {
    if (!this.child.pid) return;
    for (const pid of family(this.child.pid))
      try {
        process.kill(pid, name);
      } catch {
        // It has ended meanwhile.
      }
  }

  /** The next answer; null at the end of the program. */
  async next() {
    for (;;) {
      const { value, done } = await this.lines.next();
      if (done) return null;
      // Libraries print what they like.
      if (value.startsWith("{")) return JSON.parse(value);
    }
  }

  /** Of programs that wait for a line on standard input. */
  tell(line = "") {
    this.child.stdin.write(`${line}\n`);
  }

  /** Asks for one more answer. */
  ask(line) {
    this.tell(line);
    return this.next();
  }

  kill() {
    this.child.kill("SIGKILL");
    return this.ended;
  }

  /** Waits for the end. Why it ended early; null where it did not. */
  async end() {
    this.child.stdin.end();
    const reason = await this.ended;
    clearTimeout(this.timer);
    return this.late ?? reason;
  }
}
