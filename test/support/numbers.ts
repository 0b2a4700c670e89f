/** Random input for the operation tests, the stored number formats, and comparison with stated bounds. */
import type { Matrix, StoredType, Weight } from "./ops";

// Globals are slow to look up inside of a test.
const { abs, cos, floor, imul, log, log2, max, sqrt } = Math;
const TWO_PI = 2 * Math.PI;

/** Half a unit in the last place of 1 in float32: the largest relative error of one rounding. */
export const UNIT_ROUNDOFF = 2 ** -24;

/** Numbers that are drawn one by one; of more, stretches of so many are repeated. */
const DRAWS = 1 << 16;
const STRETCH = 100;

/**
 * A seeded generator (splitmix32). Without a seed it takes one from the clock; `seed` says which, and
 * failing tests name it.
 */
export class Random {
  readonly seed: number;
  private state: number;
  private normals?: Float32Array;

  constructor(seed = (Date.now() ^ (process.pid << 16)) >>> 0) {
    this.seed = seed;
    this.state = seed;
  }

  /** A uint32. */
  bits(): number {
    this.state = (this.state + 0x9e3779b9) | 0;
    let t = this.state ^ (this.state >>> 16);
    t = imul(t, 0x21f0aaad);
    t ^= t >>> 15;
    t = imul(t, 0x735a2d97);
    return (t ^ (t >>> 15)) >>> 0;
  }

  /** In (0, 1). */
  uniform(): number {
    return (this.bits() + 0.5) / 2 ** 32;
  }

  /** A whole number in [0, below). */
  integer(below: number): number {
    return floor(this.uniform() * below);
  }

  normal(): number {
    return sqrt(-2 * log(this.uniform())) * cos(TWO_PI * this.uniform());
  }

  /**
   * Normal draws times `scale`, plus `mean`. Of many, each stretch is one of a table of draws, at a place and with a sign
   * of its own: so many millions would take longer to draw than to compute with.
   */
  floats(count: number, scale = 1, mean = 0): Float32Array {
    const out = new Float32Array(count);
    if (count <= DRAWS) {
      for (let i = 0; i < count; i++) out[i] = mean + scale * this.normal();
      return out;
    }
    this.normals ??= this.floats(DRAWS);
    for (let begin = 0; begin < count; begin += STRETCH) {
      const bits = this.bits();
      const from = bits % (DRAWS - STRETCH);
      const signed = bits >>> 31 ? -scale : scale;
      const end = Math.min(count, begin + STRETCH);
      for (let i = begin, k = from; i < end; i++, k++) out[i] = mean + signed * this.normals[k]!;
    }
    return out;
  }

  matrix(rows: number, cols: number, scale = 1, stride?: number): Matrix {
    const data = this.floats(rows * (stride ?? cols), scale);
    return stride === undefined ? { data, rows, cols } : { data, rows, cols, stride };
  }

  weight(type: StoredType, rows: number, cols: number, scale = 1): Weight {
    return stored(type, this.floats(rows * cols, scale), rows, cols);
  }
}

/** Bodies that a running test made and did not run: it would pass whatever they say. */
let unrun = 0;
// On a device this file is loaded without jest.
if (typeof afterEach === "function") {
  beforeEach(() => {
    unrun = 0;
  });
  afterEach(() => {
    if (unrun > 0) throw new Error(`${unrun} of the bodies of withRandom never ran`);
  });
}

/**
 * A test body with fresh random input, which names the seed where it fails: the function of a test, or to be called
 * within one.
 */
export function withRandom<Result extends void | Promise<void>>(
  body: (random: Random) => Result,
): () => Result {
  unrun++;
  let ran = false;
  return () => {
    if (!ran) unrun--;
    ran = true;
    const random = new Random();
    const named = (error: unknown): never => {
      if (error instanceof Error) error.message = `random seed ${random.seed}: ${error.message}`;
      throw error;
    };
    try {
      const result = body(random);
      return (result instanceof Promise ? result.catch(named) : result) as Result;
    } catch (error) {
      return named(error);
    }
  };
}

// ---- stored number formats ----

const floatBits = new Uint32Array(1);
const floatValue = new Float32Array(floatBits.buffer);

/** Round to nearest even. */
export function toBFloat16(value: number): number {
  floatValue[0] = value;
  const bits = floatBits[0]!;
  return ((bits + 0x7fff + ((bits >>> 16) & 1)) >>> 16) & 0xffff;
}

export function fromBFloat16(bits: number): number {
  floatBits[0] = bits << 16;
  return floatValue[0]!;
}

/** Round to nearest even; overflow gives infinity. */
export function toFloat16(value: number): number {
  const sign = value < 0 || Object.is(value, -0) ? 0x8000 : 0;
  const a = abs(value);
  if (a >= 65520) return sign | 0x7c00;
  const exponent = max(floor(log2(a || 2 ** -30)), -14);
  const unit = 2 ** (exponent - 10);
  const exact = a / unit;
  let whole = floor(exact);
  const rest = exact - whole;
  if (rest > 0.5 || (rest === 0.5 && whole % 2 === 1)) whole += 1;
  // The exponent field adds to the leading bit of normal numbers; a carry moves it up by itself.
  return sign | (whole + (whole >= 1024 ? (exponent + 14) * 1024 : 0));
}

export function fromFloat16(bits: number): number {
  const sign = bits & 0x8000 ? -1 : 1;
  const exponent = (bits >> 10) & 31;
  const fraction = bits & 1023;
  if (exponent === 31) return fraction ? Number.NaN : sign * Number.POSITIVE_INFINITY;
  return sign * (exponent ? (1024 + fraction) * 2 ** (exponent - 25) : fraction * 2 ** -24);
}

/** Values rounded to a stored type. */
export function stored(
  type: StoredType,
  values: Float32Array,
  rows: number,
  cols = values.length / rows,
): Weight {
  if (type === "f32") return { data: values, type, rows, cols };
  // Loops: Uint16Array.from() takes ten times as long.
  const data = new Uint16Array(values.length);
  if (type === "f16") for (let i = 0; i < data.length; i++) data[i] = toFloat16(values[i]!);
  else for (let i = 0; i < data.length; i++) data[i] = toBFloat16(values[i]!);
  return { data, type, rows, cols };
}

/** What a weight's elements are, exactly. */
export function valuesOf(weight: Weight): Float64Array<ArrayBuffer> {
  const { type, rows, cols } = weight;
  const bytes = new Uint8Array(weight.data.buffer, weight.data.byteOffset, weight.data.byteLength);
  const aligned = bytes.slice().buffer;
  const count = rows * cols;
  if (type === "f32") return Float64Array.from(new Float32Array(aligned, 0, count));
  const decode = type === "f16" ? fromFloat16 : fromBFloat16;
  return Float64Array.from(new Uint16Array(aligned, 0, count), (bits) => decode(bits));
}

/** The same weight at an odd address, as a mapped safetensors file may have it. */
export function misaligned(weight: Weight): Weight {
  const bytes = new Uint8Array(weight.data.buffer, weight.data.byteOffset, weight.data.byteLength);
  const moved = new Uint8Array(bytes.length + 1).subarray(1);
  moved.set(bytes);
  return { ...weight, data: moved };
}

// ---- matrices ----

/** The elements of a matrix without the gaps between its rows. */
export function packed(matrix: Matrix): Float64Array {
  const { data, rows, cols, stride = cols } = matrix;
  const out = new Float64Array(rows * cols);
  for (let r = 0; r < rows; r++)
    for (let c = 0; c < cols; c++) out[r * cols + c] = data[r * stride + c]!;
  return out;
}

/** Rows [first, first + count) as a matrix of their own. */
export function rowsOf(matrix: Matrix, first: number, count: number): Matrix {
  const { data, cols, stride = cols } = matrix;
  return { data: data.slice(first * stride, (first + count) * stride), rows: count, cols, stride };
}

// ---- comparison ----

/**
 * A bound for the error of a float32 dot product of `k` terms whose magnitudes sum to `magnitude`. In the
 * worst case every one of k additions errs by a unit roundoff of the whole; errors are independent, so
 * their sum grows with sqrt(k), and 8 covers the roundings of the terms and the tail of the distribution.
 */
export function dotBound(k: number, magnitude: number): number {
  return UNIT_ROUNDOFF * (sqrt(k) + 8) * magnitude;
}

/**
 * Every element within its bound: one number for all, or one per element. Elements that are not numbers
 * fail, and so does every gap where a bound is none: missing, not a number or negative.
 */
export function expectClose(
  actual: Float32Array | Float64Array,
  expected: ArrayLike<number>,
  bound: number | ArrayLike<number>,
): void {
  expect(actual.length).toBe(expected.length);
  let worst = -1;
  let worstRatio = 1;
  for (let i = 0; i < actual.length; i++) {
    const allowed = typeof bound === "number" ? bound : bound[i]!;
    const gap = abs(actual[i]! - expected[i]!);
    const ratio = gap === 0 ? 0 : allowed > 0 ? gap / allowed : Number.POSITIVE_INFINITY;
    if (Number.isNaN(gap) || ratio > worstRatio) {
      worst = i;
      if (Number.isNaN(gap)) break;
      worstRatio = ratio;
    }
  }
  if (worst >= 0) {
    const allowed = typeof bound === "number" ? bound : bound[worst]!;
    throw new Error(
      `element ${worst} of ${actual.length} is ${actual[worst]}, expected ${expected[worst]} within ${allowed}`,
    );
  }
}
