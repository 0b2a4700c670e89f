/** Which device is chosen, and what is said where none can be. */
import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";
import {
  chooseDevice,
  type DeviceNeed,
  type DeviceSurvey,
  parseDevice,
  surveyDevices,
} from "../../lib/device";
import type { NativeCudaDevice, NativeCudaMemory } from "../../lib/native";

const GiB = 2 ** 30;
const gpu = (name: string, capability: string): NativeCudaDevice => ({
  name,
  capability,
  processors: 100,
  driver: "13.0",
  runtime: "13.0",
  totalMemory: 16 * GiB,
});
const newer = gpu("New", "9.0");
const older = gpu("Old", "7.5");

test.each([
  ["auto", { kind: "auto" }],
  ["cpu", { kind: "cpu" }],
  ["cuda", { kind: "cuda", index: 0 }],
  ["cuda:0", { kind: "cuda", index: 0 }],
  ["cuda:12", { kind: "cuda", index: 12 }],
])("%s is a device", (text, expected) => {
  expect(parseDevice(text)).toEqual(expected);
});

test.each(["gpu", "cuda:", "cuda:-1", "cuda:1.5", "cuda:1000", "CUDA", "", 0, null])(
  "%p is none",
  (value) => {
    expect(() => parseDevice(value)).toThrow(
      expect.objectContaining({
        code: "INVALID_OPTION",
        message: expect.stringMatching(/for device/),
      }),
    );
  },
);

describe("what GPUs there are", () => {
  const addonPath = join(__dirname, "no-such-folder", "unifluid.node");
  const here = __filename; // any file that exists
  afterEach(() => {
    delete process.env.UNIFLUID_CUDA_LIBRARY;
  });
  const survey = (driver: boolean, devices: () => Promise<NativeCudaDevice[]>) =>
    surveyDevices({ cudaDriverPresent: () => driver, cudaDevices: devices }, addonPath);
  const none = () => Promise.reject(new Error("not to be asked"));

  test("without a driver the library is not even opened", async () => {
    expect(await survey(false, none)).toEqual({
      devices: [],
      reason: expect.stringMatching(/no NVIDIA driver/),
    });
  });

  test("a driver and no library: what to do", async () => {
    const { reason } = await survey(true, none);
    expect(reason).toMatch(
      /no CUDA library \(unifluid_cuda\.so\): .*"npx unifluid build --cuda" compiles it/,
    );
  });

  test("the library beside the addon, before that of its package", async () => {
    const folder = mkdtempSync(join(tmpdir(), "unifluid-device-"));
    try {
      const addon = join(folder, "prebuilds", "unifluid.node");
      const packaged = join(folder, "node_modules", "@unifluid", "cuda-linux-x64");
      for (const path of [dirname(addon), packaged]) mkdirSync(path, { recursive: true });
      const asked: string[] = [];
      const cudaDevices = async (path: string) => {
        asked.push(path);
        return [newer];
      };
      for (const path of [packaged, dirname(addon)]) {
        writeFileSync(join(path, "unifluid_cuda.so"), "");
        await surveyDevices({ cudaDriverPresent: () => true, cudaDevices }, addon);
      }
      expect(asked).toEqual([
        join(packaged, "unifluid_cuda.so"),
        join(dirname(addon), "unifluid_cuda.so"),
      ]);
    } finally {
      rmSync(folder, { recursive: true, force: true });
    }
  });

  test("a library that is named and not there", async () => {
    process.env.UNIFLUID_CUDA_LIBRARY = "/no/such/library.so";
    expect((await survey(false, none)).reason).toMatch(
      /names \/no\/such\/library\.so, which is not/,
    );
  });

  test("a library that fails", async () => {
    process.env.UNIFLUID_CUDA_LIBRARY = here;
    const failing = () =>
      Promise.reject({ code: "DEVICE_ERROR", message: "the driver is too old" });
    expect(await survey(false, failing)).toEqual({
      library: here,
      devices: [],
      reason: "the driver is too old",
    });
  });

  test("no GPU, and one that is too old", async () => {
    process.env.UNIFLUID_CUDA_LIBRARY = here;
    expect((await survey(false, async () => [])).reason).toBe("the driver finds no GPU");
    expect((await survey(false, async () => [older])).reason).toBe(
      "Old has compute capability 7.5, and 8.0 is needed",
    );
    expect(await survey(false, async () => [older, newer])).toEqual({
      library: here,
      devices: [older, newer],
    });
  });
});

describe("the choice", () => {
  const NEED = { name: "the model", dtype: "bfloat16", bytes: GiB, maxMemory: 0 } as const;
  /** All of it usable, unless less is said to be, and none of it taken by the backend itself. */
  const free =
    (bytes: number, usable = bytes, overhead = 0) =>
    async () => ({ free: bytes, usable, overhead });
  const choose = (
    device: string,
    survey: DeviceSurvey,
    need: Partial<DeviceNeed> = {},
    memory: () => Promise<NativeCudaMemory> = free(8 * GiB),
  ) =>
    chooseDevice(parseDevice(device), { ...NEED, ...need }, { survey: async () => survey, memory });
  const both: DeviceSurvey = { library: "lib.so", devices: [older, newer] };
  const never = () => Promise.reject(new Error("not to be asked"));

  test("cpu asks for no survey, nor does auto where it must be the CPU", async () => {
    const gpus = { survey: never, memory: never };
    expect(await chooseDevice({ kind: "cpu" }, NEED, gpus)).toEqual({ kind: "cpu" });
    const need = { ...NEED, cpuReason: "the instruction set avx2 was asked for" };
    expect(await chooseDevice({ kind: "auto" }, need, gpus)).toEqual({
      kind: "cpu",
      reason: need.cpuReason,
    });
  });

  test("auto takes the first GPU that can be used, and asks that one alone for its memory", async () => {
    const asked: number[] = [];
    const survey = async () => ({ ...both, devices: [older, newer, newer] });
    const memory = async (_: string, index: number) => {
      asked.push(index);
      return free(8 * GiB)();
    };
    expect(await chooseDevice({ kind: "auto" }, NEED, { survey, memory })).toEqual({
      kind: "cuda",
      library: "lib.so",
      index: 1,
      dtype: "bfloat16",
      gpu: {
        name: "New",
        capability: "9.0",
        driver: "13.0",
        runtime: "13.0",
        totalMemory: 16 * GiB,
        freeMemory: 8 * GiB,
      },
    });
    expect(asked).toEqual([1]);
  });

  describe("of several GPUs auto", () => {
    const survey: DeviceSurvey = {
      library: "lib.so",
      devices: [older, gpu("Full", "8.6"), gpu("Broken", "9.0"), newer, newer],
    };
    const memories: (() => Promise<NativeCudaMemory>)[] = [
      never,
      free(GiB / 2),
      () => Promise.reject(new Error("out of order")),
      free(8 * GiB),
      free(8 * GiB),
    ];
    const auto = async (need: Partial<DeviceNeed> = {}, from?: number) => {
      const asked: number[] = [];
      const memory = (_: string, index: number) => {
        asked.push(index);
        return memories[index]!();
      };
      const gpus = { survey: async () => survey, memory };
      return {
        chosen: await chooseDevice({ kind: "auto" }, { ...NEED, ...need }, gpus, from),
        asked,
      };
    };
    const full =
      "the model takes at least 1024 MiB on a GPU, but 512 MiB are available on Full, of 512 MiB free";

    test("passes over those without room or out of order, and opens no context behind the one it takes", async () => {
      const { chosen, asked } = await auto();
      expect(chosen).toMatchObject({ kind: "cuda", index: 3, passedOver: full });
      expect(asked).toEqual([1, 2, 3]);
    });

    test("begins at the one that is said", async () => {
      const { chosen, asked } = await auto({}, 4);
      expect(chosen).toMatchObject({ kind: "cuda", index: 4 });
      expect(chosen).not.toHaveProperty("passedOver");
      expect(asked).toEqual([4]);
    });

    test("says what the first lacked, where none has room", async () => {
      const { chosen, asked } = await auto({ bytes: 16 * GiB });
      const reason = expect.stringMatching(/16384 MiB on a GPU, but 512 MiB are available on Full/);
      expect(chosen).toEqual({ kind: "cpu", reason });
      expect(asked).toEqual([1, 2, 3, 4]);
    });
  });

  test("an index is taken at its word", async () => {
    expect(await choose("cuda:1", both, { dtype: "float32" })).toMatchObject({
      library: "lib.so",
      index: 1,
      dtype: "float32",
    });
    await expect(choose("cuda:0", both)).rejects.toMatchObject({
      code: "DEVICE_UNAVAILABLE",
      message: expect.stringMatching(/"cuda:0" is not available: Old has compute capability 7\.5/),
    });
    await expect(choose("cuda:2", both)).rejects.toMatchObject({
      code: "DEVICE_UNAVAILABLE",
      message: expect.stringMatching(/the GPUs here are cuda:0 \(Old\), cuda:1 \(New\)/),
    });
  });

  test("without a GPU auto says why it is the CPU, and cuda fails with the same words", async () => {
    const survey = { devices: [], reason: "no NVIDIA driver is here" };
    expect(await choose("auto", survey)).toEqual({ kind: "cpu", reason: survey.reason });
    await expect(choose("cuda", survey)).rejects.toMatchObject({
      message: 'device "cuda:0" is not available: no NVIDIA driver is here',
    });
  });

  test("a model that does not fit", async () => {
    const small = { library: "lib.so", devices: [gpu("Small", "8.6")] };
    expect(await choose("auto", small, {}, free(GiB))).toMatchObject({ kind: "cuda" });
    expect(await choose("auto", small, {}, free(GiB - 2 ** 20))).toMatchObject({
      kind: "cpu",
      reason:
        "the model takes at least 1024 MiB on a GPU, but 1023 MiB are available on Small, of 1023 MiB free",
    });
    await expect(choose("cuda", small, {}, free(GiB - 1))).rejects.toMatchObject({
      code: "INSUFFICIENT_MEMORY",
    });
    await expect(choose("cuda", small, { maxMemory: GiB - 1 })).rejects.toMatchObject({
      code: "INSUFFICIENT_MEMORY",
      message: expect.stringMatching(
        /1023 MiB are available on Small, by maxMemory, with 8192 MiB/,
      ),
    });
  });

  test("what is left to the driver, and what every model takes, counts", async () => {
    const small = { library: "lib.so", devices: [gpu("Small", "8.6")] };
    const [reserve, overhead] = [256 * 2 ** 20, 4 * 2 ** 20];
    const enough = GiB + reserve + overhead;
    const memory = (bytes: number) => free(bytes, bytes - reserve, overhead);
    expect(await choose("auto", small, {}, memory(enough))).toMatchObject({ kind: "cuda" });
    expect(await choose("auto", small, {}, memory(enough - 1))).toEqual({
      kind: "cpu",
      reason:
        "the model takes at least 1028 MiB on a GPU, but 1027 MiB are available on Small, of 1283 MiB free",
    });
    const bounded = { maxMemory: GiB + overhead };
    expect(await choose("auto", small, bounded)).toMatchObject({ kind: "cuda" });
    expect(
      await choose("auto", small, bounded, free(8 * GiB, 7 * GiB, overhead + 1)),
    ).toMatchObject({
      kind: "cpu",
    });
  });

  test("a GPU that fails when it is asked", async () => {
    const failing = () => Promise.reject(new Error("out of order"));
    expect(await choose("auto", both, {}, failing)).toEqual({
      kind: "cpu",
      reason: "New: out of order",
    });
    await expect(choose("cuda:1", both, {}, failing)).rejects.toThrow("out of order");
  });
});
