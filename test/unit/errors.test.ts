import { readFileSync } from "node:fs";
import * as errors from "../../lib/errors";
import { errorClass, errorCodes, fromNative, InternalError, UniFluidError } from "../../lib/errors";

test("every code has a class with that class's name, and every class a code", () => {
  const classes = new Set(errorCodes.map(errorClass));
  const exported = Object.values(errors).filter(
    (value) => typeof value === "function" && value.prototype instanceof UniFluidError,
  );
  expect(classes).toEqual(new Set(exported));
});

test("an error says what it is", () => {
  const cause = new Error("inner");
  const error = new errors.InvalidSafetensorsError("SAFETENSORS_TRUNCATED", "too short", { cause });
  expect(error).toBeInstanceOf(UniFluidError);
  expect(error).toBeInstanceOf(Error);
  expect(error).toMatchObject({
    name: "InvalidSafetensorsError",
    code: "SAFETENSORS_TRUNCATED",
    message: "too short",
    cause,
  });
  expect(new errors.DisposedError()).toMatchObject({ code: "DISPOSED" });
});

describe("failures of the native side", () => {
  test.each([
    ["INSUFFICIENT_MEMORY", "INSUFFICIENT_MEMORY", errors.InsufficientMemoryError],
    ["INVALID_ARGUMENT", "INVALID_OPTION", errors.InvalidOptionError],
    ["INVALID_CHECKPOINT", "INVALID_CHECKPOINT", errors.InvalidCheckpointError],
    ["UNSUPPORTED_TASK", "UNSUPPORTED_TASK", errors.UnsupportedTaskError],
    ["DISPOSED", "DISPOSED", errors.DisposedError],
    ["NUMERICAL_ERROR", "NUMERICAL_ERROR", errors.NumericalError],
    ["DEVICE_ERROR", "DEVICE_ERROR", errors.DeviceError],
    ["INTERNAL", "INTERNAL", errors.InternalError],
  ])("%s", (native, code, Class) => {
    const failure = { code: native, message: "what happened" };
    const error = fromNative(failure);
    expect(error).toBeInstanceOf(Class);
    expect(error).toMatchObject({ code, message: "what happened", cause: failure });
    expect(errorCodes).toContain(error.code);
  });

  test.each([
    [undefined],
    [null],
    ["text"],
    [new Error("plain")],
    [{ code: "NEW_CODE", message: "m" }],
    [{ code: "constructor", message: "m" }],
    [{ code: 3, message: "m" }],
  ])("%p is a defect", (failure) => {
    expect(fromNative(failure)).toBeInstanceOf(InternalError);
  });

  test("an error of ours stays itself", () => {
    const error = new errors.DisposedError();
    expect(fromNative(error)).toBe(error);
  });

  test("the codes are those of core/error.h", () => {
    const header = readFileSync(require.resolve("../../core/error.h"), "utf8");
    const codes = [...header.matchAll(/= "([A-Z_]+)";/g)].map((match) => match[1]!);
    expect(codes.length).toBeGreaterThan(5);
    // Others come out as defects, under their code.
    const known = [...errorCodes, ...codes].filter(
      (code) => fromNative({ code, message: "m" }).message === "m",
    );
    expect(new Set(known)).toEqual(new Set(codes));
  });
});
