/** A Redis server of the test's own: a free port of the loopback, an append-only file, a folder of its own. */

import { type ChildProcess, execFileSync, spawn } from "node:child_process";
import { mkdtempSync, rmSync } from "node:fs";
import { createServer } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { Redis } from "ioredis";

/** Whether the machine has `redis-server`; where CI is set it must. */
export function hasRedis(): boolean {
  try {
    execFileSync("redis-server", ["--version"], { stdio: "ignore" });
    return true;
  } catch (error) {
    if (process.env.CI) {
      throw new Error("redis-server is needed: apt-get install redis-server", { cause: error });
    }
    return false;
  }
}

function freePort(): Promise<number> {
  return new Promise((resolve, reject) => {
    const server = createServer();
    server.once("error", reject);
    server.listen(0, "127.0.0.1", () => {
      const { port } = server.address() as { port: number };
      server.close(() => resolve(port));
    });
  });
}

export class RedisServer {
  private child: ChildProcess | undefined;
  private readonly folder = mkdtempSync(join(tmpdir(), "unifluid-redis-"));

  private constructor(readonly port: number) {}

  static async start(): Promise<RedisServer> {
    const server = new RedisServer(await freePort());
    await server.run();
    return server;
  }

  get url(): string {
    return `redis://127.0.0.1:${this.port}`;
  }

  private async run(): Promise<void> {
    const settings = {
      port: String(this.port),
      bind: "127.0.0.1",
      dir: this.folder,
      appendonly: "yes",
      appendfsync: "always",
      save: "",
      loglevel: "warning",
    };
    const args = Object.entries(settings).flatMap(([name, value]) => [`--${name}`, value]);
    this.child = spawn("redis-server", args, { stdio: "ignore" });
    const redis = new Redis(this.port, "127.0.0.1", {
      retryStrategy: () => 50,
      maxRetriesPerRequest: null,
    });
    redis.on("error", () => {});
    await redis.ping();
    redis.disconnect();
  }

  private async end(): Promise<void> {
    const { child } = this;
    if (!child || child.exitCode !== null) return;
    const ended = new Promise((resolve) => child.once("exit", resolve));
    child.kill("SIGTERM");
    await ended;
  }

  /** Says something to the server, as `redis-cli` does. */
  async call(command: string, ...args: string[]): Promise<unknown> {
    const redis = new Redis(this.port, "127.0.0.1");
    try {
      return await redis.call(command, args);
    } finally {
      redis.disconnect();
    }
  }

  /** Stops the server and starts it again some time later, with what its file holds. */
  async restart(milliseconds: number): Promise<void> {
    await this.end();
    await new Promise((resolve) => setTimeout(resolve, milliseconds));
    await this.run();
  }

  async stop(): Promise<void> {
    await this.end();
    rmSync(this.folder, { recursive: true, force: true });
  }
}
