/** Sizes at which a part of another model may be taken although its own are others. */
import type { ExpectedTensor } from "../checkpoint/tensor-table.js";

export interface Resizing {
  /** The field of the part's configuration that may differ, and in which direction. */
  field: string;
  bound: "at least" | "at most";
  /** The shape that the part has of a tensor that is asked for; undefined: it has none, and a fresh one is taken. */
  ownShape(tensor: ExpectedTensor): number[] | undefined;
  /** A tensor's values in the shape that is asked for; `read` gives the part's own. */
  fit(tensor: ExpectedTensor, read: (name: string) => Promise<Float32Array>): Promise<Float32Array>;
}

/** More blocks of the diffusion head: a fresh one begins as the identity (`initialize.ts`), so it draws as before. */
export function deeperHead(depth: number): Resizing {
  const block = /^diffusion_head\.res_blocks\.(\d+)\./;
  return {
    field: "depth",
    bound: "at least",
    ownShape: ({ name, shape }) =>
      Number(block.exec(name)?.[1] ?? -1) < depth ? shape : undefined,
    fit: ({ name }, read) => read(name),
  };
}

/**
 * Fewer hidden units in the decoder's feed-forward layers. Those are left out that write least: by the product of
 * the lengths of a unit's row of the gate, row of the up projection and column of the down projection.
 */
export function narrowerMlp(units: number): Resizing {
  const projection = /^(language_model\.layers\.\d+\.mlp\.)(gate|up|down)_proj\.weight$/;
  const kept = new Map<string, Promise<number[]>>();
  return {
    field: "intermediate_size",
    bound: "at most",
    ownShape({ name, shape }) {
      const [, , kind] = projection.exec(name) ?? [];
      if (kind === undefined) return shape;
      const [rows, columns] = shape as [number, number];
      return kind === "down" ? [rows, units] : [units, columns];
    },
    async fit({ name, shape }, read) {
      const values = await read(name);
      const [, layer, kind] = projection.exec(name) ?? [];
      if (layer === undefined || values.length === shape[0]! * shape[1]!) return values;
      const [rows, columns] = shape as [number, number];
      if (!kept.has(layer))
        kept.set(layer, strongest(layer, kind === "down" ? columns : rows, read));
      const chosen = (await kept.get(layer)) as number[];
      if (kind === "down")
        return Float32Array.from(
          { length: rows * columns },
          (_, i) => values[Math.floor(i / columns) * units + chosen[i % columns]!]!,
        );
      return Float32Array.from(
        { length: rows * columns },
        (_, i) => values[chosen[Math.floor(i / columns)]! * columns + (i % columns)]!,
      );
    },
  };

  /** The `count` strongest units of a layer, in their order. */
  async function strongest(
    layer: string,
    count: number,
    read: (name: string) => Promise<Float32Array>,
  ): Promise<number[]> {
    const [gate, up, down] = await Promise.all(
      ["gate", "up", "down"].map((kind) => read(`${layer}${kind}_proj.weight`)),
    );
    const width = gate!.length / units;
    const strength = Array.from({ length: units }, (_, unit) => {
      const squares = [0, 0, 0];
      for (let i = 0; i < width; i++) {
        squares[0]! += gate![unit * width + i]! ** 2;
        squares[1]! += up![unit * width + i]! ** 2;
        squares[2]! += down![i * units + unit]! ** 2;
      }
      return squares[0]! * squares[1]! * squares[2]!;
    });
    return Array.from({ length: units }, (_, unit) => unit)
      .sort((a, b) => strength[b]! - strength[a]! || a - b)
      .slice(0, count)
      .sort((a, b) => a - b);
  }
}
