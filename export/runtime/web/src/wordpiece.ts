/**
 * BERT's tokenizer, read from `tokenizer.json`: token by token and offset by offset what the
 * `tokenizers` library gives. Other kinds are refused.
 */
import { RekdError, broken } from "./errors.js";
import * as unicode from "./unicode.js";

export interface EncodedText {
  readonly ids: readonly number[];
  /** Start and end in the text, in characters (code points); `[0, 0]` for special tokens. */
  readonly offsets: ReadonlyArray<readonly [number, number]>;
  /** Number of the word that each token belongs to; null for special tokens. */
  readonly words: ReadonlyArray<number | null>;
  /** Tokens beyond what the model reads. */
  readonly droppedTokens: number;
}

/** A character and the characters of the text that it stands for. */
interface Aligned {
  readonly code: number;
  readonly start: number;
  readonly end: number;
}

interface Token {
  readonly id: number;
  readonly start: number;
  readonly end: number;
  readonly word: number;
}

interface Normalizer {
  readonly cleanText: boolean;
  readonly handleChinese: boolean;
  readonly stripAccents: boolean;
  readonly lowercase: boolean;
}

type Json = Record<string, unknown>;

export class WordPiece {
  private constructor(
    private readonly vocabulary: ReadonlyMap<string, number>,
    private readonly unknownId: number,
    private readonly prefix: string,
    private readonly longestWord: number,
    private readonly normalizer: Normalizer,
    private readonly before: readonly number[],
    private readonly after: readonly number[],
    /** Special tokens that are found in the text itself: content to id, as characters. */
    private readonly added: ReadonlyArray<readonly [readonly string[], number]>,
    private readonly maxLength: number,
  ) {}

  /** `document` is the content of `tokenizer.json`, `maxLength` counts special tokens too. */
  static from(document: unknown, maxLength: number): WordPiece {
    const root = object(document, "tokenizer.json");
    const model = object(root["model"], "model");
    if (model["type"] !== "WordPiece") throw unsupported(`model ${String(model["type"])}`);
    const vocabulary = new Map<string, number>();
    for (const [piece, id] of Object.entries(object(model["vocab"], "vocab"))) {
      if (typeof id !== "number") throw broken("tokenizer.json: an id of vocab is no number");
      vocabulary.set(piece, id);
    }
    const unknownId = vocabulary.get(String(model["unk_token"]));
    if (unknownId === undefined) throw broken("tokenizer.json: unk_token is not in vocab");
    const split = object(root["pre_tokenizer"], "pre_tokenizer");
    if (split["type"] !== "BertPreTokenizer") {
      throw unsupported(`pre_tokenizer ${String(split["type"])}`);
    }
    const { before, after } = template(object(root["post_processor"], "post_processor"));
    if (maxLength <= before.length + after.length) throw broken("max_length leaves no room");
    return new WordPiece(
      vocabulary,
      unknownId,
      String(model["continuing_subword_prefix"] ?? "##"),
      Number(model["max_input_chars_per_word"] ?? 100),
      normalizer(object(root["normalizer"], "normalizer")),
      before,
      after,
      addedTokens(root["added_tokens"]),
      maxLength,
    );
  }

  /** Throws an input error where nothing of the text is left to read. */
  encode(text: string): EncodedText {
    if (unicode.isBlankText(text)) {
      throw new RekdError("input", "The text is empty.", "Give at least one word.");
    }
    const characters = Array.from(text);
    if (characters.some((c) => c.length === 1 && c >= "\ud800" && c <= "\udfff")) {
      throw new RekdError("input", "The text is not valid Unicode.", "Paste it again.");
    }
    const tokens = this.tokens(characters);
    if (tokens.length === 0) {
      const hint = "Give at least one visible word.";
      throw new RekdError("input", "No token of the text is left after normalisation.", hint);
    }
    const room = this.maxLength - this.before.length - this.after.length;
    const kept = tokens.slice(0, room);
    const none = (ids: readonly number[]) => ids.map(() => [0, 0] as const);
    return {
      ids: [...this.before, ...kept.map((token) => token.id), ...this.after],
      offsets: [
        ...none(this.before),
        ...kept.map((token) => [token.start, token.end] as const),
        ...none(this.after),
      ],
      words: [
        ...this.before.map(() => null),
        ...kept.map((token) => token.word),
        ...this.after.map(() => null),
      ],
      droppedTokens: tokens.length - kept.length,
    };
  }

  private tokens(characters: readonly string[]): Token[] {
    const tokens: Token[] = [];
    let word = 0;
    let start = 0;
    const flush = (end: number) => {
      for (const part of words(normalize(characters, start, end, this.normalizer))) {
        this.pieces(part, word++, tokens);
      }
    };
    for (let position = 0; position < characters.length; ) {
      const found = this.addedAt(characters, position);
      if (found === undefined) {
        position++;
        continue;
      }
      flush(position);
      start = position + found.length;
      tokens.push({ id: found.id, start: position, end: start, word: word++ });
      position = start;
    }
    flush(characters.length);
    return tokens;
  }

  private addedAt(
    characters: readonly string[],
    position: number,
  ): { id: number; length: number } | undefined {
    for (const [content, id] of this.added) {
      if (content.every((character, index) => characters[position + index] === character)) {
        return { id, length: content.length };
      }
    }
    return undefined;
  }

  /** The longest piece of the vocabulary first; a word with a part in none is unknown as a whole. */
  private pieces(word: readonly Aligned[], number: number, tokens: Token[]): void {
    const first = word[0]!;
    const last = word[word.length - 1]!;
    const unknown = { id: this.unknownId, start: first.start, end: last.end, word: number };
    if (word.length > this.longestWord) {
      tokens.push(unknown);
      return;
    }
    const letters = word.map((character) => String.fromCodePoint(character.code));
    const found: Token[] = [];
    for (let start = 0; start < letters.length; ) {
      let end = letters.length;
      let id: number | undefined;
      for (; end > start; end--) {
        const piece = letters.slice(start, end).join("");
        id = this.vocabulary.get(start > 0 ? this.prefix + piece : piece);
        if (id !== undefined) break;
      }
      if (id === undefined) {
        tokens.push(unknown);
        return;
      }
      found.push({ id, start: word[start]!.start, end: word[end - 1]!.end, word: number });
      start = end;
    }
    tokens.push(...found);
  }
}

function normalize(
  characters: readonly string[],
  start: number,
  end: number,
  { cleanText, handleChinese, stripAccents, lowercase }: Normalizer,
): Aligned[] {
  let aligned: Aligned[] = [];
  for (let position = start; position < end; position++) {
    let code = characters[position]!.codePointAt(0)!;
    if (cleanText) {
      if (unicode.removed.has(code)) continue;
      if (unicode.blank.has(code)) code = 0x20;
    }
    const one = { code, start: position, end: position + 1 };
    const blank = { ...one, code: 0x20 };
    if (handleChinese && unicode.chinese.has(code)) aligned.push(blank, one, blank);
    else aligned.push(one);
  }
  if (stripAccents) aligned = decompose(aligned).filter(({ code }) => !unicode.mark.has(code));
  if (!lowercase) return aligned;
  return aligned.flatMap((one) =>
    codes(String.fromCodePoint(one.code).toLowerCase()).map((code) => ({ ...one, code })),
  );
}

/**
 * Canonical decomposition and ordering. Marks change their places when they are ordered; the
 * library then lets the first part of the n-th character stand for the n-th character of the text.
 */
function decompose(source: readonly Aligned[]): Aligned[] {
  const parts = source.flatMap(({ code }) => {
    if (!unicode.decomposed.has(code)) return [{ code, isFirst: true }];
    const all = codes(String.fromCodePoint(code).normalize("NFD"));
    return all.map((part, index) => ({ code: part, isFirst: index === 0 }));
  });
  let run: Array<{ code: number; isFirst: boolean; order: number }> = [];
  const ordered: Array<{ code: number; isFirst: boolean }> = [];
  const flush = () => {
    ordered.push(...run.sort((left, right) => left.order - right.order));
    run = [];
  };
  for (const part of parts) {
    const order = unicode.combining.classOf(part.code);
    if (order === 0) {
      flush();
      ordered.push(part);
    } else run.push({ ...part, order });
  }
  flush();
  let taken = 0;
  return ordered.map(({ code, isFirst }) => {
    if (isFirst) taken++;
    const from = source[Math.max(0, taken - 1)]!;
    return { code, start: from.start, end: from.end };
  });
}

/** Parted at white space, which is dropped, and around each punctuation mark. */
function words(characters: readonly Aligned[]): Aligned[][] {
  const found: Aligned[][] = [];
  let current: Aligned[] = [];
  const flush = () => {
    if (current.length > 0) found.push(current);
    current = [];
  };
  for (const character of characters) {
    if (unicode.space.has(character.code)) flush();
    else if (unicode.punctuation.has(character.code)) {
      flush();
      found.push([character]);
    } else current.push(character);
  }
  flush();
  return found;
}

function codes(text: string): number[] {
  return Array.from(text, (character) => character.codePointAt(0)!);
}

function normalizer(document: Json): Normalizer {
  if (document["type"] !== "BertNormalizer") {
    throw unsupported(`normalizer ${String(document["type"])}`);
  }
  const lowercase = document["lowercase"] !== false;
  const stripAccents = document["strip_accents"];
  return {
    cleanText: document["clean_text"] !== false,
    handleChinese: document["handle_chinese_chars"] !== false,
    stripAccents: typeof stripAccents === "boolean" ? stripAccents : lowercase,
    lowercase,
  };
}

/** Ids before and after the tokens of the text. */
function template(document: Json): { before: number[]; after: number[] } {
  if (document["type"] === "BertProcessing") {
    const id = (value: unknown) => (Array.isArray(value) ? Number(value[1]) : NaN);
    return { before: [id(document["cls"])], after: [id(document["sep"])] };
  }
  if (document["type"] !== "TemplateProcessing") {
    throw unsupported(`post_processor ${String(document["type"])}`);
  }
  const special = object(document["special_tokens"], "special_tokens");
  const sides: [number[], number[]] = [[], []];
  let side: 0 | 1 = 0;
  for (const item of array(document["single"], "single")) {
    const part = object(item, "single");
    if (part["Sequence"] !== undefined) {
      side = 1;
      continue;
    }
    const name = String(object(part["SpecialToken"], "SpecialToken")["id"]);
    const ids = array(object(special[name], name)["ids"], name);
    sides[side].push(...ids.map(Number));
  }
  return { before: sides[0], after: sides[1] };
}

function addedTokens(document: unknown): Array<[string[], number]> {
  const found = array(document ?? [], "added_tokens").map((item): [string[], number] => {
    const token = object(item, "added_tokens");
    for (const flag of ["single_word", "lstrip", "rstrip", "normalized"]) {
      if (token[flag] === true) {
        throw unsupported(`added token ${String(token["content"])} with ${flag}`);
      }
    }
    return [Array.from(String(token["content"])), Number(token["id"])];
  });
  return found.sort(([left], [right]) => right.length - left.length);
}

function object(value: unknown, name: string): Json {
  if (typeof value === "object" && value !== null && !Array.isArray(value)) return value as Json;
  if (value === null || value === undefined) throw unsupported(`no ${name}`);
  throw broken(`tokenizer.json: ${name} is not an object`);
}

function array(value: unknown, name: string): unknown[] {
  if (!Array.isArray(value)) throw broken(`tokenizer.json: ${name} is not a list`);
  return value as unknown[];
}

function unsupported(what: string): RekdError {
  return new RekdError(
    "backend",
    `This page cannot read the bundle's tokenizer (${what}); it knows BERT's word pieces alone.`,
    "run the bundle with runtime/rekd_runtime.py",
  );
}
