/**
 * Answer from a rekd-edge bundle in a browser, with the evidence.
 *
 *     const model = await Rationalist.load("bundle/");
 *     const answer = await model.predict("a text");       // or a File with an image
 *     answer.label, answer.probability, answer.rationale, answer.abstain
 *     (await model.addWhyNot(answer)).whyNot              // the best case for each other class
 *
 * What is answered is the bundle's problem type, `answer.problemType`: one `label`, any number of
 * `labels`, or `values`.
 */
import * as ort from "onnxruntime-web/wasm";

import {
  type Calibration,
  type Config,
  type ImageConfig,
  type ProblemType,
  readConfig,
} from "./config.js";
import {
  type Decision,
  type Refusal,
  type SaidLabel,
  type SaidLabels,
  type SaidValues,
  decide,
} from "./decision.js";
import { RekdError, broken } from "./errors.js";
import {
  type BundleSource,
  type Manifest,
  type Progress,
  parseJson,
  served,
  verifiedFile,
  verifyBundle,
} from "./manifest.js";
import { type Picture, type RawPixels, decode, rawPicture } from "./pixels.js";
import {
  type Case,
  type Evidence,
  type Kept,
  type PatchBox,
  type WordSpan,
  decided,
  evidence,
  patchBoxes,
  wordSpans,
} from "./rationale.js";
import { type View, resample, rowsRead, viewOf } from "./resample.js";
import { type ClassRationale, classesToAsk, readCase } from "./why_not.js";
import { WordPiece } from "./wordpiece.js";

export { RekdError } from "./errors.js";
export { WordPiece } from "./wordpiece.js";
export { resample, rowsRead, viewOf } from "./resample.js";
export { decode, sizeOf } from "./pixels.js";
export type {
  BundleSource,
  Calibration,
  Case,
  ClassRationale,
  Config,
  Manifest,
  PatchBox,
  ProblemType,
  Progress,
  RawPixels,
  Refusal,
  SaidLabel,
  SaidLabels,
  SaidValues,
  View,
  WordSpan,
};

interface Answer {
  readonly logits: Float32Array;
  /** Score of the last kept minus the best dropped token; infinite if nothing was dropped. */
  readonly margin: number;
  /** Tokens or patches in the rationale. */
  readonly kept: number;
  /** Tokens or patches it was chosen from. */
  readonly candidates: number;
  readonly notices: readonly string[];
  /** Tokenizing, or decoding and resizing. */
  readonly preprocessMs: number;
  /** The model alone. */
  readonly modelMs: number;
}

/** What was read, and where it was asked for, the best case for each other class. */
interface Read<Part> extends Answer, Evidence<Part> {
  /** The most probable class first; null where it was not asked for. */
  readonly whyNot: ReadonlyArray<ClassRationale<Part>> | null;
}

interface TextAnswer extends Read<WordSpan> {
  readonly modality: "text";
  readonly text: string;
  /** Where the model stopped reading, in characters: the end, unless the text was too long. */
  readonly readTo: number;
}

interface ImageAnswer extends Read<PatchBox> {
  readonly modality: "image";
  readonly view: View;
  /** Patches along one side of the model's view. */
  readonly grid: number;
}

export type TextPrediction = TextAnswer & Decision;
export type ImagePrediction = ImageAnswer & Decision;
export type Prediction = TextPrediction | ImagePrediction;

export interface LoadOptions {
  /** What the sha256 of `manifest.json` has to be. */
  readonly fingerprint?: string;
  /** Where `ort-wasm-simd-threaded.wasm` lies; beside this module by default. */
  readonly wasm?: string | URL;
  readonly onProgress?: (progress: Progress) => void;
}

export interface PredictOptions {
  /** Adds the best case for each other class, as `addWhyNot` does. */
  readonly whyNot?: boolean;
}

const MODEL = "model.onnx";
const WHY_NOT = "why_not.onnx";
/** Of an image once resized, as in the Python runtime. */
const MOST_PIXELS = 1 << 26;
const OUTPUTS = ["logits", "rationale_mask", "selection_score", "selection_margin"] as const;
/** Of a bundle of two students besides. */
const PAIR_OUTPUTS = ["answer_mask", "case"] as const;
const INPUTS = { text: ["input_ids", "attention_mask"], image: ["pixel_values"] } as const;
/** Of `why_not.onnx` besides: the class that it is asked about. */
const CANDIDATE_INPUT = "candidate_class";

interface ModelAnswer extends Kept {
  readonly logits: Float32Array;
  readonly scores: Float32Array;
  readonly margin: number;
  readonly modelMs: number;
}

/** One input as a model takes it, and what the kept positions are in it. */
interface Encoded<Part> {
  readonly feeds: Readonly<Record<string, ort.Tensor>>;
  /** Tokens, special ones included, or patches. */
  readonly tokens: number;
  readonly part: (kept: readonly boolean[], scores: Float32Array) => readonly Part[];
}

/** A verified bundle, ready to answer. */
export class Rationalist {
  /** Of `why_not.onnx`, from the first question on. */
  private asked: Promise<ort.InferenceSession> | null = null;
  /** What was read for an answer, as long as somebody has the answer. */
  private readonly inputs = new WeakMap<Prediction, Encoded<WordSpan | PatchBox>>();

  private constructor(
    readonly manifest: Manifest,
    readonly config: Config,
    private readonly source: BundleSource,
    private readonly session: ort.InferenceSession,
    private readonly tokenizer: WordPiece | null,
  ) {}

  /**
   * Verify every byte of the bundle, then open its model. `bundle` is the address of a folder, or
   * a function that answers for each of its files. Throws `RekdError`.
   */
  static async load(
    bundle: string | URL | BundleSource,
    options: LoadOptions = {},
  ): Promise<Rationalist> {
    const needed = ["config.json", "preprocessor_config.json", MODEL];
    const source = typeof bundle === "function" ? bundle : served(bundle);
    const { manifest, files } = await verifyBundle(
      source,
      new Set([...needed, "tokenizer.json"]),
      options.fingerprint,
      options.onProgress,
    );
    if (manifest.files.some(({ path }) => path === "model.onnx.data")) {
      throw new RekdError("backend", "The model is above 1 GB, too large for a browser.");
    }
    const take = (path: string) => {
      const content = files.get(path);
      if (content === undefined) throw broken(`The bundle has no ${path}`);
      return content;
    };
    const config = readConfig(take("config.json"), take("preprocessor_config.json"));
    if (config.whyNot && !manifest.files.some(({ path }) => path === WHY_NOT)) {
      throw broken(`The bundle has no ${WHY_NOT}`);
    }
    const tokenizer =
      config.modality === "text"
        ? WordPiece.from(parseJson(take("tokenizer.json"), "tokenizer.json"), config.maxLength)
        : null;
    const session = await openSession(take(MODEL), options.wasm);
    const model = new Rationalist(manifest, config, source, session, tokenizer);
    model.requireInterface(MODEL, session);
    await model.warmUp();
    return model;
  }

  /** A text, an image file, or raw pixels. Throws `RekdError`. */
  async predict(
    input: string | Blob | RawPixels,
    { whyNot = false }: PredictOptions = {},
  ): Promise<Prediction> {
    if (whyNot) await this.ask();
    const prediction = await this.answer(input);
    return whyNot ? this.addWhyNot(prediction) : prediction;
  }

  /** Whether the bundle can be asked why an answer is not another class. */
  get canSayWhyNot(): boolean {
    return this.config.whyNot && this.config.problemType === "single_label_classification";
  }

  /**
   * The answer with the best case for each other class, at most the 8 most probable, in
   * that order. `prediction` is one that this model gave, not a copy of it. Throws `RekdError`,
   * also where the bundle has no class-wise rationales.
   */
  async addWhyNot<Given extends Prediction>(prediction: Given): Promise<Given> {
    await this.ask();
    const encoded = this.inputs.get(prediction);
    if (encoded === undefined || prediction.problemType !== "single_label_classification") {
      throw new RekdError(
        "input",
        "This is no answer of this model.",
        "Ask with what its predict gave, not with a copy.",
      );
    }
    if (prediction.whyNot !== null) return prediction;
    const { labelNames, calibration } = this.config;
    const { classes, notices } = classesToAsk(prediction);
    const whyNot: Array<ClassRationale<WordSpan | PatchBox>> = [];
    for (const other of classes) {
      const candidate = BigInt64Array.of(BigInt(labelNames.indexOf(other[0])));
      const feeds = { ...encoded.feeds, [CANDIDATE_INPUT]: new ort.Tensor("int64", candidate, [1]) };
      const found = await this.run(WHY_NOT, feeds, encoded.tokens);
      whyNot.push({
        ...readCase(other, found.logits, labelNames, calibration?.temperature ?? 1),
        rationale: encoded.part(found.kept, found.scores),
        margin: found.margin,
        kept: found.kept.filter(Boolean).length,
      });
    }
    const explained = { ...prediction, whyNot, notices: [...prediction.notices, ...notices] };
    this.inputs.set(explained, encoded);
    return explained;
  }

  private async answer(input: string | Blob | RawPixels): Promise<Prediction> {
    const { config } = this;
    if (config.modality === "text") {
      if (typeof input !== "string") throw new RekdError("input", "This model reads texts.");
      return this.predictText(input);
    }
    if (typeof input === "string") throw new RekdError("input", "This model reads images.");
    const start = performance.now();
    const picture = input instanceof Blob ? await decode(input) : rawPicture(input);
    try {
      return await this.predictPicture(picture, config, start);
    } finally {
      picture.close();
    }
  }

  /** Give the model's memory back. */
  async release(): Promise<void> {
    const asked = await this.asked?.catch(() => null);
    this.asked = null;
    await this.session.release();
    await asked?.release();
  }

  /** The session of `why_not.onnx`, opened at the first question. Throws where there is none. */
  private async ask(): Promise<ort.InferenceSession> {
    if (this.config.problemType !== "single_label_classification") {
      throw new RekdError(
        "input",
        "The bundle does not answer with one class of several, so it cannot say why not another.",
        "ask a bundle with problem_type single_label_classification",
      );
    }
    if (!this.config.whyNot) {
      throw new RekdError(
        "input",
        "The bundle has no class-wise rationales, so it cannot say why not.",
        "train with class_wise_rationales: true and export again",
      );
    }
    this.asked ??= this.openWhyNot().catch((error: unknown) => {
      this.asked = null;
      throw error;
    });
    return this.asked;
  }

  private async openWhyNot(): Promise<ort.InferenceSession> {
    const entry = this.manifest.files.find(({ path }) => path === WHY_NOT)!;
    const session = await openSession(await verifiedFile(this.source, entry));
    try {
      this.requireInterface(WHY_NOT, session, CANDIDATE_INPUT);
    } catch (error) {
      await session.release();
      throw error;
    }
    return session;
  }

  private async predictText(text: string): Promise<TextPrediction> {
    const start = performance.now();
    const encoded = this.tokenizer!.encode(text);
    const shape = [1, encoded.ids.length];
    const ids = BigInt64Array.from(encoded.ids, BigInt);
    const feeds = {
      input_ids: new ort.Tensor("int64", ids, shape),
      attention_mask: new ort.Tensor("int64", new BigInt64Array(ids.length).fill(1n), shape),
    };
    const preprocessMs = performance.now() - start;
    const answer = await this.run(MODEL, feeds, encoded.ids.length);
    const part = (kept: readonly boolean[], scores: Float32Array) =>
      wordSpans(text, encoded, kept, scores);
    const candidates = encoded.words.filter((word) => word !== null).length;
    const length = Array.from(text).length;
    const notices: string[] = [];
    let readTo = length;
    if (encoded.droppedTokens > 0) {
      readTo = Math.max(...encoded.offsets.map(([, end]) => end));
      notices.push(
        `Truncated: the model reads the first ${candidates} of ` +
          `${candidates + encoded.droppedTokens} tokens (to character ${readTo} of ${length}).`,
      );
    }
    const prediction: TextPrediction = {
      modality: "text",
      text,
      ...this.answered(answer),
      ...evidence(answer, (kept) => part(kept, answer.scores)),
      whyNot: null,
      readTo,
      candidates,
      notices,
      preprocessMs,
    };
    this.inputs.set(prediction, { feeds, tokens: encoded.ids.length, part });
    return prediction;
  }

  private async predictPicture(
    picture: Picture,
    config: ImageConfig,
    start: number,
  ): Promise<ImagePrediction> {
    const { imageSize: size, patchSize, interpolation } = config;
    const view = viewOf(picture.width, picture.height, size);
    if (view.resizedWidth * view.resizedHeight > MOST_PIXELS) {
      throw new RekdError(
        "input",
        `An image of ${picture.width}x${picture.height} pixels is too long and thin.`,
        "Cut out the part that matters.",
      );
    }
    const pixels = resample(view, interpolation, picture.rows(...rowsRead(view, interpolation)));
    const feeds = { pixel_values: pixelTensor(pixels, config) };
    const preprocessMs = performance.now() - start;
    const grid = Math.floor(size / patchSize);
    const answer = await this.run(MODEL, feeds, grid * grid);
    const part = (kept: readonly boolean[], scores: Float32Array) =>
      patchBoxes(view, patchSize, kept, scores);
    const prediction: ImagePrediction = {
      modality: "image",
      ...this.answered(answer),
      ...evidence(answer, (kept) => part(kept, answer.scores)),
      whyNot: null,
      view,
      grid,
      candidates: grid * grid,
      notices: [],
      preprocessMs,
    };
    this.inputs.set(prediction, { feeds, tokens: grid * grid, part });
    return prediction;
  }

  private answered({ logits, kept, margin, modelMs }: ModelAnswer) {
    const count = kept.filter(Boolean).length;
    return { ...decide(logits, margin, this.config), logits, margin, kept: count, modelMs };
  }

  private async run(
    file: typeof MODEL | typeof WHY_NOT,
    feeds: Readonly<Record<string, ort.Tensor>>,
    tokens: number,
  ): Promise<ModelAnswer> {
    const session = file === MODEL ? this.session : await this.ask();
    const start = performance.now();
    const isPair =
      file === MODEL && PAIR_OUTPUTS.every((name) => session.outputNames.includes(name));
    const outputs = isPair ? [...OUTPUTS, ...PAIR_OUTPUTS] : OUTPUTS;
    const found = await session.run(feeds, outputs);
    const modelMs = performance.now() - start;
    const due = [[1, this.config.labelNames.length], [1, tokens], [1, tokens], [1], [1, tokens], [1]];
    outputs.forEach((name, index) => {
      if (String(found[name]!.dims) !== String(due[index])) {
        throw broken(`${file} answers ${name} as [${found[name]!.dims}], not [${due[index]}]`);
      }
    });
    const [logits, masks, scores, margins, reads, cases] = outputs.map((name) => found[name]!.data);
    const mask = (data: unknown) => Array.from(data as Uint8Array, (value) => value !== 0);
    const kept = mask(masks);
    const read = isPair ? mask(reads) : null;
    const answer = {
      logits: logits as Float32Array,
      kept,
      read,
      case: read === null ? null : decided((cases as BigInt64Array)[0]!, read, kept),
      scores: scores as Float32Array,
      margin: (margins as Float32Array)[0]!,
      modelMs,
    };
    if (!answer.logits.every(Number.isFinite) || Number.isNaN(answer.margin)) {
      const hint = "check the bundle with `rekd-edge check`";
      throw new RekdError("backend", "The model answers with numbers that are not finite.", hint);
    }
    return answer;
  }

  /** The browser compiles what a run needs in the first run: not at the cost of the first answer. */
  private async warmUp(): Promise<void> {
    const data = new Uint8Array(4).fill(255);
    await this.predict(this.config.modality === "text" ? "a" : { width: 1, height: 1, data });
  }

  private requireInterface(file: string, session: ort.InferenceSession, ...more: string[]): void {
    const { inputNames, outputNames } = session;
    const isComplete = OUTPUTS.every((name) => outputNames.includes(name));
    if (String(inputNames) !== String([...INPUTS[this.config.modality], ...more]) || !isComplete) {
      throw broken(
        `${file} has inputs ${inputNames.join(", ")} and outputs ${outputNames.join(", ")}, ` +
          `not those of a ${this.config.modality} rationalist`,
      );
    }
  }
}

/** `[1, 3, size, size]` from `[size, size, 3]`, in the arithmetic of the Python runtime. */
function pixelTensor(pixels: Uint8Array, { imageSize, normalisation }: ImageConfig): ort.Tensor {
  const area = imageSize * imageSize;
  const shape = [1, 3, imageSize, imageSize];
  if (normalisation === null) {
    const bytes = new Uint8Array(pixels.length);
    pixels.forEach((value, index) => {
      bytes[(index % 3) * area + Math.floor(index / 3)] = value;
    });
    return new ort.Tensor("uint8", bytes, shape);
  }
  const { fround } = Math;
  const std = normalisation.std.map(fround);
  const scale = std.map((value) => fround(fround(1 / 255) / value));
  const shift = normalisation.mean.map((value, channel) => fround(fround(value) / std[channel]!));
  const values = new Float32Array(pixels.length);
  pixels.forEach((value, index) => {
    const channel = index % 3;
    values[channel * area + Math.floor(index / 3)] =
      fround(value * scale[channel]!) - shift[channel]!;
  });
  return new ort.Tensor("float32", values, shape);
}

async function openSession(
  model: Uint8Array,
  wasm?: string | URL,
): Promise<ort.InferenceSession> {
  ort.env.logLevel = "error";
  ort.env.wasm.numThreads = 1;
  if (wasm !== undefined) ort.env.wasm.wasmPaths = { wasm };
  try {
    return await ort.InferenceSession.create(model, { executionProviders: ["wasm"] });
  } catch (error) {
    const reason = error instanceof Error ? error.message : String(error);
    throw new RekdError(
      "backend",
      `ONNX Runtime cannot open the model here: ${reason}`,
      "Use a current browser with WebAssembly SIMD, and a device with enough memory.",
    );
  }
}
