/** The Fréchet distance between two sets of pictures by the features that a vision tower has of them. */
import { setImmediate } from "node:timers/promises";
import { EigenvalueDecomposition, Matrix } from "ml-matrix";

/** A normal distribution fitted to features. */
export interface FeatureStatistics {
  /** [width] */
  mean: number[];
  /** [width, width], of the sample: divided by n - 1; of a single picture zeros. */
  covariance: Matrix;
}

/** The mean of a picture's rows of features [rows, width]. */
export function pooled(features: Float32Array, width: number): number[] {
  const rows = features.length / width;
  const sums = new Array<number>(width).fill(0);
  features.forEach((value, i) => {
    sums[i % width]! += value;
  });
  return sums.map((sum) => sum / rows);
}

/** Of the pooled features of at least one picture. */
export function statisticsOf(pictures: readonly (readonly number[])[]): FeatureStatistics {
  const n = pictures.length;
  const rows = new Matrix(pictures as number[][]);
  const mean = rows.mean("column");
  const centered = rows.subRowVector(mean);
  return {
    mean,
    covariance: centered
      .transpose()
      .mmul(centered)
      .div(Math.max(1, n - 1)),
  };
}

const eigen = (symmetric: Matrix) =>
  new EigenvalueDecomposition(symmetric, { assumeSymmetric: true });

/** Rounding makes eigenvalues of a singular matrix a little negative. */
const root = (eigenvalue: number) => Math.sqrt(Math.max(0, eigenvalue));

/** Matrices are computed on this thread, for seconds each where features are wide: signals are heard in between. */
async function pause(signal: AbortSignal | undefined): Promise<void> {
  await setImmediate();
  signal?.throwIfAborted();
}

/** Statistics that distances are measured from, with what all of them need. */
export interface ReferenceStatistics extends FeatureStatistics {
  /** The symmetric root of the covariance. */
  root: Matrix;
}

/** Throws the signal's reason. */
export async function asReference(
  statistics: FeatureStatistics,
  signal: AbortSignal | undefined,
): Promise<ReferenceStatistics> {
  await pause(signal);
  const { eigenvectorMatrix: vectors, realEigenvalues } = eigen(statistics.covariance);
  await pause(signal);
  const scaled = vectors.clone().mulRowVector(realEigenvalues.map(root));
  return { ...statistics, root: scaled.mmul(vectors.transpose()) };
}

/**
 * |a - b|^2 + tr(A + B - 2 (AB)^(1/2)) of means a, b and covariances A, B (Dowson and Landau, 1982; the "FID" of
 * 1706.08500). (AB)^(1/2) has the trace of (B^(1/2) A B^(1/2))^(1/2), whose roots are of symmetric matrices. Throws
 * the signal's reason.
 */
export async function frechetDistance(
  a: FeatureStatistics,
  b: ReferenceStatistics,
  signal: AbortSignal | undefined,
): Promise<number> {
  const between = a.mean.reduce((sum, v, i) => sum + (v - b.mean[i]!) ** 2, 0);
  await pause(signal);
  const product = b.root.mmul(a.covariance).mmul(b.root);
  await pause(signal);
  // Symmetric but for rounding.
  const symmetric = Matrix.add(product, product.transpose()).mul(0.5);
  const common = eigen(symmetric).realEigenvalues.reduce((sum, v) => sum + root(v), 0);
  // Never below zero but for rounding.
  return Math.max(0, between + a.covariance.trace() + b.covariance.trace() - 2 * common);
}
