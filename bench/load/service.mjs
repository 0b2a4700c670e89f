// `unifluid serve` as a child process, and what it tells of itself.
import { spawn } from "node:child_process";
import { once } from "node:events";
import { fileURLToPath } from "node:url";

const main = fileURLToPath(new URL("../../dist/cli/main.js", import.meta.url));

/** The key that the load shows. */
export const KEY = "load-test-key";

/** Starts the server on a free port of the loopback. */
export async function startService(args) {
  const child = spawn(process.execPath, [main, "serve", "--port", "0", ...args], {
    env: { ...process.env, UNIFLUID_API_KEYS: KEY },
    stdio: ["ignore", "ignore", "pipe"],
  });
  let errors = "";
  const ended = once(child, "close").then(([code, signal]) => ({ code, signal }));
  const url = await new Promise((resolve, reject) => {
    child.stderr.on("data", (chunk) => {
      errors += chunk;
      const found = / at (http:\/\/\S+)\/\n/.exec(errors);
      if (found) resolve(found[1]);
    });
    void ended.then(() => reject(new Error(`the server did not start: ${errors}`)));
  });
  return {
    url,
    child,
    /** The exit code, or the signal that ended it. */
    ended: ended.then(({ code, signal }) => code ?? signal),
    errors: () => errors,
    /** Figures by their name in /metrics; those with labels are left out. */
    async figures() {
      const response = await fetch(`${url}/metrics`, {
        headers: { authorization: `Bearer ${KEY}` },
      });
      const lines = (await response.text()).matchAll(/^(\w+) (\S+)$/gm);
      return Object.fromEntries([...lines].map(([, name, value]) => [name, Number(value)]));
    },
    /** Waits until the engine holds nothing, for at most half a minute; its last figures. */
    async idle() {
      for (let i = 0; ; i++) {
        const figures = await this.figures();
        if (i === 300 || heldBy(figures).every((value) => value === 0)) return figures;
        await new Promise((resolve) => setTimeout(resolve, 100));
      }
    },
  };
}

/** What must be zero when nobody asks any more: sequences that run, that wait, and their bytes. */
export function heldBy(figures) {
  return [
    figures.unifluid_engine_running_requests,
    figures.unifluid_engine_waiting_requests,
    figures.unifluid_engine_sequence_bytes,
  ];
}
