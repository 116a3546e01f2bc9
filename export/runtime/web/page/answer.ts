/** Every kind of answer in words: what stands first, and the numbers of every label. */
import type { ClassRationale, Config, Prediction, ProblemType } from "../src/rationalist.js";

export interface Row {
  readonly name: string;
  /** Null where there is no share to draw. */
  readonly share: number | null;
  readonly text: string;
}

export interface Shown {
  readonly answer: string;
  /** Of the answer, where it is one; otherwise the numbers are in it. */
  readonly number: string;
  readonly title: string;
  /** The largest share first; values in the bundle's order. */
  readonly rows: readonly Row[];
}

export function percent(share: number): string {
  if (share > 0 && share < 0.001) return "< 0.1 %";
  return share < 1 && share > 0.999 ? "> 99.9 %" : `${(share * 100).toFixed(1)} %`;
}

export function shown(prediction: Prediction): Shown {
  if (prediction.problemType === "regression") {
    const rows = prediction.values.map(([name, value]) => {
      return { name, share: null, text: String(Number(value.toPrecision(6))) };
    });
    return { answer: listed(rows), number: "", title: "Values", rows };
  }
  const rows = prediction.probabilities
    .map(([name, share]) => ({ name, share, text: percent(share) }))
    .sort((left, right) => right.share - left.share);
  if (prediction.problemType === "single_label_classification") {
    const { label, probability } = prediction;
    return { answer: label, number: percent(probability), title: "Probabilities", rows };
  }
  const found = new Set(prediction.labels);
  const answer = listed(rows.filter(({ name }) => found.has(name))) || "None of the labels";
  return { answer, number: "", title: "Probabilities, each label's own", rows };
}

function listed(rows: readonly Row[]): string {
  return rows.map(({ name, text }) => `${name} ${text}`).join(", ");
}

/** What the button under an answer asks. */
export function question(prediction: Prediction): string {
  const { rows, answer } = shown(prediction);
  const others = rows.map(({ name }) => name).filter((name) => name !== answer);
  return `Why not ${others.length > 2 ? "another label" : others.join(" or ")}?`;
}

/** What the model says from the best case for a label alone, in the words of the command line. */
export function bestCase(one: ClassRationale<unknown>, { modality, ...answered }: Prediction): string {
  const { label, kept, convinces, says, saysProbability } = one;
  const unit = modality === "text" ? "token" : "patch";
  const units = modality === "text" ? "tokens" : "patches";
  const own = `${label} ${percent(one.probability)}`;
  const isStill = "label" in answered && says === answered.label;
  const said = convinces ? own : `${isStill ? "still " : ""}${says} ${percent(saysProbability)}, ${own}`;
  return `From its best ${kept === 1 ? unit : `${kept} ${units}`} alone: ${said}.`;
}

interface Words {
  /** What the numbers are about. */
  readonly labels: string;
  /** The score of the bundle's manifest. */
  readonly score: string;
  readonly unsure: (found: string, least: string) => string;
  readonly below: string;
  readonly always: string;
  readonly field: string;
  readonly button: string;
}

export const WORDS: Readonly<Record<ProblemType, Words>> = {
  single_label_classification: {
    labels: "Labels",
    score: "Right on its test data",
    unsure: (found, least) =>
      `The highest probability, ${found} %, is below ${least} %: too low for this model to answer.`,
    below: "the probability",
    always:
      "No answer is withheld: every input gets one of the labels, also one that belongs to none of them.",
    field: "Text to classify",
    button: "Classify",
  },
  multi_label_classification: {
    labels: "Labels, any number of them",
    score: "Micro F1 on its test data",
    unsure: (found, least) =>
      `It is ${found} % sure of the label that it is least sure of, and below ${least} % this model does not answer.`,
    below: "its surety of any label",
    always:
      "No answer is withheld: a label is given where its probability is above one half, and an input may get none.",
    field: "Text to label",
    button: "Label",
  },
  regression: {
    labels: "Values",
    score: "R² on its test data",
    unsure: () => "",
    below: "",
    always: "No answer is withheld: every input gets a value, also one unlike those of its data.",
    field: "Text to rate",
    button: "Answer",
  },
};

export function score({ problemType }: Config, measured: number | undefined): string {
  if (measured === undefined) return "not measured";
  return problemType === "single_label_classification" ? percent(measured) : measured.toFixed(3);
}

/** What this bundle's numbers are worth, and whether it always answers. */
export function limitsOf({ calibration, modality, problemType }: Config): [string, string] {
  const words = WORDS[problemType];
  if (problemType === "regression") {
    return ["A value comes without a measure of how sure it is.", words.always];
  }
  const worth =
    calibration === null
      ? "Probabilities are not calibrated: they are not the chance of being right."
      : `Probabilities are calibrated (temperature ${calibration.temperature.toPrecision(3)}) for ` +
        "inputs like those of the development data; for others they may be far from true.";
  const { confidenceThreshold = null, marginThreshold = null } = calibration ?? {};
  const low: string[] = [];
  if (confidenceThreshold !== null) {
    low.push(`${words.below} is below ${(confidenceThreshold * 100).toPrecision(3)} %`);
  }
  if (marginThreshold !== null) low.push(`the margin is below ${marginThreshold.toPrecision(3)}`);
  const withheld =
    low.length === 0
      ? words.always
      : `No answer is given where ${low.join(" or ")}. What is answered can still be wrong, and ` +
        `${modality === "text" ? "a text" : "an image"} that belongs to none of the labels may get one.`;
  return [worth, withheld];
}

/** A number that is too low, and the least that would do, in as many digits as tell them apart. */
function tooLow(value: number, least: number): [string, string] {
  let digits = 3;
  while (digits < 17 && value.toPrecision(digits) === least.toPrecision(digits)) digits++;
  return [value.toPrecision(digits), least.toPrecision(digits)];
}

/** Why there is no answer; empty where there is one. */
export function reasons(prediction: Prediction, { calibration }: Config): string {
  const { margin, refusedFor, modality, confidence, problemType } = prediction;
  return refusedFor
    .map((reason) => {
      if (reason === "confidence") {
        const least = calibration!.confidenceThreshold!;
        return WORDS[problemType].unsure(...tooLow(confidence! * 100, least * 100));
      }
      const [found, least] = tooLow(margin, calibration!.marginThreshold!);
      const parts = modality === "text" ? "words" : "patches";
      return `The margin, ${found}, is below ${least}: the choice of ${parts} is too near to a tie.`;
    })
    .join(" ");
}
