/** `unifluid serve`: the model behind HTTP. */

import { readFile } from "node:fs/promises";
import type { AddressInfo } from "node:net";
import { isIP } from "node:net";
import { type Command, Option } from "commander";
import { SERVER_COUNTS, SERVER_DEFAULTS, type ServerOptions } from "../server/options.js";
import type { UniFluidServer } from "../server/server.js";
import { type Context, note, type OutputFlags, runCommand } from "./context.js";
import { UsageError } from "./exit-codes.js";
import { addFlags, integerFlag, MODEL_FLAGS } from "./flags.js";
import { type ModelFlags, withModel } from "./load.js";

interface ServeFlags extends ModelFlags, OutputFlags {
  host: string;
  port: number;
  maxSequences: number;
  maxQueue: number;
  apiKeys?: string;
  maxBody: number;
  maxPixels: number;
  maxPromptLength: number;
  maxImages: number;
  maxSteps?: number;
  stallTimeout: number;
  requestTimeout: number;
  rateLimit?: number;
  corsOrigin: string[];
  allowImageHost: string[];
  drainTimeout: number;
  trustProxy?: ServerOptions["trustProxy"];
  modelName?: string;
  page: boolean;
  logPrompts?: boolean;
  logLevel: string;
}

/** A count of proxies, or their addresses with commas between. */
const proxies = (text: string): number | string[] =>
  /^\d+$/.test(text) ? integerFlag(1, 100)(text) : text.split(",").map((address) => address.trim());

/** An option whose range and default are the server's. */
function serverCount(flag: string, description: string, name: keyof typeof SERVER_COUNTS): Option {
  const { min, max } = SERVER_COUNTS[name];
  return new Option(flag, description)
    .argParser(integerFlag(min, max))
    .default(SERVER_DEFAULTS[name]);
}

const MEBIBYTE = 2 ** 20;
const mebibytes = integerFlag(1, SERVER_COUNTS.maxBodyBytes.max / MEBIBYTE);
const collect = (value: string, list: string[]): string[] => [...list, value];

export function addServe(program: Command): void {
  const command = program
    .command("serve")
    .description("serve a model over HTTP to OpenAI's clients, with a page to try it")
    .option("--host <address>", "address to listen on", "127.0.0.1")
    .option("-p, --port <n>", "port to listen on; 0: any free one", integerFlag(0, 65_535), 8080)
    .option("--api-keys <file>", "keys, one per line, reloaded on SIGHUP (or UNIFLUID_API_KEYS)")
    .option("--max-sequences <n>", "requests that run at once", integerFlag(1, 4096), 16)
    .option("--max-queue <n>", "requests that may wait; more get 429", integerFlag(0, 1e9), 64)
    .option(
      "--max-body <MiB>",
      "size per request",
      mebibytes,
      SERVER_DEFAULTS.maxBodyBytes / MEBIBYTE,
    )
    .addOption(serverCount("--max-pixels <n>", "pixels per image", "maxPixels"))
    .addOption(serverCount("--max-prompt-length <n>", "characters per prompt", "maxPromptLength"))
    .addOption(serverCount("--max-images <n>", "images per request", "maxImages"))
    .addOption(
      serverCount(
        "--max-steps <n>",
        "diffusion steps per request (default: the model's timesteps)",
        "maxSteps",
      ),
    )
    .addOption(
      serverCount(
        "--stall-timeout <s>",
        "seconds until a client that does not read is cut off",
        "stallTimeout",
      ),
    )
    .addOption(
      serverCount(
        "--request-timeout <s>",
        "seconds until a request is cancelled",
        "requestTimeout",
      ),
    )
    .addOption(
      serverCount(
        "--rate-limit <n>",
        "requests per minute and key, or address (default: unlimited)",
        "rateLimit",
      ),
    )
    .option("--cors-origin <origin>", "origin whose pages may call; repeatable", collect, [])
    .option("--allow-image-host <host>", "host to fetch images from; repeatable", collect, [])
    .option(
      "--drain-timeout <s>",
      "seconds running requests get after SIGTERM",
      integerFlag(0, 86_400),
      30,
    )
    .option(
      "--trust-proxy [proxies]",
      "trust X-Forwarded-* and X-Request-Id from the proxies in front: their number or addresses",
      proxies,
    )
    .option("--model-name <name>", "model name in requests (default: its directory's name)")
    .option("--no-page", "do not serve the page at /")
    .option("--log-prompts", "also log prompts")
    .addOption(
      new Option("--log-level <level>", "log level on standard output")
        .choices(["trace", "debug", "info", "warn", "error", "silent"])
        .default("info"),
    );
  addFlags(command, ...MODEL_FLAGS, "quiet").action((flags: ServeFlags) =>
    runCommand(flags, (context) => serve(flags, context)),
  );
}

async function serve(flags: ServeFlags, context: Context): Promise<void> {
  const reloader = new KeyReloader(flags);
  // Without keys it ends with its terminal, as any program.
  if (!keysExpected(flags)) return serveUntilTold(flags, context, reloader);
  // From the beginning to the end: a signal that nobody hears ends the process.
  process.on("SIGHUP", reloader.reload);
  try {
    await serveUntilTold(flags, context, reloader);
  } finally {
    process.off("SIGHUP", reloader.reload);
  }
}

/** Reads the file of keys again when it is told to: at once, or as soon as there is a server. */
class KeyReloader {
  private server: UniFluidServer | undefined;
  private told = false;

  constructor(private readonly flags: ServeFlags) {}

  attach(server: UniFluidServer): void {
    this.server = server;
    if (this.told) this.reload();
  }

  readonly reload = (): void => {
    this.told = true;
    const { flags, server } = this;
    // Those of the environment stay as they are.
    if (!server || flags.apiKeys === undefined) return;
    readKeys(flags)
      .then((list) => {
        server.setApiKeys(list);
        server.log.info({ keys: list.length }, "keys reloaded");
      })
      .catch((error: Error) => server.log.error(`the old keys stay: ${error.message}`));
  };
}

async function serveUntilTold(
  flags: ServeFlags,
  context: Context,
  reloader: KeyReloader,
): Promise<void> {
  const { createServer } = await import("../server/server.js");
  const keys = await readKeys(flags);
  const limits = { maxSequences: flags.maxSequences, maxQueue: flags.maxQueue };
  const load = { ...flags, ...limits };
  await withModel(load, context.signal, async (model) => {
    const app = createServer(model, serverOptions(flags, keys));
    const { signal } = context;
    reloader.attach(app);
    try {
      await app.listen({ host: flags.host, port: flags.port }).catch((error: Error) => {
        throw new UsageError(`cannot listen on ${flags.host}:${flags.port}: ${error.message}`);
      });
      const { port } = app.server.address() as AddressInfo;
      const host = isIP(flags.host) === 6 ? `[${flags.host}]` : flags.host;
      note(context, `${model.info.directory} at http://${host}:${port}/`);
      if (keys.length === 0 && !isLoopback(flags.host)) {
        note(context, `anyone who can reach ${flags.host} can use it: set keys with --api-keys`);
      }
      await new Promise<void>((resolve) => {
        if (signal.aborted) resolve();
        else signal.addEventListener("abort", () => resolve(), { once: true });
      });
      note(context, `shutting down: at most ${flags.drainTimeout} s for running requests`);
    } finally {
      await app.drain(flags.drainTimeout * 1000);
    }
  });
}

const isLoopback = (host: string): boolean =>
  host === "localhost" || host === "::1" || /^127\./.test(host);

function serverOptions(flags: ServeFlags, apiKeys: string[]): ServerOptions {
  const { maxPixels, maxPromptLength, maxImages, maxSteps, rateLimit } = flags;
  return {
    apiKeys,
    maxBodyBytes: flags.maxBody * MEBIBYTE,
    maxPixels,
    maxPromptLength,
    maxImages,
    maxSteps,
    // More could not be admitted by the engine.
    maxRequests: flags.maxSequences + flags.maxQueue,
    stallTimeout: flags.stallTimeout,
    requestTimeout: flags.requestTimeout,
    rateLimit,
    corsOrigins: flags.corsOrigin,
    imageHosts: flags.allowImageHost,
    trustProxy: flags.trustProxy ?? false,
    page: flags.page,
    modelName: flags.modelName,
    logPrompts: flags.logPrompts ?? false,
    logger: flags.logLevel === "silent" ? false : { level: flags.logLevel },
  };
}

const keysExpected = ({ apiKeys }: ServeFlags): boolean =>
  apiKeys !== undefined || process.env.UNIFLUID_API_KEYS !== undefined;

/** Keys of the file, or else of the environment. Throws where one of them is given and holds none. */
async function readKeys({ apiKeys: path }: ServeFlags): Promise<string[]> {
  const { parseKeys } = await import("../server/api-keys.js");
  if (path === undefined) {
    const { UNIFLUID_API_KEYS: text } = process.env;
    if (text === undefined) return [];
    const keys = parseKeys(text, { commas: true });
    // A secret that is empty by mistake must not open the server.
    if (keys.length === 0) throw new UsageError("expected keys in UNIFLUID_API_KEYS");
    return keys;
  }
  const text = await readFile(path, "utf8").catch((error: Error) => {
    throw new UsageError(`cannot read the keys: ${error.message}`);
  });
  const keys = parseKeys(text);
  if (keys.length === 0) throw new UsageError(`expected keys, one a line, in ${path}`);
  return keys;
}
