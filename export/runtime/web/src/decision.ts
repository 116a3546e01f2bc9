import type { Config } from "./config.js";

/** Why an answer is withheld: its probability, or its margin, is below the bundle's threshold. */
export type Refusal = "confidence" | "margin";

export interface Decision {
  /** The most probable one, also where `abstain` is true. */
  readonly label: string;
  /** Of the label; calibrated where the bundle says how. */
  readonly probability: number;
  /** By label, in the order of the logits. */
  readonly probabilities: ReadonlyArray<readonly [string, number]>;
  /** Whether the bundle does not answer for this label or its rationale: see `refusedFor`. */
  readonly abstain: boolean;
  readonly refusedFor: readonly Refusal[];
}

/** As docs/bundle.md says, in the order of the Python runtime's operations. */
export function decide(
  logits: Float32Array,
  margin: number,
  { labelNames, calibration }: Pick<Config, "labelNames" | "calibration">,
): Decision {
  const { temperature = 1, confidenceThreshold = null, marginThreshold = null } = calibration ?? {};
  const scaled = Array.from(logits, (logit) => logit / temperature);
  const highest = Math.max(...scaled);
  const exponents = scaled.map((value) => Math.exp(value - highest));
  const sum = exponents.reduce((total, value) => total + value, 0);
  const probabilities = labelNames.map((name, index) => [name, exponents[index]! / sum] as const);
  const [label, probability] = probabilities[logits.indexOf(Math.max(...logits))]!;
  const refusedFor: Refusal[] = [];
  if (confidenceThreshold !== null && probability < confidenceThreshold) {
    refusedFor.push("confidence");
  }
  if (marginThreshold !== null && margin < marginThreshold) refusedFor.push("margin");
  return { label, probability, probabilities, abstain: refusedFor.length > 0, refusedFor };
}
