/** Where the queue is: a Redis server, by its URL. */

import { Redis } from "ioredis";
import { QueueUnreachableError } from "../errors.js";
import { invalidOption } from "../options.js";

/** Milliseconds that a server has for its first answer. */
const CONNECT_TIMEOUT = 5000;

/** What both ioredis and BullMQ take. */
type RedisSettings = {
  host: string;
  port: number;
  db: number;
  username?: string;
  password?: string;
  tls?: object;
  maxRetriesPerRequest: null;
  retryStrategy(times: number): number;
};

export interface RedisAddress {
  options: RedisSettings;
  /** Host, port and database; never the password. */
  name: string;
}

/** Of `redis://[user[:password]@]host[:port][/database]`, or `rediss://` for TLS. Throws `INVALID_OPTION`. */
export function parseRedisUrl(text: string): RedisAddress {
  // A wrong URL is not repeated: it may hold a password.
  const wrong = () => invalidOption("redis://host:port or rediss://host:port", "queue", "another");
  let url: URL;
  try {
    url = new URL(text);
  } catch {
    throw wrong();
  }
  const database = url.pathname.replace(/^\//, "");
  if (!["redis:", "rediss:"].includes(url.protocol) || !url.hostname || !/^\d*$/.test(database)) {
    throw wrong();
  }
  const decoded = (part: string): string => {
    try {
      return decodeURIComponent(part);
    } catch {
      throw wrong();
    }
  };
  const host = url.hostname.replace(/^\[|\]$/g, "");
  const port = Number(url.port || 6379);
  const db = Number(database || 0);
  return {
    name: `${url.protocol}//${url.hostname}:${port}/${db}`,
    options: {
      host,
      port,
      db,
      ...(url.username ? { username: decoded(url.username) } : {}),
      ...(url.password ? { password: decoded(url.password) } : {}),
      ...(url.protocol === "rediss:" ? { tls: {} } : {}),
      // Commands wait for a server that is gone for a while; the queue goes on when it is back.
      maxRetriesPerRequest: null,
      retryStrategy: (times: number) => Math.min(100 * 2 ** Math.min(times, 6), 5000),
    },
  };
}

/** Throws `INVALID_OPTION` for a name that the keys of a queue cannot have. */
export function checkQueueName(name: string): void {
  if (name === "" || name.includes(":"))
    throw invalidOption("a name without ':'", "queue-name", name);
}

/** Whether the server answered with an error: it has no memory left, say, or the user may not do this. */
export const isRefusal = (error: unknown): error is Error & { name: "ReplyError" } =>
  error instanceof Error && error.name === "ReplyError";

export const refusal = (name: string, cause: Error) =>
  new QueueUnreachableError(`the Redis server refuses ${name}: ${cause.message}`, { cause });

/** Throws `QUEUE_UNREACHABLE` unless the server answers, and has the database. */
export async function checkRedis({ options, name }: RedisAddress): Promise<void> {
  const redis = new Redis({
    ...options,
    lazyConnect: true,
    connectTimeout: CONNECT_TIMEOUT,
    commandTimeout: CONNECT_TIMEOUT,
    maxRetriesPerRequest: 1,
    retryStrategy: () => null,
  });
  let reason: Error | undefined;
  redis.on("error", (error: Error) => {
    reason = error;
  });
  try {
    await redis.connect();
    await redis.ping();
    // The client goes on in database 0 where the server lacks another.
    if (options.db !== 0) await redis.select(options.db);
  } catch (error) {
    const cause = reason ?? (error as Error);
    if (isRefusal(cause)) throw refusal(name, cause);
    const message = cause.message || (cause as NodeJS.ErrnoException).code;
    throw new QueueUnreachableError(`no Redis server answers at ${name}: ${message}`, { cause });
  } finally {
    redis.disconnect();
  }
}
