/** The library in node: tokens, pixels and answers against what GOLDEN holds. */
import assert from "node:assert/strict";
import { createHash } from "node:crypto";
import fs from "node:fs";
import fsp from "node:fs/promises";
import os from "node:os";
import path from "node:path";
import { after, before, test } from "node:test";

import { library } from "./build.mjs";
import { differences, judge } from "./compare.mjs";

const GOLDEN = process.env.GOLDEN;
const golden = JSON.parse(fs.readFileSync(path.join(GOLDEN, "golden.json"), "utf8"));
const folder = fs.mkdtempSync(path.join(os.tmpdir(), "rekd-web-"));
let rekd;

before(async () => {
  rekd = await library(folder);
});
after(() => fsp.rm(folder, { recursive: true }));

const tokenizer = () => JSON.parse(fs.readFileSync(golden.tokenizer, "utf8"));
const bundleSource = (bundle, changed = {}) => async (name) => {
  if (name in changed) return changed[name] === null ? new Response(null, { status: 404 }) : new Response(changed[name]);
  return new Response(await fsp.readFile(path.join(bundle, name)));
};
const sha256 = (content) => createHash("sha256").update(content).digest("hex");

for (const [length, rows] of Object.entries(golden.tokens)) {
  test(`${rows.length} texts have the tokens of the tokenizers library (${length} at most)`, () => {
    const encoder = rekd.WordPiece.from(tokenizer(), Number(length));
    for (const [text, ids, offsets, words, dropped] of rows) {
      if (ids === null) {
        assert.throws(() => encoder.encode(text), { name: "RekdError", kind: "input" });
        continue;
      }
      const found = encoder.encode(text);
      const message = JSON.stringify(text);
      assert.deepEqual(found.ids, ids, message);
      assert.deepEqual(found.offsets, offsets, message);
      assert.deepEqual(found.words, words, message);
      assert.equal(found.droppedTokens, dropped, message);
    }
    assert.ok(rows.some(([, ids]) => ids !== null));
  });
}

test("a text that is no Unicode is refused", () => {
  const encoder = rekd.WordPiece.from(tokenizer(), 48);
  assert.throws(() => encoder.encode("half a \ud83d pair"), { kind: "input" });
});

for (const [what, change] of Object.entries({
  "model BPE": (document) => (document.model.type = "BPE"),
  "normalizer NFKC": (document) => (document.normalizer = { type: "NFKC" }),
  "no normalizer": (document) => (document.normalizer = null),
  "pre_tokenizer Metaspace": (document) => (document.pre_tokenizer.type = "Metaspace"),
  "post_processor RobertaProcessing": (document) => (document.post_processor.type = "RobertaProcessing"),
  "added token [MASK] with lstrip": (document) => (document.added_tokens[4].lstrip = true),
})) {
  test(`a tokenizer with ${what} is refused by name`, () => {
    const document = tokenizer();
    change(document);
    assert.throws(
      () => rekd.WordPiece.from(document, 48),
      (error) => error.kind === "backend" && error.message.includes(what),
    );
  });
}

test(`${golden.resampled.length} images are resized as by Pillow, to the last bit`, () => {
  for (const { source, due, width, height, size, interpolation } of golden.resampled) {
    const data = new Uint8Array(fs.readFileSync(path.join(GOLDEN, source)));
    const view = rekd.viewOf(width, height, size);
    const [first, end] = rekd.rowsRead(view, interpolation);
    const step = 7;
    const pieces = [];
    for (let top = first; top < end; top += step) {
      const count = Math.min(step, end - top);
      pieces.push({ top, count, data: data.subarray(top * width * 4, (top + count) * width * 4) });
    }
    const found = rekd.resample(view, interpolation, pieces);
    const expected = new Uint8Array(fs.readFileSync(path.join(GOLDEN, due)));
    assert.deepEqual(found, expected, `${due}`);
    assert.deepEqual(rekd.resample(view, interpolation, [{ top: 0, count: height, data }]), expected);
    assert.throws(() => rekd.resample(view, interpolation, pieces.slice(1)));
  }
});

for (const [name, { bundle, precision, answers }] of Object.entries(golden.bundles)) {
  test(`${name}: ONNX Runtime in WebAssembly answers as the Python runtime`, async (context) => {
    const model = await rekd.Rationalist.load(bundleSource(bundle));
    const rows = [];
    for (const due of answers) {
      if (model.config.modality === "image" && !pixelsOf(due.source)) continue;
      const input = model.config.modality === "text" ? due.source : pixelsOf(due.source);
      rows.push(differences(await model.predict(input, { whyNot: due.why_not !== null }), due));
    }
    assert.ok(rows.length > 3);
    context.diagnostic(judge(name, precision, rows));
    await model.release();
  });
}

/** The images whose pixels Python has unpacked. */
function pixelsOf(source) {
  const name = `${path.basename(source, ".png")}.rgba`;
  const entry = golden.resampled.find((one) => one.source === name);
  if (entry === undefined) return undefined;
  const data = new Uint8Array(fs.readFileSync(path.join(GOLDEN, name)));
  return { width: entry.width, height: entry.height, data };
}

test("no more classes are asked for than in Python", () => {
  assert.equal(rekd.WHY_NOT_CLASSES, golden.whyNotClasses);
});

test("the question is answered after the answer, as with it, and the answer stays as it is", async () => {
  const { bundle, answers } = golden.bundles["text-why-not-calibrated"];
  const model = await rekd.Rationalist.load(bundleSource(bundle));
  assert.equal(model.canSayWhyNot, true);
  const [{ source }] = answers;
  const [plain, atOnce] = [await model.predict(source), await model.predict(source, { whyNot: true })];
  assert.equal(plain.whyNot, null);
  const before = structuredClone(plain);
  const explained = await model.addWhyNot(plain);
  assert.deepEqual(structuredClone(plain), before);
  assert.deepEqual({ ...explained, whyNot: null }, before);
  assert.deepEqual(explained.whyNot, atOnce.whyNot);
  assert.equal(explained.whyNot.length, 2);
  assert.equal(await model.addWhyNot(explained), explained);
  await assert.rejects(model.addWhyNot(before), { kind: "input", message: /no answer of this model/ });
  await model.release();
});

test("the file of the question is compared at the start, read again for the first question, and then kept", async () => {
  const { bundle, answers } = golden.bundles["text-why-not-calibrated"];
  const [{ source: text }] = answers;
  const name = "why_not.onnx";
  const changed = {};
  let reads = 0;
  const source = (path) => {
    if (path === name) reads++;
    return bundleSource(bundle, changed)(path);
  };
  const model = await rekd.Rationalist.load(source);
  const answer = await model.predict(text);
  assert.equal(reads, 1);
  changed[name] = null;
  await assert.rejects(model.addWhyNot(answer), { kind: "integrity", message: /^why_not\.onnx is missing/ });
  changed[name] = fs.readFileSync(path.join(bundle, name));
  changed[name][99] ^= 1;
  await assert.rejects(model.predict(text, { whyNot: true }), { kind: "integrity", message: /^why_not\.onnx has changed/ });
  delete changed[name];
  assert.deepEqual([(await model.addWhyNot(answer)).whyNot.length, reads], [2, 4]);
  await model.predict(text, { whyNot: true });
  assert.equal(reads, 4);
  await model.release();
});

test("a file of the question that is not what its manifest promises, or no such file, is refused at the start", async () => {
  const { bundle } = golden.bundles["text-why-not-calibrated"];
  const content = fs.readFileSync(path.join(bundle, "why_not.onnx"));
  content[content.length >> 1] ^= 1;
  const changed = await refused(bundle, { "why_not.onnx": content });
  assert.equal(changed.kind, "integrity");
  assert.match(changed.message, /why_not\.onnx has changed \(sha256\)/);
  const manifest = JSON.parse(fs.readFileSync(path.join(bundle, "manifest.json")));
  manifest.files = manifest.files.filter((file) => file.path !== "why_not.onnx");
  const missing = await refused(bundle, { "manifest.json": JSON.stringify(manifest) });
  assert.deepEqual([missing.kind, missing.message], ["integrity", "The bundle has no why_not.onnx"]);
});

test("a file of the question that cannot answer it does not stop the answer", async () => {
  const { bundle, answers } = golden.bundles["text-why-not-calibrated"];
  const [due] = answers;
  for (const [content, kind, message] of [
    [Buffer.from("no model"), "backend", /cannot open the model/],
    [fs.readFileSync(path.join(bundle, "model.onnx")), "integrity", /^why_not\.onnx has inputs input_ids, attention_mask and/],
  ]) {
    const model = await rekd.Rationalist.load(bundleSource(bundle, listed(bundle, "why_not.onnx", content)));
    const answer = await model.predict(due.source);
    assert.equal(answer.label, due.label);
    await assert.rejects(model.addWhyNot(answer), { name: "RekdError", kind, message });
    await model.release();
  }
});

test("a bundle that cannot be asked refuses the question, and says what to do", async () => {
  for (const [name, input, message, hint] of [
    ["text", "a dull film", /no class-wise rationales/, /train with class_wise_rationales: true and export again/],
    ["multi-label", "a dull film", /not answer with one class of several/, /problem_type single_label_classification/],
    ["regression", "a dull film", /not answer with one class of several/, /problem_type single_label_classification/],
  ]) {
    const model = await rekd.Rationalist.load(bundleSource(golden.bundles[name].bundle));
    assert.equal(model.canSayWhyNot, false);
    const due = { name: "RekdError", kind: "input", message, hint };
    await assert.rejects(model.predict(input, { whyNot: true }), due);
    await assert.rejects(model.addWhyNot(await model.predict(input)), due);
    await model.release();
  }
});

async function refused(bundle, changed, options = {}) {
  return rekd.Rationalist.load(bundleSource(bundle, changed), options).then(
    () => assert.fail("the bundle was accepted"),
    (error) => error,
  );
}

test("a bundle that is not what its manifest promises is refused", async () => {
  const { bundle } = golden.bundles.text;
  const read = (name) => fs.readFileSync(path.join(bundle, name));
  const model = read("model.onnx");
  model[model.length >> 1] ^= 1;
  const manifest = JSON.parse(read("manifest.json"));
  const changedManifest = (change) => {
    const copy = structuredClone(manifest);
    change(copy);
    return { "manifest.json": JSON.stringify(copy) };
  };
  const cases = [
    [{ "model.onnx": model }, "model.onnx has changed (sha256)"],
    [{ "model.onnx": read("model.onnx").subarray(1) }, "bytes, not"],
    [{ "labels.json": Buffer.concat([read("labels.json"), Buffer.from(" ")]) }, "labels.json has more than"],
    [{ "tokenizer.json": null }, "tokenizer.json is missing"],
    [{ "manifest.json": null }, "manifest.json is missing"],
    [{ "manifest.json": "{" }, "not valid JSON"],
    [changedManifest((copy) => (copy.schema_version = 2)), "newer than 1"],
    [changedManifest((copy) => (copy.format = "other")), "format"],
    [changedManifest((copy) => (copy.files[0].path = "../secret")), "outside the bundle"],
    [changedManifest((copy) => (copy.files[0].path = "https://a/b")), "outside the bundle"],
    [changedManifest((copy) => copy.files.push(copy.files[0])), "twice"],
    [changedManifest((copy) => (copy.files = [])), "not a list of files"],
  ];
  for (const [changed, message] of cases) {
    const error = await refused(bundle, changed);
    assert.equal(error.kind, "integrity", String(error.stack));
    assert.ok(error.message.includes(message), error.message);
    assert.notEqual(error.hint, "");
  }
  const other = await refused(bundle, {}, { fingerprint: "0".repeat(64) });
  assert.equal(other.kind, "integrity");
  await rekd.verifyBundle(bundleSource(bundle), new Set(), sha256(read("manifest.json")));
});

/** A bundle whose manifest agrees with a changed file. */
function consistent(bundle, name, change) {
  const document = JSON.parse(fs.readFileSync(path.join(bundle, name)));
  change(document);
  return listed(bundle, name, Buffer.from(JSON.stringify(document)));
}

function listed(bundle, name, content) {
  const manifest = JSON.parse(fs.readFileSync(path.join(bundle, "manifest.json")));
  const entry = manifest.files.find((file) => file.path === name);
  Object.assign(entry, { sha256: sha256(content), size_bytes: content.length });
  return { [name]: content, "manifest.json": JSON.stringify(manifest) };
}

test("what this runtime cannot run is refused with a reason", async () => {
  const { text, image } = golden.bundles;
  const cases = [
    [text, "config.json", (config) => (config.runtime = "openvino"), "backend", "openvino"],
    [text, "config.json", (config) => (config.schema_version = 4), "integrity", "newer than 3"],
    [text, "config.json", (config) => (config.calibration = {}), "integrity", "calibration by"],
    [text, "config.json", (config) => (config.modality = "image"), "integrity", "modality"],
    [text, "config.json", (config) => (config.label_names = []), "integrity", "label_names"],
    [text, "preprocessor_config.json", (config) => (config.max_length = 2), "integrity", "room"],
    [image, "config.json", (config) => (config.patch_size = 500), "integrity", "patch"],
    [image, "preprocessor_config.json", (config) => (config.interpolation = "box"), "integrity", "box"],
  ];
  for (const [{ bundle }, name, change, kind, message] of cases) {
    const error = await refused(bundle, consistent(bundle, name, change));
    assert.equal(error.kind, kind, String(error.stack));
    assert.ok(error.message.includes(message), error.message);
  }
});

test("keys that are not known do not stop a bundle", async () => {
  const { bundle } = golden.bundles.text;
  const changed = consistent(bundle, "config.json", (config) => (config.of_tomorrow = { a: 1 }));
  await (await rekd.Rationalist.load(bundleSource(bundle, changed))).release();
});

test("an input of the other kind is refused", async () => {
  const texts = await rekd.Rationalist.load(bundleSource(golden.bundles.text.bundle));
  await assert.rejects(texts.predict(new Blob(["x"])), { kind: "input" });
  const images = await rekd.Rationalist.load(bundleSource(golden.bundles.image.bundle));
  await assert.rejects(images.predict("a text"), { kind: "input" });
  await assert.rejects(images.predict({ width: 2, height: 2, data: new Uint8Array(3) }), { kind: "input" });
  const thin = { width: 20_000, height: 1, data: new Uint8Array(80_000) };
  await assert.rejects(images.predict(thin), { kind: "input", message: /too long and thin/ });
});

test("a long text says where it was cut", async () => {
  const model = await rekd.Rationalist.load(bundleSource(golden.bundles.text.bundle));
  const text = "🎬 " + "dull ".repeat(100);
  const answer = await model.predict(text);
  assert.equal(answer.notices.length, 1);
  assert.ok(answer.readTo < Array.from(text).length);
  assert.deepEqual(rekd.highlightedParts(answer).at(-1).kind, "unread");
  assert.equal(rekd.highlightedParts(answer).map((part) => part.text).join(""), text);
});

test("spans with blanks between them are shown as one", () => {
  const span = (start, end) => ({ start, end });
  const shown = (text, rationale, readTo = Array.from(text).length) =>
    rekd.highlightedParts({ text, rationale, readTo }).map(({ text: part, kind }) => `${kind[0]}:${part}`);
  assert.deepEqual(shown("a 👍 dull film", [span(4, 8), span(9, 13), span(0, 1)]), ["k:a", "d: 👍 ", "k:dull film"]);
  assert.deepEqual(shown("dull, dull", [span(0, 4), span(6, 10)]), ["k:dull", "d:, ", "k:dull"]);
  assert.deepEqual(shown("ab cd", [span(0, 1)], 2), ["k:a", "d:b", "u: cd"]);
});

test("the size of an image is read before it is unpacked", () => {
  const png = fs.readFileSync(path.join(GOLDEN, "images", "photo.png"));
  const jpeg = fs.readFileSync(path.join(GOLDEN, "images", "turned.jpg"));
  assert.deepEqual(rekd.sizeOf(new Uint8Array(png)), [640, 427]);
  assert.deepEqual(rekd.sizeOf(new Uint8Array(jpeg)), [640, 427]);
  assert.equal(rekd.sizeOf(new Uint8Array(10)), undefined);
  assert.equal(rekd.sizeOf(new Uint8Array(0)), undefined);
  const huge = new Uint8Array(png.subarray(0, 24));
  new DataView(huge.buffer).setUint32(16, 20_000);
  new DataView(huge.buffer).setUint32(20, 20_000);
  return assert.rejects(rekd.decode(new Blob([huge])), { kind: "input", message: /too large/ });
});

const span = (start, end) => ({ start, end });

test("the two kinds of marks of a pair never overlap, and the answering student's goes first", () => {
  const text = "no plot, no charm";
  const parts = (answerRationale, consulted) =>
    rekd
      .highlightedParts({ text, rationale: [...answerRationale, ...consulted], answerRationale, consulted, readTo: 17 })
      .map(({ text: part, kind }) => (kind === "dropped" ? part : `${kind === "kept" ? "[" : "("}${part}`))
      .join("|");
  assert.equal(parts([span(0, 2), span(3, 7)], [span(12, 17)]), "[no plot|, no |(charm");
  assert.equal(parts([span(3, 7)], [span(0, 2), span(9, 11)]), "(no| |[plot|, |(no| charm");
  assert.equal(parts([span(4, 6)], [span(3, 7)]), "no |(p|[lo|(t|, no charm");
  assert.equal(parts([span(3, 7)], [span(3, 7)]), "no |[plot|, no charm");
  assert.equal(
    rekd.highlightedParts({ text, rationale: [span(0, 2)], answerRationale: null, consulted: null, readTo: 17 }).length,
    2,
  );
});

test("a case that is none, or an answer from what was not kept, is refused", () => {
  assert.equal(rekd.decided(3n, [true, false], [true, true]), "confidence");
  for (const [number, read] of [[4n, [true, false]], [-1n, [true, false]], [0n, [true, true]]]) {
    assert.throws(() => rekd.decided(number, read, [true, false]), { name: "RekdError", kind: "integrity" });
  }
});
