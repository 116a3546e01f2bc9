import type { Config, ProblemType } from "./config.js";

/** Why an answer is withheld: its confidence, or its margin, is below the bundle's threshold. */
export type Refusal = "confidence" | "margin";

interface Said {
  readonly problemType: ProblemType;
  /** What is held to the bundle's threshold; null where there is nothing to hold. */
  readonly confidence: number | null;
}

/** One class. */
export interface SaidLabel extends Said {
  readonly problemType: "single_label_classification";
  /** The most probable one, also where `abstain` is true. */
  readonly label: string;
  /** Of the label; calibrated where the bundle says how. */
  readonly probability: number;
  /** By label, in the order of the logits; they add up to 1. */
  readonly probabilities: ReadonlyArray<readonly [string, number]>;
  readonly confidence: number;
}

/** Any number of labels. */
export interface SaidLabels extends Said {
  readonly problemType: "multi_label_classification";
  /** Those with a probability above one half; there may be none. */
  readonly labels: readonly string[];
  /** By label, in the order of the logits; each is its label's own. */
  readonly probabilities: ReadonlyArray<readonly [string, number]>;
  /** Of the label that it is least sure of: the greater of p and 1 - p. */
  readonly confidence: number;
}

/** Numbers. */
export interface SaidValues extends Said {
  readonly problemType: "regression";
  readonly values: ReadonlyArray<readonly [string, number]>;
  readonly confidence: null;
}

export interface Withheld {
  /** Whether the bundle does not answer for this label or its rationale: see `refusedFor`. */
  readonly abstain: boolean;
  readonly refusedFor: readonly Refusal[];
}

export type Decision = (SaidLabel | SaidLabels | SaidValues) & Withheld;

/** One class of several. */
export function mostProbable(
  logits: Float32Array,
  names: readonly string[],
  temperature: number,
): SaidLabel {
  const scaled = Array.from(logits, (logit) => logit / temperature);
  const highest = Math.max(...scaled);
  const exponents = scaled.map((value) => Math.exp(value - highest));
  const sum = exponents.reduce((total, value) => total + value, 0);
  const probabilities = names.map((name, index) => [name, exponents[index]! / sum] as const);
  const [label, probability] = probabilities[logits.indexOf(Math.max(...logits))]!;
  const problemType = "single_label_classification" as const;
  return { problemType, label, probability, probabilities, confidence: probability };
}

/** What a row of logits means, by problem type; docs/bundle.md has the rules. */
const READ = {
  single_label_classification: mostProbable,
  multi_label_classification(logits: Float32Array, names: readonly string[], temperature: number) {
    const each = Array.from(logits, (logit) => sigmoid(logit / temperature));
    return {
      problemType: "multi_label_classification" as const,
      labels: names.filter((_, index) => logits[index]! > 0),
      probabilities: names.map((name, index) => [name, each[index]!] as const),
      confidence: Math.min(...each.map((share) => Math.max(share, 1 - share))),
    };
  },
  regression(logits: Float32Array, names: readonly string[]) {
    const values = names.map((name, index) => [name, logits[index]!] as const);
    return { problemType: "regression" as const, values, confidence: null };
  },
};

/** Neither a large logit nor its negative overflows. */
function sigmoid(logit: number): number {
  const small = Math.exp(-Math.abs(logit));
  return logit >= 0 ? 1 / (1 + small) : small / (1 + small);
}

/** As docs/bundle.md says, in the order of the Python runtime's operations. */
export function decide(
  logits: Float32Array,
  margin: number,
  { problemType, labelNames, calibration }: Pick<Config, "problemType" | "labelNames" | "calibration">,
): Decision {
  const { temperature = 1, confidenceThreshold = null, marginThreshold = null } = calibration ?? {};
  const said = READ[problemType](logits, labelNames, temperature);
  const refusedFor: Refusal[] = [];
  const { confidence } = said;
  if (confidence !== null && confidenceThreshold !== null && confidence < confidenceThreshold) {
    refusedFor.push("confidence");
  }
  if (marginThreshold !== null && margin < marginThreshold) refusedFor.push("margin");
  return { ...said, abstain: refusedFor.length > 0, refusedFor };
}
