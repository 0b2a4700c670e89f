/** Which pages may call: browsers send what any page asks them to, with what it may not know of this machine. */

import { type AddressInfo, BlockList, isIP } from "node:net";
import type { FastifyInstance, FastifyRequest } from "fastify";
import { HttpError } from "./http-error.js";
import type { ServerSettings } from "./options.js";

/**
 * A form can be sent to any server by any page, which need not ask first as it must for JSON. Browsers tell at
 * least where it comes from: all of them in `Origin`, and to hosts that they hold for safe in `Sec-Fetch-Site`,
 * which knows its own origin also where a proxy hides from us that there is TLS.
 */
export function refuseOtherOrigins(request: FastifyRequest, { corsOrigins }: ServerSettings): void {
  const { origin, "sec-fetch-site": site } = request.headers;
  if (site === "same-origin" || site === "none" || corsOrigins.includes("*")) return;
  // No browser, which sends an origin with every body.
  if (origin === undefined && site === undefined) return;
  if (origin !== undefined && (corsOrigins.includes(origin) || isOwn(request, origin))) return;
  throw new HttpError(403, "ORIGIN_REFUSED", "pages of other origins may not call this server");
}

function isOwn({ protocol, host }: FastifyRequest, origin: string): boolean {
  const own = `${protocol}://${host}`;
  // Without a port that is the scheme's own, as browsers write origins.
  return URL.canParse(own) && new URL(own).origin === origin;
}

/**
 * To a browser, a page whose name is made to point to this machine after it was loaded is of this server's own origin.
 * Where only this machine is served, without a key and by no proxy, the name is what tells it: others can give a page
 * neither an address nor `localhost`.
 */
export function refuseOtherHosts(
  app: FastifyInstance,
  { headers: { host } }: FastifyRequest,
  { corsOrigins, trustProxy }: ServerSettings,
): void {
  // No browser, which sends a host with every request.
  if (host === undefined || trustProxy || corsOrigins.includes("*")) return;
  if (isOfThisMachine(host) || !listensToThisMachine(app)) return;
  const message = `expected localhost or an address as host but received ${JSON.stringify(host)}`;
  throw new HttpError(403, "ORIGIN_REFUSED", message);
}

function isOfThisMachine(host: string): boolean {
  if (!URL.canParse(`http://${host}`)) return false;
  const { hostname } = new URL(`http://${host}`);
  return isIP(hostname.replace(/^\[|\]$/g, "")) !== 0 || /^(.+\.)?localhost\.?$/.test(hostname);
}

const LOOPBACK = new BlockList();
LOOPBACK.addSubnet("127.0.0.0", 8, "ipv4");
LOOPBACK.addAddress("::1", "ipv6");

/** Whether it listens, and to the loopback alone. */
function listensToThisMachine(app: FastifyInstance): boolean {
  const addresses = app.addresses();
  const isLoopback = (bound: AddressInfo | string) => {
    // A Unix socket is there for a proxy.
    if (typeof bound === "string") return false;
    return LOOPBACK.check(bound.address, isIP(bound.address) === 4 ? "ipv4" : "ipv6");
  };
  return addresses.length > 0 && addresses.every(isLoopback);
}
