/**
 * Every error that UniFluid raises on purpose. Each has a stable `code` to branch on, a class for `instanceof`,
 * and a message that says what was found, what was expected, and where.
 *
 * Programs should compare `code`: it survives bundlers and a second copy of the package; classes do not.
 */

export interface UniFluidErrorOptions {
  /** The error that caused this one, if any. */
  cause?: unknown;
}

/** Base class of this package's errors. */
export class UniFluidError<Code extends string = string> extends Error {
  /** Stable name of what went wrong; one of {@link ErrorCode}. */
  readonly code: Code;

  constructor(code: Code, message: string, options?: UniFluidErrorOptions) {
    super(message, options);
    this.name = new.target.name;
    this.code = code;
  }
}

/** There is no checkpoint at that path or by that name, or one of its files is missing. */
export class CheckpointNotFoundError extends UniFluidError<"CHECKPOINT_NOT_FOUND"> {
  constructor(message: string, options?: UniFluidErrorOptions) {
    super("CHECKPOINT_NOT_FOUND", message, options);
  }
}

/** Parts of the checkpoint contradict each other. */
export class InvalidCheckpointError extends UniFluidError<"INVALID_CHECKPOINT"> {
  constructor(message: string, options?: UniFluidErrorOptions) {
    super("INVALID_CHECKPOINT", message, options);
  }
}

export type SafetensorsErrorCode =
  /** The file is shorter than its header says. */
  | "SAFETENSORS_TRUNCATED"
  /** The header is longer than the file or the limit. */
  | "SAFETENSORS_HEADER_TOO_LONG"
  /** The header is not JSON, or not a valid safetensors header. */
  | "SAFETENSORS_INVALID_HEADER"
  /** Offsets overlap, leave gaps, are out of range, or do not match shape and type. */
  | "SAFETENSORS_INVALID_OFFSETS"
  /** A type that the format lacks, or that weights cannot have. */
  | "SAFETENSORS_UNKNOWN_DTYPE"
  /** `model.safetensors.index.json` is malformed or does not match the shards. */
  | "SAFETENSORS_INVALID_INDEX";

/** A safetensors file or its shard index violates the format. */
export class InvalidSafetensorsError extends UniFluidError<SafetensorsErrorCode> {}

/** A tensor that the configuration requires is missing. */
export class MissingTensorError extends UniFluidError<"MISSING_TENSOR"> {
  constructor(message: string, options?: UniFluidErrorOptions) {
    super("MISSING_TENSOR", message, options);
  }
}

/** There is a tensor that the configuration has no place for. */
export class UnexpectedTensorError extends UniFluidError<"UNEXPECTED_TENSOR"> {
  constructor(message: string, options?: UniFluidErrorOptions) {
    super("UNEXPECTED_TENSOR", message, options);
  }
}

/** A tensor's shape differs from the configuration. */
export class TensorShapeError extends UniFluidError<"TENSOR_SHAPE"> {
  constructor(message: string, options?: UniFluidErrorOptions) {
    super("TENSOR_SHAPE", message, options);
  }
}

/** A weight is NaN or infinite. */
export class NonFiniteWeightError extends UniFluidError<"NON_FINITE_WEIGHT"> {
  constructor(message: string, options?: UniFluidErrorOptions) {
    super("NON_FINITE_WEIGHT", message, options);
  }
}

/**
 * A field of a checkpoint's JSON files or of a settings file in YAML is missing, of the wrong type, out of range or
 * unsupported; or there is no such file.
 */
export class InvalidConfigError extends UniFluidError<"INVALID_CONFIG"> {
  constructor(message: string, options?: UniFluidErrorOptions) {
    super("INVALID_CONFIG", message, options);
  }
}

/** The tokenizer is malformed or contradicts itself, or has ids outside the model's vocabulary. */
export class TokenizerMismatchError extends UniFluidError<"TOKENIZER_MISMATCH"> {
  constructor(message: string, options?: UniFluidErrorOptions) {
    super("TOKENIZER_MISMATCH", message, options);
  }
}

export type ImageErrorCode =
  /** No bytes, or no pixels. */
  | "IMAGE_EMPTY"
  /** The file does not exist or cannot be read. */
  | "IMAGE_NOT_FOUND"
  /** Not an image, damaged, or in an unknown format. */
  | "IMAGE_UNDECODABLE"
  /** More pixels than allowed, in total or along a side. */
  | "IMAGE_TOO_LARGE"
  /** The value cannot be an image, or its pixels do not match width and height. */
  | "IMAGE_UNSUPPORTED_INPUT";

/** An image cannot be used. */
export class InvalidImageError extends UniFluidError<ImageErrorCode> {}

/** Prompt and result together exceed the model's positions. */
export class PromptTooLongError extends UniFluidError<"PROMPT_TOO_LONG"> {
  constructor(message: string, options?: UniFluidErrorOptions) {
    super("PROMPT_TOO_LONG", message, options);
  }
}

/** An argument is unknown, of the wrong type or out of range: "expected X for Y but received Z". */
export class InvalidOptionError extends UniFluidError<"INVALID_OPTION"> {
  constructor(message: string, options?: UniFluidErrorOptions) {
    super("INVALID_OPTION", message, options);
  }
}

/** A record of a jobs file or of training data is malformed, or asks for nothing that can be done. */
export class InvalidRecordError extends UniFluidError<"INVALID_RECORD"> {
  constructor(message: string, options?: UniFluidErrorOptions) {
    super("INVALID_RECORD", message, options);
  }
}

/** A results folder was made from other jobs, or with other options. */
export class JobsChangedError extends UniFluidError<"JOBS_CHANGED"> {
  constructor(message: string, options?: UniFluidErrorOptions) {
    super("JOBS_CHANGED", message, options);
  }
}

/** Training records, pictures or texts cannot be read, too many are broken, or prepared pictures cannot be kept. */
export class TrainingDataError extends UniFluidError<"TRAINING_DATA"> {
  constructor(message: string, options?: UniFluidErrorOptions) {
    super("TRAINING_DATA", message, options);
  }
}

/** A loss or gradient is no longer finite, or a loss exploded; the last good checkpoint is kept. */
export class TrainingDivergedError extends UniFluidError<"TRAINING_DIVERGED"> {
  constructor(message: string, options?: UniFluidErrorOptions) {
    super("TRAINING_DIVERGED", message, options);
  }
}

/** Another process is writing to the same folder. */
export class OutputLockedError extends UniFluidError<"OUTPUT_LOCKED"> {
  constructor(message: string, options?: UniFluidErrorOptions) {
    super("OUTPUT_LOCKED", message, options);
  }
}

/** The weights do not support this task; the message names the missing part. */
export class UnsupportedTaskError extends UniFluidError<"UNSUPPORTED_TASK"> {
  constructor(message: string, options?: UniFluidErrorOptions) {
    super("UNSUPPORTED_TASK", message, options);
  }
}

/** The model, or one more sequence, does not fit in the free or allowed memory. */
export class InsufficientMemoryError extends UniFluidError<"INSUFFICIENT_MEMORY"> {
  constructor(message: string, options?: UniFluidErrorOptions) {
    super("INSUFFICIENT_MEMORY", message, options);
  }
}

/** No Redis server answers at the queue's address, or it refuses. */
export class QueueUnreachableError extends UniFluidError<"QUEUE_UNREACHABLE"> {
  constructor(message: string, options?: UniFluidErrorOptions) {
    super("QUEUE_UNREACHABLE", message, options);
  }
}

/** `maxQueue` requests are already waiting: try again later, or elsewhere. */
export class QueueFullError extends UniFluidError<"QUEUE_FULL"> {
  constructor(message: string, options?: UniFluidErrorOptions) {
    super("QUEUE_FULL", message, options);
  }
}

/** The model was disposed of, or the trainer closed. */
export class DisposedError extends UniFluidError<"DISPOSED"> {
  constructor(message = "the model was disposed", options?: UniFluidErrorOptions) {
    super("DISPOSED", message, options);
  }
}

/** In a bulk run's results: an item's signal aborted for a reason that is not an `Error`. The reason is the `cause`. */
export class CancelledError extends UniFluidError<"CANCELLED"> {
  constructor(message: string, options?: UniFluidErrorOptions) {
    super("CANCELLED", message, options);
  }
}

/** A result would contain NaN or infinity: broken weights, or settings far off. */
export class NumericalError extends UniFluidError<"NUMERICAL_ERROR"> {
  constructor(message: string, options?: UniFluidErrorOptions) {
    super("NUMERICAL_ERROR", message, options);
  }
}

export type DeviceErrorCode =
  /** The device failed during computation. */
  | "DEVICE_ERROR"
  /** This build or machine lacks the requested device or instruction set. */
  | "DEVICE_UNAVAILABLE";

/** A device cannot be used. */
export class DeviceError extends UniFluidError<DeviceErrorCode> {}

export type NativeLoadErrorCode =
  /** No compiled addon was found for this machine. */
  | "NATIVE_NOT_FOUND"
  /** An addon was found but does not load here, or its version differs from the package's. */
  | "NATIVE_LOAD_FAILED";

/** The compiled part of this package cannot be loaded; the message says what to do. */
export class NativeLoadError extends UniFluidError<NativeLoadErrorCode> {}

/** A bug in this package: please report it with the message. */
export class InternalError extends UniFluidError<"INTERNAL"> {
  constructor(message: string, options?: UniFluidErrorOptions) {
    super("INTERNAL", message, options);
  }
}

/** The class of each code; this is also the list of all codes. */
const ERRORS = {
  CHECKPOINT_NOT_FOUND: CheckpointNotFoundError,
  INVALID_CHECKPOINT: InvalidCheckpointError,
  SAFETENSORS_TRUNCATED: InvalidSafetensorsError,
  SAFETENSORS_HEADER_TOO_LONG: InvalidSafetensorsError,
  SAFETENSORS_INVALID_HEADER: InvalidSafetensorsError,
  SAFETENSORS_INVALID_OFFSETS: InvalidSafetensorsError,
  SAFETENSORS_UNKNOWN_DTYPE: InvalidSafetensorsError,
  SAFETENSORS_INVALID_INDEX: InvalidSafetensorsError,
  MISSING_TENSOR: MissingTensorError,
  UNEXPECTED_TENSOR: UnexpectedTensorError,
  TENSOR_SHAPE: TensorShapeError,
  NON_FINITE_WEIGHT: NonFiniteWeightError,
  INVALID_CONFIG: InvalidConfigError,
  TOKENIZER_MISMATCH: TokenizerMismatchError,
  IMAGE_EMPTY: InvalidImageError,
  IMAGE_NOT_FOUND: InvalidImageError,
  IMAGE_UNDECODABLE: InvalidImageError,
  IMAGE_TOO_LARGE: InvalidImageError,
  IMAGE_UNSUPPORTED_INPUT: InvalidImageError,
  PROMPT_TOO_LONG: PromptTooLongError,
  INVALID_OPTION: InvalidOptionError,
  INVALID_RECORD: InvalidRecordError,
  JOBS_CHANGED: JobsChangedError,
  TRAINING_DATA: TrainingDataError,
  TRAINING_DIVERGED: TrainingDivergedError,
  OUTPUT_LOCKED: OutputLockedError,
  UNSUPPORTED_TASK: UnsupportedTaskError,
  INSUFFICIENT_MEMORY: InsufficientMemoryError,
  QUEUE_FULL: QueueFullError,
  QUEUE_UNREACHABLE: QueueUnreachableError,
  DISPOSED: DisposedError,
  CANCELLED: CancelledError,
  NUMERICAL_ERROR: NumericalError,
  DEVICE_ERROR: DeviceError,
  DEVICE_UNAVAILABLE: DeviceError,
  NATIVE_NOT_FOUND: NativeLoadError,
  NATIVE_LOAD_FAILED: NativeLoadError,
  INTERNAL: InternalError,
} as const;

/** Codes of all errors of this package. */
export type ErrorCode = keyof typeof ERRORS;

/** All codes, for documentation and tests. */
export const errorCodes: readonly ErrorCode[] = Object.freeze(Object.keys(ERRORS) as ErrorCode[]);

/**
 * Whether an error is this package's, also one of a second copy in the process, whose classes are others: a server may
 * come from one and its model from another.
 */
export function isUniFluidError(error: unknown): error is UniFluidError<ErrorCode> {
  if (error instanceof UniFluidError) return true;
  return error instanceof Error && Object.hasOwn(ERRORS, (error as { code?: string }).code ?? "");
}

/** The class of errors with a code. */
export function errorClass(code: ErrorCode): abstract new (...args: never[]) => UniFluidError {
  return ERRORS[code];
}

/** Whether all later requests of the same model meet this error too: it was disposed of, or its device has failed. */
export function endsModel(error: Error): boolean {
  return error instanceof UniFluidError && ["DISPOSED", "DEVICE_ERROR"].includes(error.code);
}

type NativeFailure = (message: string, options: UniFluidErrorOptions) => UniFluidError;

/** The error for each code of core/error.h. */
const FROM_NATIVE: Readonly<Record<string, NativeFailure>> = {
  INSUFFICIENT_MEMORY: (message, options) => new InsufficientMemoryError(message, options),
  INVALID_ARGUMENT: (message, options) => new InvalidOptionError(message, options),
  INVALID_CHECKPOINT: (message, options) => new InvalidCheckpointError(message, options),
  UNSUPPORTED_TASK: (message, options) => new UnsupportedTaskError(message, options),
  QUEUE_FULL: (message, options) => new QueueFullError(message, options),
  DISPOSED: (message, options) => new DisposedError(message, options),
  NUMERICAL_ERROR: (message, options) => new NumericalError(message, options),
  DEVICE_ERROR: (message, options) => new DeviceError("DEVICE_ERROR", message, options),
  INTERNAL: (message, options) => new InternalError(message, options),
};

/**
 * The error for a failure that the addon reported as `{ code, message }`. Anything else that came out of the
 * addon is a defect and becomes an `InternalError`.
 */
export function fromNative(failure: unknown): UniFluidError {
  if (failure instanceof UniFluidError) return failure;
  const { code, message } = (
    typeof failure === "object" && failure !== null ? failure : {}
  ) as Record<string, unknown>;
  const options = { cause: failure };
  if (typeof code !== "string" || typeof message !== "string") {
    return new InternalError(`the native part failed: ${String(failure)}`, options);
  }
  const make = Object.hasOwn(FROM_NATIVE, code) ? FROM_NATIVE[code] : undefined;
  return make ? make(message, options) : new InternalError(`${code}: ${message}`, options);
}
