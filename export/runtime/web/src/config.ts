import { RekdError, broken } from "./errors.js";
import { CONFIG_SCHEMA_VERSION, parseJson, requireSchema } from "./manifest.js";
import type { Interpolation } from "./resample.js";

/** What turns logits into probabilities, and below what no answer is given (docs/bundle.md). */
export interface Calibration {
  readonly temperature: number;
  /** Null: any probability is answered. */
  readonly confidenceThreshold: number | null;
  /** Null: any margin is answered. */
  readonly marginThreshold: number | null;
}

/** What a bundle answers, in the words of transformers. */
export const PROBLEM_TYPES = [
  "single_label_classification",
  "multi_label_classification",
  "regression",
] as const;
export type ProblemType = (typeof PROBLEM_TYPES)[number];

interface Shared {
  readonly problemType: ProblemType;
  /** Classes, labels, or what the values are. */
  readonly labelNames: readonly string[];
  readonly rationaleRatio: number;
  readonly precision: string;
  /** Null where the bundle has none: temperature 1, and nothing is withheld. */
  readonly calibration: Calibration | null;
  /** Whether there is a `why_not.onnx`. */
  readonly whyNot: boolean;
}

export interface TextConfig extends Shared {
  readonly modality: "text";
  /** Tokens, special tokens included. */
  readonly maxLength: number;
}

export interface ImageConfig extends Shared {
  readonly modality: "image";
  /** Side of the model's view, in pixels. */
  readonly imageSize: number;
  readonly patchSize: number;
  readonly interpolation: Interpolation;
  /** Null where the model takes 8-bit pixels. */
  readonly normalisation: { readonly mean: readonly number[]; readonly std: readonly number[] } | null;
}

/** What `config.json` and `preprocessor_config.json` say, as far as it is needed here. */
export type Config = TextConfig | ImageConfig;

export function readConfig(configFile: Uint8Array, preprocessorFile: Uint8Array): Config {
  const document = parseJson(configFile, "config.json");
  const schema = requireSchema(document, "config.json", CONFIG_SCHEMA_VERSION);
  const preprocessing = parseJson(preprocessorFile, "preprocessor_config.json");
  const runtime = document["runtime"] ?? "onnxruntime";
  if (runtime !== "onnxruntime") {
    throw new RekdError(
      "backend",
      `The bundle was made for ${String(runtime)}; this page runs ONNX Runtime.`,
      "export it with --target onnx",
    );
  }
  const modality = document["modality"];
  if ((modality !== "text" && modality !== "image") || preprocessing["modality"] !== modality) {
    throw broken(`config.json: modality ${String(modality)} does not fit the preprocessor`);
  }
  const problemType = problem(document["problem_type"] ?? "single_label_classification", schema);
  const shared = {
    problemType,
    labelNames: names(document["label_names"], problemType),
    rationaleRatio: positive(document["rationale_ratio"], "rationale_ratio"),
    precision: String(document["precision"] ?? "fp32"),
    calibration: calibration(document["calibration"] ?? null, schema, problemType),
    whyNot: (document["why_not"] ?? null) !== null,
  };
  if (modality === "text") {
    return { modality, ...shared, maxLength: count(preprocessing["max_length"], "max_length") };
  }
  const imageSize = count(preprocessing["image_size"], "image_size");
  const patchSize = count(document["patch_size"], "patch_size");
  const interpolation = preprocessing["interpolation"];
  if (patchSize > imageSize) throw broken("config.json: a patch is larger than the image");
  if (!["bilinear", "bicubic", "lanczos"].includes(String(interpolation))) {
    throw broken(`preprocessor_config.json: interpolation ${String(interpolation)} is not known`);
  }
  return {
    modality,
    ...shared,
    imageSize,
    patchSize,
    interpolation: interpolation as Interpolation,
    normalisation:
      preprocessing["model_normalises"] === true
        ? null
        : {
            mean: triple(preprocessing["mean"], "mean"),
            std: triple(preprocessing["std"], "std").map((value) => positive(value, "std")),
          },
  };
}

function problem(value: unknown, schema: number): ProblemType {
  const known = PROBLEM_TYPES.find((name) => name === value);
  if (known === undefined) {
    throw broken(`config.json: problem_type ${JSON.stringify(value)} is not known`);
  }
  if (known !== "single_label_classification" && schema < 3) {
    throw broken(`config.json: problem_type ${known} needs schema_version 3`);
  }
  return known;
}

function calibration(value: unknown, schema: number, problemType: ProblemType): Calibration | null {
  if (value === null) return null;
  if (problemType === "regression") {
    throw broken("config.json: a regression has no probabilities to calibrate");
  }
  if (schema < 2) throw broken("config.json: calibration needs schema_version 2");
  if (typeof value !== "object" || Array.isArray(value)) {
    throw broken("config.json: calibration is neither null nor an object");
  }
  const document = value as Record<string, unknown>;
  if (document["method"] !== "temperature") {
    throw broken(`config.json: calibration by ${JSON.stringify(document["method"])} is not known`);
  }
  const temperature = document["temperature"];
  if (typeof temperature !== "number" || !(temperature >= 0.01 && temperature <= 100)) {
    throw broken("config.json: calibration.temperature is not a number between 0.01 and 100");
  }
  return {
    temperature,
    confidenceThreshold: threshold(document, "confidence_threshold", 1),
    marginThreshold: threshold(document, "margin_threshold", Number.MAX_VALUE),
  };
}

/** A number in 0..`most`, or null. */
function threshold(document: Record<string, unknown>, name: string, most: number): number | null {
  const value = document[name];
  if (value === null) return null;
  if (typeof value === "number" && value >= 0 && value <= most) return value;
  const range = most === 1 ? "between 0 and 1" : "of at least 0";
  throw broken(`config.json: calibration.${name} is neither null nor a number ${range}`);
}

function names(value: unknown, problemType: ProblemType): string[] {
  const least = problemType === "single_label_classification" ? 2 : 1;
  if (!Array.isArray(value) || value.length < least) throw broken("config.json: label_names");
  return value.map(String);
}

function positive(value: unknown, name: string): number {
  if (typeof value === "number" && value > 0 && Number.isFinite(value)) return value;
  throw broken(`${name} is not a positive number`);
}

function count(value: unknown, name: string): number {
  const number = positive(value, name);
  if (!Number.isInteger(number)) throw broken(`${name} is not a whole number`);
  return number;
}

function triple(value: unknown, name: string): number[] {
  if (Array.isArray(value) && value.length === 3 && value.every((x) => typeof x === "number")) {
    return value as number[];
  }
  throw broken(`${name} is not three numbers`);
}
