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

test("the best case for each other class is compared, whatever differs in it", () => {
  const best = {
    label: "b",
    probability: 0.4,
    says: "a",
    says_probability: 0.6,
    convinces: false,
    answer_probability: 0.3,
    rationale: due.rationale,
    margin: null,
    kept: 1,
  };
  const mine = { ...best, saysProbability: 0.6, answerProbability: 0.3, margin: Infinity };
  const found = { ...due, probabilities: [["a", 0.7], ["b", 0.3]], probability: 0.7, refusedFor: [], abstain: false, margin: 1 };
  const compared = (whyNot, why_not = [best, best]) =>
    judge("one", "fp32", [differences({ ...found, whyNot }, { ...due, margin: 1, why_not })]);
  const near = { probability: 0.40005, saysProbability: 0.59995, answerProbability: 0.29995 };
  compared([mine, { ...mine, ...near }]);
  compared(null, null);
  const other = [{ ...due.rationale[0], tokens: [2] }];
  for (const change of [{ label: "c" }, { says: "b" }, { convinces: true }, { kept: 2 }, { rationale: other }]) {
    assert.throws(() => compared([mine, { ...mine, ...change }]), /why not the same 0,/);
  }
  for (const cases of [null, [], [mine], [mine, mine, mine]]) assert.throws(() => compared(cases), /why not the same 0,/);
  assert.throws(() => compared([], null), /why not the same 0,/);
  for (const name of Object.keys(near)) {
    assert.throws(() => compared([mine, { ...mine, [name]: mine[name] + 2e-4 }]), /of a probability 0\.0/);
    assert.throws(() => compared([mine, { ...mine, [name]: NaN }]), /of a probability NaN/);
  }
  assert.throws(() => compared([mine, { ...mine, margin: 1 }]), /of a margin Infinity/);
  const moved = [{ ...due.rationale[0], end: 2 }];
  assert.throws(() => compared([mine, { ...mine, rationale: moved }]), { code: "ERR_ASSERTION" });
});
