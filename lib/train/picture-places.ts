/** Where prepared pictures are kept, in little memory: there may be many millions of them. */
import { createHash } from "node:crypto";

export interface Place {
  /** The number of the pack. */
  pack: number;
  slot: number;
}

/** Bytes of a digest: of a thousand million pictures no two have the same. */
const DIGEST_BYTES = 12;
/** More slots than a pack has; numbers are whole up to 2⁵³. */
const SLOTS = 2 ** 32;

export class PicturePlaces {
  /** By the first letter of a digest, for a map takes 2²⁴ entries at most. */
  private readonly maps = new Map<string, Map<string, number>>();

  get(key: string): Place | undefined {
    const digest = digestOf(key);
    const place = this.maps.get(digest.charAt(0))?.get(digest);
    return place === undefined
      ? undefined
      : { pack: Math.floor(place / SLOTS), slot: place % SLOTS };
  }

  set(key: string, { pack, slot }: Place): void {
    const digest = digestOf(key);
    const first = digest.charAt(0);
    const map = this.maps.get(first) ?? new Map<string, number>();
    this.maps.set(first, map);
    map.set(digest, pack * SLOTS + slot);
  }
}

const digestOf = (key: string): string =>
  createHash("sha256").update(key).digest().toString("base64", 0, DIGEST_BYTES);
