import assert from "node:assert/strict";

/**
 * What the two runtimes may differ by. fp32: rounding alone. int8: activations at the edge of a
 * step fall to either side, and the difference goes on through the layers.
 */
export const TOLERANCE = {
  fp32: { logits: 1e-4, probabilities: 1e-4, margins: 1e-4, labels: 1, rationales: 1, refusals: 1, decisions: 1, whyNots: 1 },
  int8: { logits: 0.5, probabilities: 0.25, margins: 0.1, labels: 0.99, rationales: 0.97, refusals: 0.97, decisions: 0.97, whyNots: 1 },
};

const positions = (rationale) =>
  rationale === null ? null : rationale.flatMap((part) => part.tokens ?? [[part.row, part.column]]).join(" ");

const distance = (found, due) => (found === due ? 0 : Math.abs(found - due));

/** Compares the best cases of one answer: the same classes in the same order, each with the same outcome. */
function whyNotDifferences(found, due) {
  const outcomes = (cases) => JSON.stringify(cases?.map((one) => [one.label, one.says, one.convinces, one.kept, positions(one.rationale)]) ?? null);
  if (outcomes(found) !== outcomes(due)) return { isSame: false, probability: 0, margin: 0 };
  const pairs = (found ?? []).map((one, index) => [one, due[index]]);
  for (const [one, other] of pairs) assert.deepEqual(places(one.rationale), places(other.rationale));
  const largest = (differ) => Math.max(0, ...pairs.map(([one, other]) => differ(one, other)));
  return {
    isSame: true,
    probability: largest((one, other) =>
      Math.max(
        distance(one.probability, other.probability),
        distance(one.saysProbability, other.says_probability),
        distance(one.answerProbability, other.answer_probability),
      ),
    ),
    margin: largest((one, other) => distance(one.margin, other.margin ?? Infinity)),
  };
}

/** Where the parts of a rationale lie. */
function places(rationale) {
  const boxes = ["x", "y", "width", "height", "row", "column"];
  const spans = ["start", "end", "text", "word"];
  return rationale.map((part) => (part.tokens === undefined ? boxes : spans).map((key) => part[key]));
}

/** Compares one answer (plain values) with that of the Python runtime. */
export function differences(found, due) {
  const logits = Math.max(
    ...due.logits.map((logit, index) => Math.abs(logit - found.logits[index])),
  );
  // Of a regression these are its values.
  const [mine, true_] = [found.values ?? found.probabilities, due.values ?? due.probabilities];
  assert.deepEqual(mine.map(([name]) => name), Object.keys(true_));
  const probabilities = Math.max(...mine.map(([name, share]) => Math.abs(share - true_[name])));
  if (found.problemType === "single_label_classification") {
    assert.equal(found.probability, Math.max(...mine.map(([, share]) => share)));
  }
  assert.equal(found.abstain, found.refusedFor.length > 0);
  const isSameDecision =
    found.case === due.case &&
    positions(found.answerRationale) === positions(due.answer_rationale) &&
    positions(found.consulted) === positions(due.consulted);
  const isSameRationale = positions(found.rationale) === positions(due.rationale);
  if (isSameRationale) {
    assert.deepEqual(places(found.rationale), places(due.rationale));
    if (isSameDecision && due.case !== null) {
      assert.deepEqual(places(found.answerRationale), places(due.answer_rationale));
      assert.deepEqual(places(found.consulted), places(due.consulted));
    }
  }
  assert.equal(found.kept, due.kept);
  assert.equal(found.candidates, due.candidates);
  const whyNot = whyNotDifferences(found.whyNot, due.why_not);
  return {
    logits,
    probabilities: Math.max(probabilities, whyNot.probability),
    isSameWhyNot: whyNot.isSame,
    isSameRefusal: String(found.refusedFor) === String(due.refused_for),
    isSameDecision,
    isSameLabel: String(found.label ?? found.labels) === String(due.label ?? due.labels),
    isSameRationale,
    /** Infinite where one of the two is. */
    margin: Math.max(distance(found.margin, due.margin ?? Infinity), whyNot.margin),
  };
}

/** Asserts over all answers of a bundle; returns a line that says how near they are. */
export function judge(name, precision, rows) {
  const limit = TOLERANCE[precision];
  const share = (key) => rows.filter((row) => row[key]).length / rows.length;
  const largest = (values) => values.reduce((most, value) => Math.max(most, value), 0);
  const same = rows.filter((row) => row.isSameRationale);
  const logits = largest(same.map((row) => row.logits));
  const probabilities = largest(same.map((row) => row.probabilities));
  const margin = largest(same.map((row) => row.margin));
  const line =
    `${name} (${precision}): ${rows.length} inputs, same labels ${share("isSameLabel")}, same ` +
    `rationales ${share("isSameRationale")}, withheld the same ${share("isSameRefusal")}, decided the same ${share("isSameDecision")}, ` +
    `why not the same ${share("isSameWhyNot")}, largest difference ` +
    `of a logit ${logits}, of a probability ${probabilities}, of a margin ${margin}`;
  assert.ok(share("isSameLabel") >= limit.labels, line);
  assert.ok(share("isSameRationale") >= limit.rationales, line);
  assert.ok(share("isSameRefusal") >= limit.refusals, line);
  assert.ok(share("isSameDecision") >= limit.decisions, line);
  assert.ok(share("isSameWhyNot") >= limit.whyNots, line);
  assert.ok(logits <= limit.logits, line);
  assert.ok(probabilities <= limit.probabilities, line);
  assert.ok(margin <= limit.margins, line);
  assert.ok(rows.every((row) => Number.isFinite(row.margin)), line);
  return line;
}
