/** The device that a model is loaded on where memory proves too small while it is loaded. */
import { join } from "node:path";
import type { LoadedAddon } from "../../lib/addon";
import { readCheckpoint } from "../../lib/checkpoint/checkpoint";
import type { Device } from "../../lib/device";
import { loadModel } from "../../lib/load-model";
import { parseLoadOptions } from "../../lib/load-options";
import type { NativeCudaDevice, NativeLoadOptions } from "../../lib/native";
import { FakeNative } from "../support/fake-native";
import { FIXTURES } from "../support/fixtures";

const directory = join(FIXTURES, "unifluid-flow-tiny");
const GiB = 2 ** 30;

beforeAll(() => {
  process.env.UNIFLUID_CUDA_LIBRARY = __filename; // any file that exists
});
afterAll(() => {
  delete process.env.UNIFLUID_CUDA_LIBRARY;
});

/** Loads on a machine of so many GPUs, on the first of which loading fails. */
async function load(
  gpus: number,
  failing: number,
  { device = "auto" as Device, code = "INSUFFICIENT_MEMORY", free = [] as number[] } = {},
) {
  const tried: (number | "cpu")[] = [];
  const asked: number[] = [];
  const devices = Array.from(
    { length: gpus },
    (_, i): NativeCudaDevice => ({
      name: `GPU ${i}`,
      capability: "9.0",
      processors: 100,
      driver: "13.0",
      runtime: "13.0",
      totalMemory: 16 * GiB,
    }),
  );
  const addon = {
    instructionSets: () => [],
    availableMemory: () => 16 * GiB,
    cudaDriverPresent: () => true,
    cudaDevices: async () => devices,
    cudaMemory: async (_: string, index: number) => {
      asked.push(index);
      const bytes = free[index] ?? 8 * GiB;
      return { free: bytes, usable: bytes, overhead: 0 };
    },
    loadModel: async (_: unknown, { cuda }: NativeLoadOptions) => {
      tried.push(cuda?.device ?? "cpu");
      if (cuda && cuda.device < failing)
        return Promise.reject({ code, message: `no room on ${cuda.device}` });
      return new FakeNative(() => {});
    },
  } as unknown as LoadedAddon["addon"];
  const options = parseLoadOptions({ device }, addon);
  const loading = loadModel(await readCheckpoint(directory), { addon, path: "" }, options);
  return {
    tried,
    asked,
    ...(await loading.then(
      ({ chosen }) => ({ chosen }),
      (error) => ({ error }),
    )),
  };
}

test("auto goes on to the next GPU, and asks none behind the one that takes the model", async () => {
  expect(await load(3, 1)).toMatchObject({
    tried: [0, 1],
    asked: [0, 1],
    chosen: { kind: "cuda", index: 1 },
  });
});

test("after the last it is the CPU, and the first says why", async () => {
  expect(await load(2, 2)).toMatchObject({
    tried: [0, 1, "cpu"],
    chosen: {
      kind: "cpu",
      reason: expect.stringMatching(/could not be loaded on GPU 0, .*: no room on 0$/),
    },
  });
  expect(await load(2, 2, { free: [1000] })).toMatchObject({
    tried: [1, "cpu"],
    chosen: { kind: "cpu", reason: expect.stringMatching(/available on GPU 0/) },
  });
});

test("other failures, and those of a GPU that was asked for, are told", async () => {
  expect(await load(2, 1, { code: "DEVICE_ERROR" })).toMatchObject({
    tried: [0],
    error: { code: "DEVICE_ERROR" },
  });
  expect(await load(2, 1, { device: "cuda" })).toMatchObject({
    tried: [0],
    error: { code: "INSUFFICIENT_MEMORY" },
  });
});
