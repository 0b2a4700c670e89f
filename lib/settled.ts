/** Work that is done in full although some of it fails. */

/** Waits for all to end, then throws what the first of those that failed did: what is to be closed is closed. */
export async function allSettled(work: readonly (Promise<unknown> | undefined)[]): Promise<void> {
  for (const result of await Promise.allSettled(work))
    if (result.status === "rejected") throw result.reason;
}
