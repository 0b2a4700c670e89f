/** What the suite "scenes" consists of; apart, because the command line names the parts before it loads them. */
export const SUITE_PARTS = [
  "generation",
  "held-out",
  "captions",
  "answers",
  "edits",
  "vae",
  "frechet",
] as const;
export type SuitePart = (typeof SUITE_PARTS)[number];
