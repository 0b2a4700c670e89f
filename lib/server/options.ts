/** Options of the server, checked and completed. */

import { isIP } from "node:net";
import type { NumberRange } from "../checkpoint/fields.js";
import { MAX_PIXELS } from "../image-input.js";
import {
  booleanOption,
  definedOf,
  integerOption,
  invalidOption,
  optionsObject,
  stringOption,
} from "../options.js";
import { NAMED_NETWORKS } from "./proxies.js";

export interface ServerOptions {
  /** Keys, of which a request must send one (`Authorization: Bearer KEY`). None: no key is needed. */
  apiKeys?: readonly string[];
  /** Bytes per request body, for a form with all its parts. Default 20 MiB. */
  maxBodyBytes?: number;
  /** Pixels per image. Default 16 million. */
  maxPixels?: number;
  /** Characters per prompt, question or instruction. Default 4000. */
  maxPromptLength?: number;
  /** Images per request. Default 10. */
  maxImages?: number;
  /** Diffusion steps per request. Default: the model's timesteps. */
  maxSteps?: number;
  /** Requests in progress, whatever they wait for; more are refused before they are read. Default 256. */
  maxRequests?: number;
  /** Seconds until a client that does not read its response is cut off. Default 30. */
  stallTimeout?: number;
  /** Seconds until a request is cancelled. Default 600. */
  requestTimeout?: number;
  /** Seconds in which a client must send its headers and body. Default 60. */
  receiveTimeout?: number;
  /** Requests per minute and key, or without keys per address. Default: no limit. */
  rateLimit?: number;
  /** Origins whose pages may call the server, or `"*"`. Default: none. */
  corsOrigins?: readonly string[];
  /** Hosts that images may be fetched from, such as `images.example.com`. Default: none, images are sent as data. */
  imageHosts?: readonly string[];
  /** Log prompts, questions and instructions. Default: no. */
  logPrompts?: boolean;
  /** `true`: log to standard output; or an object of pino options. Default: no log. */
  logger?: boolean | object;
  /**
   * The proxies in front whose `X-Forwarded-*` headers are trusted: their addresses (`"10.0.0.7"`, `"10.0.0.0/8"`,
   * `"loopback"`), or how many there are in a row; `true`: one. With only a number, make sure that nobody else can
   * reach the server. Default: none.
   */
  trustProxy?: boolean | number | readonly string[];
  /** Serve the page at `/`. Default: yes. */
  page?: boolean;
  /** Model name in requests. Default: the name of the checkpoint's directory. */
  modelName?: string;
}

export type ServerSettings = Required<Omit<ServerOptions, "maxSteps" | "rateLimit" | "modelName">> &
  Pick<ServerOptions, "maxSteps" | "rateLimit" | "modelName">;

export const SERVER_DEFAULTS: ServerSettings = {
  apiKeys: [],
  maxBodyBytes: 20 * 2 ** 20,
  maxPixels: 16_000_000,
  maxPromptLength: 4000,
  maxImages: 10,
  maxRequests: 256,
  stallTimeout: 30,
  requestTimeout: 600,
  receiveTimeout: 60,
  corsOrigins: [],
  imageHosts: [],
  logPrompts: false,
  logger: false,
  trustProxy: false,
  page: true,
};

export const SERVER_COUNTS = {
  maxBodyBytes: { min: 1024, max: 2 ** 31 },
  maxPixels: { min: 1, max: MAX_PIXELS },
  maxPromptLength: { min: 1, max: 10_000_000 },
  maxImages: { min: 1, max: 1000 },
  maxSteps: { min: 1, max: 1_000_000 },
  // More than the most that a model can have of maxSequences and maxQueue together.
  maxRequests: { min: 1, max: 2_000_000_000 },
  stallTimeout: { min: 1, max: 86_400 },
  requestTimeout: { min: 1, max: 86_400 },
  receiveTimeout: { min: 1, max: 86_400 },
  rateLimit: { min: 1, max: 1_000_000_000 },
} as const satisfies Partial<Record<keyof ServerOptions, NumberRange>>;
const LISTS = ["apiKeys", "corsOrigins", "imageHosts"] as const;
const SWITCHES = ["logPrompts", "page"] as const;

/** An address, or a network as `10.0.0.0/8`. */
function isNetwork(text: string): boolean {
  const [, address, bits] = /^([^/]+)(?:\/(\d{1,3}))?$/.exec(text) ?? [];
  const version = isIP(address ?? "");
  return version !== 0 && Number(bits ?? 0) <= (version === 4 ? 32 : 128);
}

function checkProxies(value: unknown): void {
  if (value === undefined || typeof value === "boolean") return;
  if (typeof value === "number") {
    integerOption("trustProxy", value, { min: 0, max: 100 });
    return;
  }
  const names = Object.keys(NAMED_NETWORKS);
  const known = (item: unknown) =>
    typeof item === "string" && (names.includes(item) || isNetwork(item));
  if (!Array.isArray(value) || value.length === 0 || !value.every(known)) {
    throw invalidOption(
      `a boolean, a number of proxies, or an array of addresses, networks and ${names.join(", ")}`,
      "trustProxy",
      value,
    );
  }
}

/** Throws `INVALID_OPTION`. */
export function serverSettings(given: ServerOptions | undefined): ServerSettings {
  const names = [...Object.keys(SERVER_DEFAULTS), "maxSteps", "rateLimit", "modelName"];
  const options = optionsObject(given, names as (keyof ServerOptions)[]);
  for (const [name, range] of Object.entries(SERVER_COUNTS)) {
    const value = options[name as keyof ServerOptions];
    if (value !== undefined) integerOption(name, value, range);
  }
  for (const name of LISTS) {
    const value = options[name];
    if (value === undefined) continue;
    if (!Array.isArray(value) || !value.every((item) => typeof item === "string" && item !== "")) {
      throw invalidOption("an array of strings that are not empty", name, value);
    }
  }
  for (const name of SWITCHES) {
    const value = options[name];
    if (value !== undefined) booleanOption(name, value);
  }
  checkProxies(options.trustProxy);
  if (options.modelName !== undefined) stringOption("modelName", options.modelName);
  return { ...SERVER_DEFAULTS, ...definedOf(options) };
}
