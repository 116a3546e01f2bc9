/** The best case for each other class (docs/why-not.md). */
import { type SaidLabel, mostProbable } from "./decision.js";

/** At most so many classes are asked for: each costs about as much as an answer. */
export const WHY_NOT_CLASSES = 8;

/** What speaks for a class most, and what the model says from that. */
export interface ClassRationale<Part> {
  readonly label: string;
  /** Of `label`, from `rationale` alone; calibrated as the answer's. */
  readonly probability: number;
  /** The most probable label from `rationale` alone. */
  readonly says: string;
  readonly saysProbability: number;
  /** Whether that is `label`. */
  readonly convinces: boolean;
  /** Of `label` in the answer, from the answer's own rationale. */
  readonly answerProbability: number;
  readonly rationale: readonly Part[];
  /** As the answer's: near 0, another device may choose differently. */
  readonly margin: number;
  readonly kept: number;
}

type Label = readonly [name: string, probability: number];

/**
 * The classes to ask for, the most probable first, of equals the first of the bundle; and a notice
 * where these are not all but the answer's.
 */
export function classesToAsk({
  label,
  probabilities,
}: Pick<SaidLabel, "label" | "probabilities">): { classes: Label[]; notices: string[] } {
  const others = probabilities.filter(([name]) => name !== label);
  const classes = others.sort(([, one], [, other]) => other - one).slice(0, WHY_NOT_CLASSES);
  const found = `the ${classes.length} most probable of the ${others.length} other classes`;
  const notices = others.length > classes.length ? [`Why not: asked for ${found}.`] : [];
  return { classes, notices };
}

/** What `logits`, of the rationale for a class, say of it. */
export function readCase(
  [label, answerProbability]: Label,
  logits: Float32Array,
  names: readonly string[],
  temperature: number,
): Omit<ClassRationale<never>, "rationale" | "margin" | "kept"> {
  const said = mostProbable(logits, names, temperature);
  return {
    label,
    probability: said.probabilities[names.indexOf(label)]![1],
    says: said.label,
    saysProbability: said.probability,
    convinces: said.label === label,
    answerProbability,
  };
}
