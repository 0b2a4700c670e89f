/** Facts for people: a name and its value on each line. */

const UNITS = ["bytes", "KiB", "MiB", "GiB", "TiB"];

/** `1536` is `1.5 KiB`. */
export function formatBytes(bytes: number): string {
  const unit = Math.min(Math.floor(Math.log2(Math.max(bytes, 1)) / 10), UNITS.length - 1);
  const value = bytes / 2 ** (10 * unit);
  return `${unit === 0 || value >= 100 ? Math.round(value) : value.toFixed(1)} ${UNITS[unit]}`;
}

/** `3272960` is `3.27 million`. */
export function formatCount(count: number): string {
  if (count >= 1e9) return `${(count / 1e9).toFixed(2)} billion`;
  return count >= 1e5 ? `${(count / 1e6).toFixed(count >= 1e8 ? 0 : 2)} million` : `${count}`;
}

/** Two columns; a row without a name goes on with the one above it. */
export function formatTable(rows: readonly (readonly [string, string])[]): string {
  const width = Math.max(...rows.map(([name]) => name.length)) + 2;
  return rows.map(([name, value]) => `${name.padEnd(width)}${value}\n`).join("");
}
