/** Names of the files that jobs leave: unique by the index, in the order of their records. */

import { HALF_WRITTEN_ENDING } from "../write-whole.js";

const padded = (index: number): string => String(index).padStart(7, "0");

/** The name of a job's picture, readable by the id. */
export const pictureName = ({ index, id }: { index: number; id?: string }, extension: string) =>
  `${padded(index)}${id === undefined ? "" : `-${id}`}.${extension}`;

/** The name of a job's own file of results, in a queue's run. */
export const resultName = (index: number): string => `${padded(index)}.json`;

/** Matches a `resultName`. */
export const RESULT_NAME = /^\d{7,}\.json$/;

/** Matches names of files that were being written when their process was killed, and their index; of all jobs or one. */
export const halfWritten = (index?: number): RegExp =>
  new RegExp(
    `^(${index === undefined ? "\\d{7,}" : padded(index)})(-[\\w.-]+)?\\.(png|webp|jpe?g|json)${HALF_WRITTEN_ENDING}$`,
  );
