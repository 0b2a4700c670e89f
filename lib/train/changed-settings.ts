/** What has changed in a run's settings since it was begun. */
import { parse } from "yaml";
import { isObject } from "../checkpoint/fields.js";
import { parseRunConfig, type RunConfig } from "./config.js";

/**
 * Names of the settings of `now` that are others in `text`, the run.yaml of then: `steps`, `checkpoint.every`,
 * `sources.0.examples`. What an earlier version did not write has its default. `now` may be a run.yaml as well.
 */
export function changedSettings(text: string, now: RunConfig | string): string[] {
  return differences(settingsOf(text), typeof now === "string" ? settingsOf(now) : now);
}

/** Settings that decide what a loss is of: with others, losses before and after cannot be compared. */
const OF_LOSSES =
  /^(all|sources|order|contextNoise|noiseWeightCap|promptDropout|klWeight|latentNoise|imageSize)(\.|$)/;

/** Whether losses are of something else where settings of these names have changed. */
export const changesLosses = (names: readonly string[]): boolean =>
  names.some((name) => OF_LOSSES.test(name));

/** The patterns of the tensors that a run.yaml froze. */
export function frozenBy(text: string): string[] {
  const settings = settingsOf(text);
  const freeze = isObject(settings) ? settings.freeze : undefined;
  return Array.isArray(freeze) ? freeze.map(String) : [];
}

/** As they are today; what this version would not take is as it stands there. */
function settingsOf(text: string): unknown {
  let value: unknown;
  try {
    value = parse(text);
    return parseRunConfig(value, "", "/");
  } catch {
    return value;
  }
}

function differences(then: unknown, now: unknown, at: readonly string[] = []): string[] {
  const lists = Array.isArray(then) && Array.isArray(now);
  if (lists ? then.length === now.length : isObject(then) && isObject(now)) {
    const [a, b] = [then as Record<string, unknown>, now as Record<string, unknown>];
    const names = new Set([...Object.keys(a), ...Object.keys(b)]);
    return [...names].flatMap((name) => differences(a[name], b[name], [...at, name]));
  }
  if (then === now) return [];
  return [at.join(".") || "all"];
}
