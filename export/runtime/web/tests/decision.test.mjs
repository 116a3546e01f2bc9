/** What is made of a bundle's calibration, and of what cannot be applied; values by hand. */
import assert from "node:assert/strict";
import fs from "node:fs";
import fsp from "node:fs/promises";
import os from "node:os";
import path from "node:path";
import { after, before, test } from "node:test";

import { library } from "./build.mjs";

const folder = fs.mkdtempSync(path.join(os.tmpdir(), "rekd-web-"));
let rekd;

before(async () => {
  rekd = await library(folder);
});
after(() => fsp.rm(folder, { recursive: true }));

const CALIBRATION = {
  method: "temperature",
  temperature: 2.5,
  confidence_threshold: 0.75,
  margin_threshold: 0.01,
  asked: { coverage: 0.5, risk: null, rationale_risk: 0.02, confidence: 0.9 },
  split: "dev",
  examples: 200,
};
const CONFIG = { modality: "text", label_names: ["no", "yes"], rationale_ratio: 0.25 };
const bytes = (document) =>
  new TextEncoder().encode(typeof document === "string" ? document : JSON.stringify(document));
const PREPROCESSING = bytes({ modality: "text", max_length: 48 });
const read = (changes) => rekd.readConfig(bytes({ ...CONFIG, ...changes }), PREPROCESSING);

test("calibration is read from config.json", () => {
  assert.deepEqual(read({ schema_version: 2, calibration: CALIBRATION }).calibration, {
    temperature: 2.5,
    confidenceThreshold: 0.75,
    marginThreshold: 0.01,
  });
  const open = { ...CALIBRATION, confidence_threshold: null, margin_threshold: null };
  assert.deepEqual(read({ schema_version: 2, calibration: open }).calibration, {
    temperature: 2.5,
    confidenceThreshold: null,
    marginThreshold: null,
  });
  const edges = { ...CALIBRATION, confidence_threshold: 1, margin_threshold: 0 };
  const { confidenceThreshold, marginThreshold } = read({ schema_version: 2, calibration: edges }).calibration;
  assert.deepEqual([confidenceThreshold, marginThreshold], [1, 0]);
});

test("schemas 1 to 3 without calibration are read, and no other", () => {
  assert.equal(read({ schema_version: 1 }).calibration, null);
  assert.equal(read({ schema_version: 2 }).calibration, null);
  assert.equal(read({ schema_version: 3 }).problemType, "single_label_classification");
  assert.equal(read({ schema_version: 2, calibration: null }).calibration, null);
  for (const [version, message] of [[4, /schema_version 4 is newer than 3/], [0, /positive/], ["2", /positive/], [1.5, /positive/]]) {
    assert.throws(() => read({ schema_version: version }), { kind: "integrity", message });
  }
});

for (const [change, message] of [
  [{ method: "isotonic" }, /"isotonic" is not known/],
  [{ method: undefined }, /undefined is not known/],
  [{ temperature: 0 }, /temperature is not a number between 0.01 and 100/],
  [{ temperature: 0.009 }, /temperature/],
  [{ temperature: 101 }, /temperature/],
  [{ temperature: -1 }, /temperature/],
  [{ temperature: "2" }, /temperature/],
  [{ temperature: true }, /temperature/],
  [{ temperature: null }, /temperature/],
  [{ temperature: undefined }, /temperature/],
  [{ confidence_threshold: 1.5 }, /confidence_threshold is neither null nor a number between 0 and 1/],
  [{ confidence_threshold: -0.1 }, /confidence_threshold/],
  [{ confidence_threshold: undefined }, /confidence_threshold/],
  [{ margin_threshold: -0.1 }, /margin_threshold is neither null nor a number of at least 0/],
  [{ margin_threshold: "high" }, /margin_threshold/],
  [{ margin_threshold: undefined }, /margin_threshold/],
]) {
  test(`calibration with ${Object.entries(change).map(([key, value]) => `${key} ${value}`)} is refused`, () => {
    const calibration = { ...CALIBRATION, ...change };
    assert.throws(() => read({ schema_version: 2, calibration }), { name: "RekdError", kind: "integrity", message });
  });
}

test("calibration that is no object, infinite, no number or of schema 1 is refused", () => {
  for (const calibration of ["temperature", [], [CALIBRATION], 1, false]) {
    assert.throws(() => read({ schema_version: 2, calibration }), { kind: "integrity", message: /neither null nor an object/ });
  }
  const text = JSON.stringify({ ...CONFIG, schema_version: 2, calibration: CALIBRATION });
  for (const [from, to, message] of [
    ["2.5", "1e999", /temperature is not a number/],
    ["0.01", "1e999", /margin_threshold/],
    ["2.5", "NaN", /not valid JSON/],
  ]) {
    assert.throws(() => rekd.readConfig(bytes(text.replace(from, to)), PREPROCESSING), { kind: "integrity", message });
  }
  assert.throws(() => read({ schema_version: 1, calibration: CALIBRATION }), {
    kind: "integrity",
    message: /calibration needs schema_version 2/,
    hint: /again/,
  });
});

const near = (found, due) => assert.ok(Math.abs(found - due) < 1e-15, `${found} is not ${due}`);
const decide = (logits, margin, calibration, problemType = "single_label_classification") =>
  rekd.decide(Float32Array.from(logits), margin, {
    problemType,
    labelNames: ["no", "yes"],
    calibration: calibration && { confidenceThreshold: null, marginThreshold: null, ...calibration },
  });

test("probabilities are the softmax of logits over the temperature", () => {
  // 1 / (1 + e^2), 1 / (1 + e) and 1 / (1 + e^4), to 16 digits.
  for (const [temperature, low] of [[1, 0.1192029220221176], [2, 0.2689414213699951], [0.5, 0.01798620996209156]]) {
    const answer = decide([1, 3], Infinity, { temperature });
    near(answer.probabilities[0][1], low);
    near(answer.probabilities[1][1], 1 - low);
    assert.deepEqual(answer.probabilities.map(([name]) => name), ["no", "yes"]);
    assert.equal(answer.label, "yes");
    assert.equal(answer.probability, answer.probabilities[1][1]);
    assert.deepEqual([answer.abstain, answer.refusedFor], [false, []]);
  }
  near(decide([1, 3], 0, null).probability, 0.8807970779778824);
  assert.deepEqual(decide([1, 3], 0, null).refusedFor, []);
});

test("large logits do not overflow, and the first of equals is the label", () => {
  assert.equal(decide([3e4, -3e4], 1, { temperature: 0.05 }).probability, 1);
  const tie = decide([2, 2], 1, { temperature: 3 });
  assert.deepEqual([tie.label, tie.probability], ["no", 0.5]);
});

test("what lies below a threshold is withheld; equal is answered, and so is an infinite margin", () => {
  const refused = (margin, confidenceThreshold, marginThreshold) => {
    const answer = decide([2, 2], margin, { temperature: 3, confidenceThreshold, marginThreshold });
    assert.equal(answer.abstain, answer.refusedFor.length > 0);
    assert.equal(answer.label, "no");
    return answer.refusedFor;
  };
  assert.deepEqual(refused(0.25, 0.5, 0.25), []);
  assert.deepEqual(refused(0.25, 0.5 + 2 ** -52, 0.25), ["confidence"]);
  assert.deepEqual(refused(0.25, 0.5, 0.25 + 2 ** -53), ["margin"]);
  assert.deepEqual(refused(0.25, 1, 1), ["confidence", "margin"]);
  assert.deepEqual(refused(0.25, 0, null), []);
  assert.deepEqual(refused(0, null, 0), []);
  assert.deepEqual(refused(Infinity, null, Number.MAX_VALUE), []);
  assert.deepEqual(refused(0, null, Number.MIN_VALUE), ["margin"]);
});

test("a problem type is known, and of schema 3", () => {
  const several = { schema_version: 3, problem_type: "multi_label_classification" };
  assert.equal(read(several).problemType, "multi_label_classification");
  assert.equal(read({ ...several, label_names: ["one"] }).labelNames.length, 1);
  assert.equal(read({ ...several, calibration: CALIBRATION }).calibration.temperature, 2.5);
  assert.equal(read({ schema_version: 2 }).problemType, "single_label_classification");
  for (const [change, message] of [
    [{ schema_version: 2 }, /problem_type multi_label_classification needs schema_version 3/],
    [{ problem_type: "ranking" }, /problem_type "ranking" is not known/],
    [{ problem_type: 1 }, /problem_type 1 is not known/],
    [{ problem_type: "regression", calibration: CALIBRATION }, /no probabilities to calibrate/],
    [{ label_names: [] }, /label_names/],
    [{ problem_type: "single_label_classification", label_names: ["one"] }, /label_names/],
  ]) {
    assert.throws(() => read({ ...several, ...change }), { name: "RekdError", kind: "integrity", message });
  }
});

test("several labels have a probability each, and hold above one half", () => {
  const ask = (logits, settings) => decide(logits, 1, settings, "multi_label_classification");
  // 1 / (1 + e^-1.5) and 1 / (1 + e^-0.5): halved logits.
  const both = ask([3, 1], { temperature: 2 });
  near(both.probabilities[0][1], 0.8175744761936437);
  near(both.probabilities[1][1], 0.6224593312018546);
  assert.deepEqual(both.labels, ["no", "yes"]);
  near(both.confidence, 0.6224593312018546);
  assert.equal("label" in both, false);
  const none = ask([-3, 0], null);
  assert.deepEqual([none.labels, none.confidence, none.probabilities[1][1]], [[], 0.5, 0.5]);
  near(none.probabilities[0][1], 0.04742587317756678);
  assert.deepEqual(ask([3e4, -3e4], { temperature: 0.05 }).probabilities, [["no", 1], ["yes", 0]]);
  // The label that it is least sure of decides, on whichever side of one half it lies.
  for (const [logits, refused] of [[[4, 0.1], ["confidence"]], [[4, -0.1], ["confidence"]], [[4, -4], []]]) {
    assert.deepEqual(ask(logits, { temperature: 1, confidenceThreshold: 0.9 }).refusedFor, refused);
  }
});

test("values are the numbers of the model", () => {
  const answer = decide([2.5, -1e6], 1, null, "regression");
  assert.deepEqual(answer.values, [["no", 2.5], ["yes", -1e6]]);
  assert.deepEqual([answer.abstain, answer.confidence, "probabilities" in answer], [false, null, false]);
});

test("class-wise rationales are there where config.json says so", () => {
  assert.equal(read({ schema_version: 2 }).whyNot, false);
  assert.equal(read({ schema_version: 2, why_not: null }).whyNot, false);
  assert.equal(read({ schema_version: 2, why_not: { inputs: [], outputs: [] } }).whyNot, true);
});

test("the other classes are asked for by their probability, of equals the first before", () => {
  const probabilities = [["a", 0.1], ["b", 0.5], ["c", 0.05], ["d", 0.1], ["e", 0.25]];
  const { classes, notices } = rekd.classesToAsk({ label: "b", probabilities });
  assert.deepEqual(classes, [["e", 0.25], ["a", 0.1], ["d", 0.1], ["c", 0.05]]);
  assert.deepEqual(notices, []);
  assert.deepEqual(probabilities.map(([name]) => name), ["a", "b", "c", "d", "e"]);
});

test("of many classes the most probable are asked for, up to a bound", () => {
  const probabilities = Array.from("abcdefghij", (name, index) => [name, index / 45]);
  const asked = (count) => rekd.classesToAsk({ label: "j", probabilities: probabilities.slice(10 - count) });
  assert.equal(asked(10).classes.map(([name]) => name).join(""), "ihgfedcb");
  assert.deepEqual(asked(10).notices, ["Why not: asked for the 8 most probable of the 9 other classes."]);
  assert.equal(asked(9).classes.length, 8);
  assert.deepEqual(asked(9).notices, []);
});

test("a rationale for a class convinces where the model says that class from it", () => {
  const names = ["no", "yes", "maybe"];
  const ask = (label, logits) => rekd.readCase([label, 0.125], Float32Array.from(logits), names, 2);
  // Halved logits: 1, e and e of 1 + 2e; the first of equals is what it says.
  const tie = ask("maybe", [0, 2, 2]);
  const share = 0.4223187982515182;
  near(tie.probability, share);
  near(tie.saysProbability, share);
  assert.deepEqual([tie.label, tie.says, tie.convinces, tie.answerProbability], ["maybe", "yes", false, 0.125]);
  const won = ask("no", [3, 1, 1]);
  assert.deepEqual([won.says, won.convinces, won.probability], ["no", true, won.saysProbability]);
});

test("what the model says from a best case stands in the words of the command line", () => {
  const one = { label: "yes", kept: 3, convinces: false, says: "no", saysProbability: 0.75, probability: 0.25 };
  const text = { modality: "text", label: "no" };
  assert.equal(rekd.bestCase(one, text), "From its best 3 tokens alone: still no 75.0 %, yes 25.0 %.");
  const third = { ...one, says: "maybe" };
  assert.equal(rekd.bestCase(third, text), "From its best 3 tokens alone: maybe 75.0 %, yes 25.0 %.");
  const won = { ...one, convinces: true, says: "yes", probability: 0.75, kept: 1 };
  assert.equal(rekd.bestCase(won, { ...text, modality: "image" }), "From its best patch alone: yes 75.0 %.");
});

test("the question names the other labels, unless they are many", () => {
  const asked = (...names) =>
    rekd.question({ problemType: "single_label_classification", label: "a", probability: 0.5, probabilities: names.map((name, index) => [name, 0.5 - index / 10]) });
  assert.equal(asked("a", "b"), "Why not b?");
  assert.equal(asked("c", "a", "b"), "Why not c or b?");
  assert.equal(asked("a", "b", "c", "d"), "Why not another label?");
});
