/**
 * UniFluid for Node.js: one model that draws, edits and describes images.
 *
 * @packageDocumentation
 */

export type { AnyIterable, BulkOptions, BulkResult } from "./bulk.js";
export type {
  AnswerItem,
  CallOptions,
  CaptionItem,
  DecodeLatentsOptions,
  DrawOptions,
  EditItem,
  GenerateItem,
  ImageItem,
  ItemOptions,
  LogitsOptions,
  OnlyKnown,
  PromptItem,
  WriteOptions,
} from "./call-options.js";
export { type Checkpoint, readCheckpoint } from "./checkpoint/checkpoint.js";
export type { CheckpointKind } from "./checkpoint/config.js";
export { locateCheckpoint, shippedModels } from "./checkpoint/locate.js";
export type { Device, Gpu } from "./device.js";
export { DrawingProgress } from "./drawing-stream.js";
export {
  CancelledError,
  CheckpointNotFoundError,
  DeviceError,
  type DeviceErrorCode,
  DisposedError,
  type ErrorCode,
  errorCodes,
  type ImageErrorCode,
  InsufficientMemoryError,
  InternalError,
  InvalidCheckpointError,
  InvalidConfigError,
  InvalidImageError,
  InvalidOptionError,
  InvalidRecordError,
  InvalidSafetensorsError,
  JobsChangedError,
  MissingTensorError,
  NativeLoadError,
  type NativeLoadErrorCode,
  NonFiniteWeightError,
  NumericalError,
  OutputLockedError,
  PromptTooLongError,
  QueueFullError,
  QueueUnreachableError,
  type SafetensorsErrorCode,
  TensorShapeError,
  TokenizerMismatchError,
  TrainingDataError,
  TrainingDivergedError,
  UnexpectedTensorError,
  UniFluidError,
  type UniFluidErrorOptions,
  UnsupportedTaskError,
} from "./errors.js";
export type {
  CellOrder,
  GenerationConfig,
  GuidanceSchedule,
  ImageSettings,
  TextSettings,
} from "./generation-config.js";
export { Image, type ImageFormat, type ImageOptions } from "./image.js";
export type { BlobLike, ImageInput, RawPixels } from "./image-input.js";
export type { LoadOptions } from "./load-options.js";
export { countParameters, estimateMemory, type MemoryEstimate, type ModelPart } from "./memory.js";
export { UniFluid } from "./model.js";
export type { ModelInfo } from "./model-info.js";
export type { NativeStats as ModelStats } from "./native.js";
export type { Seed } from "./seed.js";
export type { Task } from "./tasks.js";
export type { WrittenText } from "./text-stream.js";
export type { AutoencoderRunSettings, RunSettings, UnifiedRunSettings } from "./train/config.js";
export type { Losses, Metrics } from "./train/run-folder.js";
export { Trainer, type TrainOptions, type TrainSummary } from "./train/trainer.js";
