import type { TextPrediction } from "../src/rationalist.js";

export interface Part {
  readonly text: string;
  /** `consulted`: read by the one of two students that does not answer. */
  readonly kind: "kept" | "consulted" | "dropped" | "unread";
}

/** Characters that turn the direction of a text round, as a box. */
export function visible(text: string): string {
  return text.replaceAll(/[\u202a-\u202e\u2066-\u2069]/g, "\ufffd");
}

type Span = readonly [start: number, end: number];

/** The text in parts; spans of a kind with nothing but blanks between them become one. */
export function highlightedParts({
  text,
  rationale,
  answerRationale,
  consulted,
  readTo,
}: Pick<TextPrediction, "text" | "rationale" | "answerRationale" | "consulted" | "readTo">): Part[] {
  const characters = Array.from(text);
  const cut = (start: number, end: number) => characters.slice(start, end).join("");
  const joined = (spans: ReadonlyArray<{ start: number; end: number }>) => {
    const found: Array<[number, number]> = [];
    for (const { start, end } of [...spans].sort((one, other) => one.start - other.start || one.end - other.end)) {
      const last = found.at(-1);
      if (last !== undefined && cut(last[1], start).trim() === "") last[1] = Math.max(last[1], end);
      else found.push([start, end]);
    }
    return found;
  };
  const kept = joined(answerRationale ?? rationale);
  const marked = [
    ...kept.map((span) => ["kept", span] as const),
    ...joined(consulted ?? []).flatMap((span) => outside(span, kept).map((rest) => ["consulted", rest] as const)),
  ].sort(([, one], [, other]) => one[0] - other[0]);
  const parts: Part[] = [];
  let position = 0;
  for (const [kind, [start, end]] of marked) {
    parts.push({ text: cut(position, start), kind: "dropped" });
    parts.push({ text: cut(start, end), kind });
    position = end;
  }
  parts.push({ text: cut(position, readTo), kind: "dropped" });
  parts.push({ text: cut(Math.max(position, readTo), characters.length), kind: "unread" });
  return parts.filter((part) => part.text !== "");
}

/** What of a span lies in none of `others`, which are in order: tokens of one character may overlap. */
function outside([start, end]: Span, others: readonly Span[]): Span[] {
  const rest: Span[] = [];
  let from = start;
  for (const [first, last] of others) {
    if (first > from) rest.push([from, Math.min(first, end)]);
    from = Math.max(from, last);
    if (from >= end) break;
  }
  if (from < end) rest.push([from, end]);
  return rest.filter(([one, other]) => one < other);
}
