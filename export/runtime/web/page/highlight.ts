import type { TextPrediction } from "../src/rationalist.js";

export interface Part {
  readonly text: string;
  readonly kind: "kept" | "dropped" | "unread";
}

/** Characters that turn the direction of a text round, as a box. */
export function visible(text: string): string {
  return text.replaceAll(/[\u202a-\u202e\u2066-\u2069]/g, "\ufffd");
}

/** The text in parts; spans with nothing but blanks between them become one. */
export function highlightedParts({
  text,
  rationale,
  readTo,
}: Pick<TextPrediction, "text" | "rationale" | "readTo">): Part[] {
  const characters = Array.from(text);
  const cut = (start: number, end: number) => characters.slice(start, end).join("");
  const joined: Array<[number, number]> = [];
  const ordered = [...rationale].sort((one, other) => one.start - other.start || one.end - other.end);
  for (const { start, end } of ordered) {
    const last = joined.at(-1);
    if (last !== undefined && cut(last[1], start).trim() === "") last[1] = Math.max(last[1], end);
    else joined.push([start, end]);
  }
  const parts: Part[] = [];
  let position = 0;
  for (const [start, end] of joined) {
    parts.push({ text: cut(position, start), kind: "dropped" });
    parts.push({ text: cut(start, end), kind: "kept" });
    position = end;
  }
  parts.push({ text: cut(position, readTo), kind: "dropped" });
  parts.push({ text: cut(Math.max(position, readTo), characters.length), kind: "unread" });
  return parts.filter((part) => part.text !== "");
}
