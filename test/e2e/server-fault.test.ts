/** What probes say of a server whose device has failed. */
import { UniFluid } from "../../lib";
import { DeviceError } from "../../lib/errors";
import { parseKeys } from "../../lib/server/api-keys";
import { createServer } from "../../lib/server/server";
import { post, startServer } from "../support/server";

let model: UniFluid;
beforeAll(async () => {
  model = await UniFluid.load("shapes-64", { threads: 1 });
});
afterAll(() => model.dispose());
afterEach(() => jest.restoreAllMocks());

const fault = new DeviceError("DEVICE_ERROR", "CUDA error while running a step");

test.each([false, true])("it must be started again (streaming: %s)", async (stream) => {
  const { app, url } = await startServer(model);
  const probe = async (path: string) => (await fetch(`${url}/${path}`)).status;
  try {
    expect([await probe("health"), await probe("ready")]).toEqual([200, 200]);
    jest.spyOn(model, "generate").mockRejectedValue(fault);
    jest.spyOn(model, "generateStream").mockImplementation(async function* () {
      yield* [];
      throw fault;
    } as typeof model.generateStream);
    const answer = await post(`${url}/v1/images/generations`, { prompt: "a red circle", stream });
    expect([answer.status, answer.body.error?.code]).toEqual([500, "DEVICE_ERROR"]);
    // What is of the machine stays in the log.
    expect(answer.body.error.message).toBe("the server failed; its log says more");
    expect([await probe("health"), await probe("ready")]).toEqual([503, 503]);
  } finally {
    await app.close();
  }
});

test("a model that was disposed of serves nothing, and the probe says so", async () => {
  const own = await UniFluid.load("shapes-64", { threads: 1 });
  const { app, url } = await startServer(own);
  try {
    await own.dispose();
    expect((await post(`${url}/v1/images/generations`, { prompt: "a" })).status).toBe(503);
    expect((await fetch(`${url}/ready`)).status).toBe(503);
    expect((await fetch(`${url}/health`)).status).toBe(200);
  } finally {
    await app.close();
  }
});

test.each([
  ["a promise of a model", () => Promise.resolve(model)],
  ["nothing", () => undefined],
  ["null", () => null],
])("%s is no model to serve", (_name, given) => {
  expect(() => createServer(given() as unknown as UniFluid)).toThrow(
    expect.objectContaining({
      code: "INVALID_OPTION",
      message: expect.stringContaining("await UniFluid.load"),
    }),
  );
});

test("another error is no fault of the device", async () => {
  const { app, url } = await startServer(model);
  try {
    jest.spyOn(model, "generate").mockRejectedValue(new Error("a defect"));
    const answer = await post(`${url}/v1/images/generations`, { prompt: "a red circle" });
    expect(answer.status).toBe(500);
    expect((await fetch(`${url}/health`)).status).toBe(200);
  } finally {
    await app.close();
  }
});

test("keys of a file are its lines, those of the environment may have commas between", () => {
  expect(parseKeys("secret,42\r\n# none\n\n other \n")).toEqual(["secret,42", "other"]);
  expect(parseKeys("one,two\nthree", { commas: true })).toEqual(["one", "two", "three"]);
});

test("a model of another copy of the package: its errors are known by their codes", async () => {
  let other!: typeof import("../../lib/errors");
  jest.isolateModules(() => {
    other = require("../../lib/errors");
  });
  expect(other.DeviceError).not.toBe(DeviceError);
  const app = createServer(model);
  const draw = async (error: Error) => {
    jest.spyOn(model, "generate").mockRejectedValue(error);
    const answer = await app.inject({
      method: "POST",
      url: "/v1/images/generations",
      payload: { prompt: "a red circle" },
    });
    return [answer.statusCode, answer.json().error];
  };
  const probe = async (path: string) => (await app.inject(path)).statusCode;
  try {
    expect(await draw(new other.PromptTooLongError("too long"))).toEqual([
      422,
      expect.objectContaining({ code: "PROMPT_TOO_LONG", message: "too long" }),
    ]);
    // A code of somebody else's is none of ours.
    const [status, { code }] = await draw(Object.assign(new Error("x"), { code: "EPIPE" }));
    expect([status, code]).toEqual([500, "INTERNAL"]);
    jest.spyOn(model, "stats").mockImplementation(() => {
      throw new other.DisposedError();
    });
    expect(await probe("/ready")).toBe(503);
    expect(await probe("/health")).toBe(200);
    await draw(new other.DeviceError("DEVICE_ERROR", "the GPU failed in a step"));
    expect(await probe("/health")).toBe(503);
  } finally {
    await app.close();
  }
});
