/** A terminal's screen: what is left to be read of what was written to it. */

export class Screen {
  private readonly rows: string[][] = [[]];
  private row = 0;
  private column = 0;
  private saved = { row: 0, column: 0 };

  write(text: string): void {
    // biome-ignore lint/suspicious/noControlCharactersInRegex: a terminal's language has them.
    for (const [part] of text.matchAll(/\x1b\[\??[\d;]*[A-Za-z]|\x1b[78]|[^\x1b]/g)) {
      if (part.length > 1) this.command(part);
      else this.put(part);
    }
  }

  get lines(): string[] {
    return this.rows.map((row) =>
      Array.from(row, (letter) => letter ?? " ")
        .join("")
        .trimEnd(),
    );
  }

  private put(letter: string): void {
    if (letter === "\r") {
      this.column = 0;
    } else if (letter === "\n") {
      this.row++;
      this.column = 0;
      this.rows[this.row] ??= [];
    } else {
      this.rows[this.row]![this.column++] = letter;
    }
  }

  private command(sequence: string): void {
    const at = { row: this.row, column: this.column };
    if (sequence === "\x1b7") this.saved = at;
    else if (sequence === "\x1b8") Object.assign(this, this.saved);
    else if (/G$/.test(sequence)) this.column = Number(sequence.slice(2, -1) || 1) - 1;
    else if (sequence === "\x1b[2K") this.rows[this.row] = [];
    else if (/\[0?K$/.test(sequence))
      this.rows[this.row]!.length = Math.min(this.column, this.rows[this.row]!.length);
    // Whether the cursor is seen, and lines wrap.
    else if (!/\?(25|7)[hl]$/.test(sequence))
      throw new Error(`unknown: ${JSON.stringify(sequence)}`);
  }
}
