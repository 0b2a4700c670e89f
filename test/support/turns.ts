/** Whether long work on JavaScript's thread lets other work in. */

/** What `work` resolves to, and how many turns of the event loop others had meanwhile. */
export async function turnsDuring<T>(
  work: () => Promise<T>,
): Promise<{ result: T; turns: number }> {
  let turns = 0;
  let immediate: NodeJS.Immediate;
  const turn = () => {
    turns++;
    immediate = setImmediate(turn);
  };
  turn();
  try {
    const result = await work();
    return { result, turns };
  } finally {
    clearImmediate(immediate!);
  }
}
