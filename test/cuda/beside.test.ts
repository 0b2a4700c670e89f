/**
 * Launches beside each other (`Queue::together`): the diffusion head's modulations of the next steps, on processors that
 * those at work leave idle. The simulation runs them in the order in which they are issued, those of a graph in any
 * order that its branches allow.
 */
import { Random } from "../support/numbers";
import {
  type Backend,
  type DiffusionToken,
  expectSameBits,
  simulate,
  simulatedLibrary,
  withBackend,
} from "../support/ops";
import { bf16Head, middleSteps, randomTokens } from "./cases/diffusion";

const BF16 = { library: simulatedLibrary, compute: "bf16" } as const;
/** On Hopper a team has 16 processors; of 20 it leaves enough idle. */
const [ALL, SOME] = [
  { capability: 90, processors: 16 },
  { capability: 90, processors: 20 },
];

afterEach(() => simulate());

test("modulations computed ahead change no bits, whichever come first", () => {
  const random = new Random(5);
  const shape = { width: 256, depth: 1, channels: 4, condition: 8, flow: false, rows: 18 };
  const head = bf16Head(random, shape);
  const z = random.matrix(9, shape.condition);
  // A team of 30 rows, of which modulations of 5 steps are held twice: three runs of steps.
  const steps = middleSteps(shape.flow, 12);
  const tokens = randomTokens(random, shape.rows, z.rows);
  const sample = (backend: Backend, some: DiffusionToken[], times = 1) =>
    backend.diffusionSample({ head, z, steps, tokens: some, times });

  simulate(ALL);
  const apart = withBackend(BF16, (backend) => {
    const latents = sample(backend, tokens);
    expect(backend.forks()).toBe(0);
    return latents;
  });
  simulate(SOME);
  withBackend(BF16, (backend) => {
    const [times, before] = [5, backend.graphs()];
    const together = sample(backend, tokens, times);
    // The first list begins with the inputs' copies, the second is issued launch by launch.
    expect(backend.graphs() - before).toBe(times - 2);
    // Beside the first and the second of three runs of steps.
    expect(backend.forks()).toBe(2 * times);
    for (let i = 0; i < times; i++)
      expectSameBits(together.slice(i * apart.length, (i + 1) * apart.length), apart);
    const alone = sample(backend, tokens.slice(0, 1));
    expectSameBits(alone, apart.slice(0, alone.length));
  });
});
