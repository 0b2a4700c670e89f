/** Proxies in front of the server, of which what they say about a request is believed. */

import type { IncomingMessage } from "node:http";
import { BlockList, isIP } from "node:net";
import type { ServerSettings } from "./options.js";

/** Whether the sender is one of the proxies; `hop`: how many lie between it and this server. */
export type Trust = (address: string | undefined, hop: number) => boolean;

/** Names that stand for networks. */
export const NAMED_NETWORKS: Readonly<Record<string, readonly string[]>> = {
  loopback: ["127.0.0.0/8", "::1/128"],
  linklocal: ["169.254.0.0/16", "fe80::/10"],
  uniquelocal: ["10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "fc00::/7"],
};

const familyOf = (address: string) => (isIP(address) === 4 ? "ipv4" : "ipv6");

/** Never all of `X-Forwarded-For`: what its sender wrote there comes first. */
export function trustedProxies({ trustProxy }: ServerSettings): Trust {
  if (typeof trustProxy !== "object") {
    const hops = Number(trustProxy);
    return (_address, hop) => hop < hops;
  }
  const list = new BlockList();
  for (const network of trustProxy.flatMap((item) => NAMED_NETWORKS[item] ?? [item])) {
    const [address, bits] = network.split("/") as [string, string?];
    const family = familyOf(address);
    list.addSubnet(address, Number(bits ?? (family === "ipv4" ? 32 : 128)), family);
  }
  return (given = "") => {
    // Without the interface, which link-local addresses may have.
    const address = given.replace(/%.*$/, "");
    return isIP(address) !== 0 && list.check(address, familyOf(address));
  };
}

/** Numbers requests; a proxy's own id is kept, so that its log and this one can be read together. */
export function requestIds(trusted: Trust): (request: IncomingMessage) => string {
  let count = 0;
  return ({ headers, socket }) => {
    const given = headers["x-request-id"];
    if (typeof given === "string" && given !== "" && trusted(socket.remoteAddress, 0)) return given;
    count++;
    return `req-${count.toString(36)}`;
  };
}
