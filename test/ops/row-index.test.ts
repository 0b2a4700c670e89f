/** Rows taken from tables and gradients given back to them, and patches of images. */
import { matrix } from "../support/gradients";
import { dotBound, expectClose, withRandom } from "../support/numbers";
import { describeBackends } from "../support/ops";

const { floor } = Math;

describeBackends("rows by index, and patches", (backend) => {
  test("gather and scatter: negative indices are left out, equal ones add up", () => {
    withRandom((random) => {
      const [rows, table, cols] = [9, 4, 70];
      const index = Int32Array.of(2, -1, 0, 2, 2, 3, -1, 0, 2);
      const [t, start, dout, from] = [
        random.floats(table * cols),
        random.floats(rows * cols),
        random.floats(rows * cols),
        random.floats(table * cols),
      ];
      const scale = 1.5;
      const { out, dtable } = backend().training({
        name: "gatherRows",
        index,
        scale,
        table: matrix(t, table, cols),
        start: matrix(start.slice(), rows, cols),
        dout: matrix(dout, rows, cols),
        startTable: matrix(from.slice(), table, cols),
      });
      const wanted = Float64Array.from(start);
      const gradient = Float64Array.from(from);
      for (const [i, at] of index.entries())
        for (let c = 0; at >= 0 && c < cols; c++) {
          wanted[i * cols + c] = wanted[i * cols + c]! + scale * t[at * cols + c]!;
          gradient[at * cols + c] = gradient[at * cols + c]! + scale * dout[i * cols + c]!;
        }
      expectClose(out!, wanted, 1e-6);
      expectClose(dtable!, gradient, 3e-6);
    })();
  });

  test.each([
    [3, 1, 1, 1, 1],
    [3, 2, 1, 0, 1],
    [3, 1, 2, 1, 1],
    [1, 1, 1, 0, 0],
  ])(
    "kernel %d, stride %d, enlarged %d, padding %d and %d",
    (kernel, stride, upsample, padBefore, padAfter) => {
      withRandom((random) => {
        const [images, height, width, channels] = [2, 4, 6, 5];
        const side = (n: number) =>
          floor((n * upsample + padBefore + padAfter - kernel) / stride) + 1;
        const [rows, cols] = [images * side(height) * side(width), kernel * kernel * channels];
        const x = random.floats(images * height * width * channels);
        const dout = random.floats(rows * cols);
        const start = random.floats(x.length);
        const { out, dx } = backend().training({
          name: "patches",
          x: matrix(x, images * height * width, channels),
          dout: matrix(dout, rows, cols),
          start: matrix(start.slice(), images * height * width, channels),
          images,
          height,
          width,
          upsample,
          kernel,
          stride,
          padBefore,
          padAfter,
        });
        const wanted = new Float64Array(rows * cols);
        const gradient = Float64Array.from(start);
        for (let r = 0; r < rows; r++) {
          const image = floor(r / (side(height) * side(width)));
          const [oy, ox] = [floor(r / side(width)) % side(height), r % side(width)];
          for (let n = 0; n < cols; n++) {
            const c = n % channels;
            const tap = floor(n / channels);
            const sy = oy * stride + floor(tap / kernel) - padBefore;
            const sx = ox * stride + (tap % kernel) - padBefore;
            if (sy < 0 || sx < 0 || sy >= height * upsample || sx >= width * upsample) continue;
            const at =
              ((image * height + floor(sy / upsample)) * width + floor(sx / upsample)) * channels +
              c;
            wanted[r * cols + n] = x[at]!;
            gradient[at] = gradient[at]! + dout[r * cols + n]!;
          }
        }
        expectClose(out!, wanted, 0);
        // At most 36 terms of size 4.
        expectClose(dx!, gradient, dotBound(36, 64));
      })();
    },
  );
});
