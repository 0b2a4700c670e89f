/** A real Chromium, where the machine has one; where CI is set it must. */

import { existsSync } from "node:fs";
import { type Browser, chromium } from "playwright-core";

const CANDIDATES = [process.env.CHROMIUM_PATH, "/usr/bin/chromium", "/usr/bin/chromium-browser"];

/** Its program, or undefined. */
export function findChromium(): string | undefined {
  const found = CANDIDATES.find((path) => path && existsSync(path));
  if (!found && process.env.CI) {
    throw new Error("chromium is needed: apt-get install chromium, or set CHROMIUM_PATH");
  }
  return found;
}

export function launchChromium(executablePath: string): Promise<Browser> {
  return chromium.launch({
    executablePath,
    args: [
      "--no-sandbox",
      "--disable-gpu",
      "--disable-quic",
      "--no-first-run",
      "--disable-background-networking",
      "--disable-component-update",
      "--disable-sync",
    ],
  });
}
