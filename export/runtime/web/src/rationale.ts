/** From the kept tokens or patches to what a person can look at. */
import { broken } from "./errors.js";
import type { View } from "./resample.js";
import type { EncodedText } from "./wordpiece.js";

/**
 * A piece of the text that the answer was read from, in characters (code points) from `start` to
 * `end`. `word` is the whole word around it; `tokens` are positions on the model's token axis;
 * `score` is the highest of them.
 */
export interface WordSpan {
  readonly start: number;
  readonly end: number;
  readonly text: string;
  readonly word: string;
  readonly tokens: readonly number[];
  readonly score: number;
}

/**
 * A patch that the answer was read from, in pixels of the upright original image; `row` and
 * `column` count patches from the top left.
 */
export interface PatchBox {
  readonly x: number;
  readonly y: number;
  readonly width: number;
  readonly height: number;
  readonly row: number;
  readonly column: number;
  readonly score: number;
}

/** What decided between two students, by number (docs/bundle.md). */
export const CASES = ["agree", "first_convinces", "partner_convinces", "confidence"] as const;
export type Case = (typeof CASES)[number];

/** What the model kept; of two students also what the one that answers read, and the case. */
export interface Kept {
  readonly kept: readonly boolean[];
  readonly read: readonly boolean[] | null;
  readonly case: Case | null;
}

export interface Evidence<Part> {
  /** All that the answer depends on. */
  readonly rationale: readonly Part[];
  /** A bundle of two students: what decided between them. Null for one student, like all below. */
  readonly case: Case | null;
  /** The part of `rationale` that the one that answers read. */
  readonly answerRationale: readonly Part[] | null;
  /** The rest of `rationale`, which the other one read; the answer depends on it too. */
  readonly consulted: readonly Part[] | null;
}

/** `part` says what kept positions are in the input. */
export function evidence<Part>(
  answer: Kept,
  part: (kept: readonly boolean[]) => readonly Part[],
): Evidence<Part> {
  const { kept, read } = answer;
  return {
    rationale: part(kept),
    case: answer.case,
    answerRationale: read === null ? null : part(read),
    consulted: read === null ? null : part(kept.map((isKept, at) => isKept && !read[at])),
  };
}

/** The case by its number, and what the student that answers read of what was kept. */
export function decided(number: bigint, read: readonly boolean[], kept: readonly boolean[]): Case {
  const found = CASES[Number(number)];
  if (found === undefined || read.some((isRead, at) => isRead && !kept[at])) {
    throw broken(`model.onnx answers in case ${number}, or from what it did not keep`);
  }
  return found;
}

/** Neighbouring kept tokens of one word are joined; what was not kept stays outside. */
export function wordSpans(
  text: string,
  encoded: EncodedText,
  kept: readonly boolean[],
  scores: Float32Array,
): WordSpan[] {
  const characters = Array.from(text);
  const cut = (start: number, end: number) => characters.slice(start, end).join("");
  const whole = new Map<number, [number, number]>();
  encoded.words.forEach((word, token) => {
    if (word === null) return;
    const [start, end] = encoded.offsets[token]!;
    const [first, last] = whole.get(word) ?? [start, end];
    whole.set(word, [Math.min(first, start), Math.max(last, end)]);
  });
  const runs: number[][] = [];
  kept.forEach((isKept, token) => {
    if (!isKept) return;
    const word = encoded.words[token];
    if (word === null || word === undefined) {
      throw broken(`model.onnx keeps token ${token}, which is not part of the text`);
    }
    const run = runs.at(-1);
    if (run?.at(-1) === token - 1 && encoded.words[token - 1] === word) run.push(token);
    else runs.push([token]);
  });
  return runs.map((tokens) => {
    const start = Math.min(...tokens.map((token) => encoded.offsets[token]![0]));
    const end = Math.max(...tokens.map((token) => encoded.offsets[token]![1]));
    return {
      start,
      end,
      text: cut(start, end),
      word: cut(...whole.get(encoded.words[tokens[0]!]!)!),
      tokens,
      score: Math.max(...tokens.map((token) => scores[token]!)),
    };
  });
}

export function patchBoxes(
  view: View,
  patchSize: number,
  kept: readonly boolean[],
  scores: Float32Array,
): PatchBox[] {
  const grid = Math.floor(view.size / patchSize);
  const scaleX = view.width / view.resizedWidth;
  const scaleY = view.height / view.resizedHeight;
  return kept.flatMap((isKept, position) => {
    if (!isKept) return [];
    const row = Math.floor(position / grid);
    const column = position % grid;
    return {
      x: rounded((view.left + column * patchSize) * scaleX),
      y: rounded((view.top + row * patchSize) * scaleY),
      width: rounded(patchSize * scaleX),
      height: rounded(patchSize * scaleY),
      row,
      column,
      score: scores[position]!,
    };
  });
}

function rounded(value: number): number {
  return Math.round(value * 1000) / 1000;
}
