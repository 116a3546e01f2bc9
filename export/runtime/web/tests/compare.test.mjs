/** The comparison itself: what it has to find. */
import assert from "node:assert/strict";
import { test } from "node:test";

import { differences, judge } from "./compare.mjs";

const due = {
  problemType: "single_label_classification",
  label: "a",
  logits: [1, 0],
  probabilities: { a: 0.7, b: 0.3 },
  rationale: [{ start: 0, end: 1, text: "x", word: 0, tokens: [1] }],
  refused_for: [],
  case: null,
  answer_rationale: null,
  answerRationale: null,
  consulted: null,
  kept: 1,
  candidates: 2,
};

function judged(precision, foundMargin, dueMargin) {
  const found = { ...due, probabilities: [["a", 0.7], ["b", 0.3]], probability: 0.7, refusedFor: [], abstain: false };
  const row = differences({ ...found, margin: foundMargin }, { ...due, margin: dueMargin });
  return judge("one", precision, [row]);
}

for (const [precision, near, far] of [["fp32", 9e-5, 2e-4], ["int8", 0.09, 0.2]]) {
  test(`margins of ${precision} are held to their bound, infinite ones to each other`, () => {
    judged(precision, 1 + near, 1);
    judged(precision, Infinity, null);
    assert.throws(() => judged(precision, 1 + far, 1), /of a margin 0\.[0-9]/);
    assert.throws(() => judged(precision, 1, null), /of a margin Infinity/);
    assert.throws(() => judged(precision, Infinity, 1), /of a margin Infinity/);
    assert.throws(() => judged(precision, NaN, 1), /of a margin NaN/);
  });
}

test("what decided between two students, and what the one that answers read, are compared", () => {
  const expected = { ...due, case: "agree", answer_rationale: due.rationale, consulted: [] };
  const pair = { ...due, case: "agree", answerRationale: due.rationale, consulted: [], margin: 1 };
  const found = { ...pair, probabilities: [["a", 0.7], ["b", 0.3]], probability: 0.7, refusedFor: [], abstain: false };
  const compared = (changes) => judge("one", "fp32", [differences({ ...found, ...changes }, { ...expected, margin: 1 })]);
  compared({});
  const wrong = [
    { case: "confidence" },
    { answerRationale: [], consulted: due.rationale },
    { answerRationale: null, consulted: null, case: null },
  ];
  for (const changes of wrong) assert.throws(() => compared(changes), /decided the same 0,/);
});
