/**
 * Images of other hosts, for those that an operator has allowed. A server that fetches addresses which its
 * clients choose can be made to reach what only it can reach; so: listed hosts alone, no redirects, and the
 * address that was checked is the one that is connected to, whatever the name means a moment later.
 */

import { lookup as resolveName } from "node:dns";
import { get as httpGet, type IncomingMessage } from "node:http";
import { get as httpsGet } from "node:https";
import { BlockList, isIP, type LookupFunction } from "node:net";
import { underEach } from "../abort.js";
import { HttpError } from "./http-error.js";

/** Addresses that are not of the public network (IANA's special-purpose registries). */
const PRIVATE = new BlockList();
for (const [network, prefix] of [
  ["0.0.0.0", 8],
  ["10.0.0.0", 8],
  ["100.64.0.0", 10],
  ["127.0.0.0", 8],
  ["169.254.0.0", 16],
  ["172.16.0.0", 12],
  ["192.0.0.0", 24],
  ["192.0.2.0", 24],
  ["192.88.99.0", 24],
  ["192.168.0.0", 16],
  ["198.18.0.0", 15],
  ["198.51.100.0", 24],
  ["203.0.113.0", 24],
  ["224.0.0.0", 4],
  ["240.0.0.0", 4],
] as const) {
  PRIVATE.addSubnet(network, prefix, "ipv4");
}
/** Of IPv6 only global unicast is public, less what embeds or tunnels other addresses, and documentation. */
const GLOBAL_V6 = new BlockList();
GLOBAL_V6.addSubnet("2000::", 3, "ipv6");
const SPECIAL_V6 = new BlockList();
for (const [network, prefix] of [
  ["2001::", 23],
  ["2001:db8::", 32],
  ["2002::", 16],
  ["3fff::", 20],
] as const) {
  SPECIAL_V6.addSubnet(network, prefix, "ipv6");
}

/** Whether an IP address belongs to the public network. */
export function isPublicAddress(address: string): boolean {
  switch (isIP(address)) {
    case 4:
      return !PRIVATE.check(address, "ipv4");
    case 6:
      return GLOBAL_V6.check(address, "ipv6") && !SPECIAL_V6.check(address, "ipv6");
    default:
      return false;
  }
}

export interface RemoteImageOptions {
  /** Hosts that may be asked. */
  hosts: readonly string[];
  /** Bytes that an image may have. */
  maxBytes: number;
  /** Milliseconds for all of it. */
  timeout: number;
  signal?: AbortSignal;
  /** Whether an address may be connected to; for tests. */
  allowAddress?: (address: string) => boolean;
  /** How names are resolved; for tests. */
  lookup?: typeof resolveName;
}

const refused = (message: string) => new HttpError(422, "IMAGE_URL_REFUSED", message);
const failed = (message: string) => new HttpError(422, "IMAGE_URL_FAILED", message);

/** The bytes at an `http:` or `https:` address. Throws `HttpError` 422, or 413 for too many bytes. */
export async function fetchRemoteImage(text: string, options: RemoteImageOptions): Promise<Buffer> {
  const { hosts, maxBytes, timeout, signal, allowAddress = isPublicAddress } = options;
  let url: URL;
  try {
    url = new URL(text);
  } catch {
    throw refused("expected a data URL, or the URL of an image");
  }
  if (url.protocol !== "http:" && url.protocol !== "https:") {
    throw refused(`expected a data:, https: or http: URL but received ${url.protocol}`);
  }
  if (url.username !== "" || url.password !== "") throw refused("a URL with a user is not fetched");
  if (hosts.length === 0) throw refused("this server fetches no images: send it as a data URL");
  if (!hosts.some((host) => isOf(url, host))) {
    throw refused(`this server fetches no images from ${url.host}`);
  }
  // The parser has made 127.0.0.1 of 0x7f.1, 2130706433 and the like by now. Names go through `lookup`.
  const literal = url.hostname.replace(/^\[|\]$/g, "");
  if (isIP(literal) && !allowAddress(literal)) {
    throw refused(`${literal} is not an address of the public network`);
  }
  const deadline = AbortSignal.timeout(timeout);
  const lookup = checkedLookup(allowAddress, options.lookup);
  try {
    return await underEach([signal, deadline], (ends) => download(url, lookup, maxBytes, ends));
  } catch (error) {
    signal?.throwIfAborted();
    if (error instanceof HttpError) throw error;
    if (deadline.aborted) throw failed(`${url.host} did not send the image in ${timeout} ms`);
    throw failed(`${url.host}: ${(error as Error).message}`);
  }
}

/** Whether a URL is of a listed host; of any port, unless the list has one. */
function isOf(url: URL, host: string): boolean {
  // The same parser writes names in one way, and leaves out the port that the scheme has anyway.
  const text = `${url.protocol}//${host}`;
  if (!URL.canParse(text)) return false;
  const listed = new URL(text);
  return /:\d+$/.test(host) ? listed.host === url.host : listed.hostname === url.hostname;
}

/** Resolves a name and gives on only addresses that may be connected to. */
function checkedLookup(
  allowAddress: (address: string) => boolean,
  lookup: typeof resolveName = resolveName,
): LookupFunction {
  return (hostname, options, callback) => {
    lookup(hostname, { ...options, all: true }, (error, addresses) => {
      if (error) return callback(error, "", 0);
      const bad = addresses.find(({ address }) => !allowAddress(address));
      const [first] = addresses;
      if (bad || !first) {
        const what = bad ? `${bad.address}, which is not of the public network` : "nothing";
        return callback(refused(`${hostname} resolves to ${what}`), "", 0);
      }
      if (options.all) callback(null, addresses);
      else callback(null, first.address, first.family);
    });
  };
}

function download(
  url: URL,
  lookup: LookupFunction,
  maxBytes: number,
  signal: AbortSignal,
): Promise<Buffer> {
  const get = url.protocol === "https:" ? httpsGet : httpGet;
  return new Promise((resolve, reject) => {
    const receive = (response: IncomingMessage) => {
      const { statusCode = 0, headers } = response;
      const stop = (error: HttpError) => {
        reject(error);
        response.destroy();
      };
      if (statusCode >= 300 && statusCode < 400) {
        return stop(refused(`${url.host} redirects, which is not followed`));
      }
      if (statusCode !== 200) return stop(failed(`${url.host} answered ${statusCode}`));
      const tooLarge = () => new HttpError(413, "IMAGE_TOO_LARGE", `more than ${maxBytes} bytes`);
      if (Number(headers["content-length"] ?? 0) > maxBytes) return stop(tooLarge());
      const chunks: Buffer[] = [];
      let bytes = 0;
      response.on("data", (chunk: Buffer) => {
        bytes += chunk.length;
        if (bytes > maxBytes) stop(tooLarge());
        else chunks.push(chunk);
      });
      response.once("end", () => resolve(Buffer.concat(chunks)));
      response.once("error", reject);
    };
    // A fresh connection each time: a kept one would be to an address that was checked for another request.
    get(url, { lookup, signal, agent: false, headers: { accept: "image/*" } }, receive).once(
      "error",
      reject,
    );
  });
}
