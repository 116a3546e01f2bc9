import * as tables from "./unicode_tables.js";

/** Code points with a property, as the `tokenizers` library sees them. */
export class CodePoints {
  private readonly starts: number[] = [];
  private readonly ends: number[] = [];
  private readonly classes: number[] = [];

  constructor(encoded: string) {
    let position = 0;
    for (const word of encoded.split(" ")) {
      const [range = "", kind = "0"] = word.split(":");
      const [gap = "", length = "0"] = range.split(",");
      const start = position + parseInt(gap, 36);
      position = start + parseInt(length, 36) + 1;
      this.starts.push(start);
      this.ends.push(position);
      this.classes.push(parseInt(kind, 36));
    }
  }

  has(code: number): boolean {
    return this.rangeOf(code) >= 0;
  }

  /** 0 where there is none. */
  classOf(code: number): number {
    return this.classes[this.rangeOf(code)] ?? 0;
  }

  private rangeOf(code: number): number {
    let low = 0;
    let high = this.starts.length - 1;
    while (low <= high) {
      const middle = (low + high) >> 1;
      if (code < this.starts[middle]!) high = middle - 1;
      else if (code >= this.ends[middle]!) low = middle + 1;
      else return middle;
    }
    return -1;
  }
}

export const removed = new CodePoints(tables.removed);
export const blank = new CodePoints(tables.blank);
export const space = new CodePoints(tables.space);
export const punctuation = new CodePoints(tables.punctuation);
export const chinese = new CodePoints(tables.chinese);
export const mark = new CodePoints(tables.mark);
export const decomposed = new CodePoints(tables.decomposed);
export const combining = new CodePoints(tables.combining);

/** What Python's `str.strip` takes away: white space, and the information separators. */
export function isBlankText(text: string): boolean {
  for (const character of text) {
    const code = character.codePointAt(0)!;
    if (!space.has(code) && !(code >= 0x1c && code <= 0x1f)) return false;
  }
  return true;
}
