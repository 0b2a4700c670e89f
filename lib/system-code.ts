/** What the system says of a call that failed. */

/** The code of an error of the system's own, such as `EMFILE`; of others, undefined. */
export function systemCode(error: unknown): string | undefined {
  const { code, errno, syscall } = (error ?? {}) as Partial<NodeJS.ErrnoException>;
  // zlib's errors have a number as well, and are of no call.
  return errno !== undefined && syscall !== undefined ? code : undefined;
}
