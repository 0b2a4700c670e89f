/** Matrix products of training against float64: every transposition, sums, biases, bfloat16 operands. */
import {
  dotBound,
  expectClose,
  fromBFloat16,
  packed,
  toBFloat16,
  UNIT_ROUNDOFF,
  withRandom,
} from "../support/numbers";
import {
  type Backend,
  backendCases,
  describeBackends,
  expectSameEverywhere,
  type Matrix,
  withBackend,
} from "../support/ops";

const { abs } = Math;

describeBackends("gemm", (backend) => {
  const product = (a: Matrix, ta: boolean, b: Matrix, tb: boolean) => {
    const [m, k] = ta ? [a.cols, a.rows] : [a.rows, a.cols];
    const n = tb ? b.rows : b.cols;
    const [x, y] = [packed(a), packed(b)];
    const out = new Float64Array(m * n);
    const size = new Float64Array(m * n);
    for (let i = 0; i < m; i++)
      for (let j = 0; j < n; j++)
        for (let c = 0; c < k; c++) {
          const term = x[ta ? c * m + i : i * k + c]! * y[tb ? j * k + c : c * n + j]!;
          out[i * n + j] = out[i * n + j]! + term;
          size[i * n + j] = size[i * n + j]! + abs(term);
        }
    return { out, bound: size.map((s) => dotBound(k, s) + UNIT_ROUNDOFF ** 2) };
  };
  const SHAPES = [
    [1, 1, 1],
    [3, 5, 2],
    [13, 33, 7],
    [37, 29, 41],
    [100, 64, 257],
    // Several blocks of k, and few rows: threads share out columns and the packed rows.
    [29, 140, 530],
    // The rows of a transposed left operand are 2 KiB apart.
    [512, 9, 70],
  ] as const;

  test.each(SHAPES)("%d x %d over %d, either side transposed", (m, n, k) => {
    withRandom((random) => {
      for (const ta of [false, true])
        for (const tb of [false, true]) {
          const [ar, ac] = ta ? [k, m] : [m, k];
          const [br, bc] = tb ? [n, k] : [k, n];
          const a = random.matrix(ar, ac, 1, ac + 3);
          const b = random.matrix(br, bc, 1, bc + 1);
          const args = { name: "gemm", a, b, transposeA: ta, transposeB: tb };
          const { out, bound } = product(a, ta, b, tb);
          expectClose(backend().training(args).out!, out, bound);
          const bias = random.floats(n);
          const start = random.matrix(m, n);
          const sum = out.map((v, i) => v + bias[i % n]! + start.data[i]!);
          expectClose(
            backend().training({ ...args, bias, start }).out!,
            sum,
            bound.map((v, i) => v + 2 * UNIT_ROUNDOFF * (abs(sum[i]!) + abs(bias[i % n]!))),
          );
        }
    })();
  });

  test("bfloat16 rounds the operands, and nothing else", () => {
    withRandom((random) => {
      const round = (x: Matrix) => ({
        ...x,
        data: x.data.map((v) => fromBFloat16(toBFloat16(v))),
      });
      // Beyond and below whole vectors; an odd k leaves half of a pair over; several blocks of k.
      for (const [m, n, k] of [
        [19, 37, 75],
        [5, 7, 32],
        [29, 70, 1061],
      ] as const)
        for (const ta of [false, true])
          for (const tb of [false, true]) {
            const a = ta ? random.matrix(k, m, 1, m + 3) : random.matrix(m, k, 1, k + 3);
            const b = tb ? random.matrix(n, k) : random.matrix(k, n);
            const args = { name: "gemm", a, b, transposeA: ta, transposeB: tb, bf16: true };
            const { out, bound } = product(round(a), ta, round(b), tb);
            expectClose(backend().training(args).out!, out, bound);
          }
    })();
  });
});

test.each([
  [300, 70, 150],
  [40, 200, 1100],
])("the same bits on any number of threads: %d x %d over %d", (m, n, k) => {
  withRandom((random) => {
    for (const transposeA of [false, true])
      for (const transposeB of [false, true]) {
        const a = transposeA ? random.matrix(k, m) : random.matrix(m, k);
        const b = transposeB ? random.matrix(n, k) : random.matrix(k, n);
        const product = (bf16: boolean) => (backend: Backend) =>
          backend.training({ name: "gemm", a, b, transposeA, transposeB, bf16 }).out!;
        expectSameEverywhere(product(false), 1e-5);
        // Processors that multiply pairs of bfloat16 add them up in pairs.
        expectSameEverywhere(product(true), 1e-5);
      }
  })();
});

// The first operation of a backend: no scratch is left from one before.
test.each(backendCases)("nothing to sum up: $name", ({ options }) => {
  withRandom((random) => {
    for (const bf16 of [false, true]) {
      const empty = { name: "gemm", a: random.matrix(3, 0), b: random.matrix(0, 5), bf16 };
      const bias = random.floats(5);
      const start = random.matrix(3, 5);
      const product = (more: object) =>
        withBackend(options, (backend) => backend.training({ ...empty, ...more }).out!);
      expect([...product({})]).toEqual(Array(15).fill(0));
      expect([...product({ bias })]).toEqual([...bias, ...bias, ...bias]);
      expect(product({ start })).toEqual(start.data);
    }
  })();
});
