/** The built page in Chromium against what GOLDEN holds. */
import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import { createHash } from "node:crypto";
import fs from "node:fs";
import fsp from "node:fs/promises";
import os from "node:os";
import path from "node:path";
import { after, before, describe, test } from "node:test";
import { fileURLToPath } from "node:url";

import { openChromium } from "./chromium.mjs";
import { differences, judge } from "./compare.mjs";
import { serve } from "./serve.mjs";

const GOLDEN = process.env.GOLDEN;
const golden = JSON.parse(fs.readFileSync(path.join(GOLDEN, "golden.json"), "utf8"));
const BUILD = fileURLToPath(new URL("../build.mjs", import.meta.url));
const root = fs.mkdtempSync(path.join(os.tmpdir(), "rekd-web-"));
const READY = "#about:not([hidden])";
/** WCAG 2.2, AA. */
const CONTRAST = 4.5;

let server;
let browser;
let page;
const asked = [];
const complaints = [];

async function open(where, settings = {}) {
  if (settings.viewport) await page.setViewportSize(settings.viewport);
  await page.emulateMedia({ colorScheme: settings.colorScheme ?? "light" });
  await page.goto(server.url + where);
  await page.waitForSelector(READY);
}

before(async () => {
  const built = ["text", "image", "text-calibrated", "text-pair", "image-pair", "multi-label"];
  built.push("multi-label-calibrated", "regression", "text-why-not-calibrated", "image-why-not");
  for (const name of built) {
    const words = ["--bundle", golden.bundles[name].bundle, "--output", path.join(root, name)];
    execFileSync(process.execPath, [BUILD, ...words]);
  }
  await fsp.symlink(GOLDEN, path.join(root, "golden"));
  for (const [name, { bundle }] of Object.entries(golden.bundles)) {
    await fsp.symlink(bundle, path.join(root, `bundle-${path.basename(name)}`));
  }
  server = await serve(root);
  browser = await openChromium({ viewport: { width: 1000, height: 800 } });
  browser.context.setDefaultTimeout(180_000);
  browser.context.on("request", (request) => asked.push(request.url()));
  page = browser.context.pages()[0];
  page.on("console", (message) => {
    if (["error", "warning"].includes(message.type())) complaints.push(message.text());
  });
  page.on("pageerror", (error) => complaints.push(String(error)));
});

after(async () => {
  await browser?.close();
  await server?.close();
  await fsp.rm(root, { recursive: true });
});

describe("answers", () => {
  for (const [name, { precision, answers }] of Object.entries(golden.bundles)) {
    test(`${name}: the browser answers as the Python runtime`, async (context) => {
      const isText = answers[0].grid === null;
      await open(isText ? "text/" : "image/");
      const inputs = answers.map(({ source }) => (isText ? source : path.basename(source)));
      const found = await page.evaluate(
        async ([folder, all, readsText]) => {
          const { Rationalist } = await import(new URL("rationalist.js", document.baseURI).href);
          const model = await Rationalist.load(new URL(`../${folder}/`, document.baseURI));
          const rows = [];
          for (const input of all) {
            const content = readsText
              ? input
              : await (await fetch(`../golden/images/${input}`)).blob();
            const { logits, ...answer } = await model.predict(content, { whyNot: model.canSayWhyNot });
            rows.push({ ...answer, logits: [...logits] });
          }
          await model.release();
          return rows;
        },
        [`bundle-${path.basename(name)}`, inputs, isText],
      );
      const rows = found.map((row, index) => differences(row, answers[index]));
      assert.equal(rows.length, answers.length);
      context.diagnostic(judge(name, precision, rows));
    });
  }

  test("image files become the pixels that Pillow reads", async (context) => {
    await open("image/");
    const rows = await page.evaluate(
      async ([files, size]) => {
        const library = await import(new URL("rationalist.js", document.baseURI).href);
        const bytes = async (name) => {
          const response = await fetch(`../golden/${name}`);
          return response.blob();
        };
        const found = [];
        for (const { file } of files) {
          const picture = await library.decode(await bytes(`images/${file}`));
          const view = library.viewOf(picture.width, picture.height, size);
          const rows = picture.rows(...library.rowsRead(view, "bicubic"));
          const pixels = library.resample(view, "bicubic", rows);
          const due = new Uint8Array(await (await bytes(`pixels/${file}.rgb`)).arrayBuffer());
          const far = pixels.map((value, index) => Math.abs(value - due[index]));
          const most = far.reduce((one, other) => Math.max(one, other), 0);
          found.push({ file, width: picture.width, most });
          picture.close();
        }
        return found;
      },
      [golden.decoded, golden.decodedSize],
    );
    context.diagnostic(rows.filter(({ most }) => most > 0).map(({ file, most }) => `${file} ${most}`).join(", "));
    for (const [index, { file, isExact, width }] of golden.decoded.entries()) {
      assert.equal(rows[index].width, width, file);
      assert.ok(rows[index].most <= (isExact ? 0 : 1), `${file}: ${rows[index].most} of 255`);
    }
  });
});

describe("the page for texts", () => {
  const due = golden.bundles.text.answers[0];

  test("answers from the keyboard, and says so aloud", async () => {
    await open("text/");
    assert.match(await page.textContent("#verified"), /^\d+ files match/);
    const field = page.getByRole("textbox", { name: "Text to classify" });
    await page.keyboard.press("Tab");
    assert.ok(await field.evaluate((node) => node === document.activeElement));
    await page.keyboard.insertText(due.source);
    await page.keyboard.press("Control+Enter");
    await page.waitForSelector("#result:not([hidden])");
    assert.equal(await page.textContent("#label"), due.label);
    assert.equal(await page.textContent("#highlighted"), due.source);
    const letters = (text) => text.replaceAll(/\s/g, "");
    const marked = await page.locator("mark").allTextContents();
    assert.equal(letters(marked.join("")), letters(due.rationale.map(({ text }) => text).join("")));
    const said = await page.getByRole("status").textContent();
    assert.ok(said.startsWith(`${due.label}, `) && said.includes(due.rationale[0].text), said);
    assert.match(await page.textContent("#evidence"), new RegExp(`^${due.kept} of ${due.candidates} `));
    assert.equal(Number(await page.textContent("#margin")), Number(due.margin.toPrecision(3)));
    assert.match(await page.textContent("#time"), /^\d+(\.\d)? ms$/);
    assert.equal(await page.locator("#probabilities li").count(), golden.bundles.text.answers[0].logits.length);
  });

  test("an empty text gets a message and no old answer", async () => {
    await page.getByRole("textbox").fill("  ");
    await page.getByRole("button", { name: "Classify" }).click();
    await page.waitForSelector("#text-problem:not(:empty)");
    assert.match(await page.textContent("#text-problem"), /empty.*one word/);
    assert.equal(await page.isVisible("#result"), false);
  });

  test("markup in a text stays text", async () => {
    const text = "<img src=x onerror=alert(1)> <mark>dull</mark> & \u202e film";
    await page.getByRole("textbox").fill(text);
    await page.getByRole("button", { name: "Classify" }).click();
    await page.waitForSelector("#result:not([hidden])");
    assert.equal(await page.textContent("#highlighted"), text.replace("\u202e", "\ufffd"));
    assert.equal(await page.locator("#highlighted img").count(), 0);
  });

  for (const colorScheme of ["light", "dark"]) {
    test(`contrasts in ${colorScheme} colours are those of WCAG AA`, async () => {
      await page.emulateMedia({ colorScheme });
      await page.evaluate(() => document.querySelectorAll("details").forEach((one) => (one.open = true)));
      const poor = await page.evaluate(poorContrasts, CONTRAST);
      assert.deepEqual(poor, []);
    });
  }

  test("nothing is wider than a small phone", async () => {
    await page.setViewportSize({ width: 320, height: 640 });
    const wide = await page.evaluate(() => document.documentElement.scrollWidth);
    assert.ok(wide <= 320, `${wide} pixels`);
  });

  test("everything to act on has a name and can be reached", async () => {
    const nameless = await page.evaluate(() =>
      [...document.querySelectorAll("input, textarea, button, summary, canvas[role], progress")]
        .filter((node) => node.checkVisibility())
        .filter((node) => {
          const labels = [...(node.labels ?? [])].map((label) => label.textContent).join("");
          return (labels + (node.getAttribute("aria-label") ?? "") + node.textContent).trim() === "";
        })
        .map((node) => node.outerHTML),
    );
    assert.deepEqual(nameless, []);
  });
});

const inPercent = (share) => `${(share * 100).toFixed(1)} %`;
const askText = async (source, button) => {
  await page.getByRole("textbox").fill(source);
  await page.getByRole("button", { name: button }).click();
  await page.waitForFunction((text) => document.querySelector("#highlighted").textContent === text, source);
};
const isPlain = ({ source }) => /^[\x20-\x7e]+$/.test(source);

describe("the page of other problem types", () => {
  test("several labels stand with their own probabilities, or none does", async () => {
    await open("multi-label/", { viewport: { width: 1000, height: 800 } });
    const { answers } = golden.bundles["multi-label"];
    const shares = ({ probabilities }) => Object.values(probabilities);
    const isClear = (answer) => shares(answer).every((share) => share > 0.001 && share < 0.999);
    for (const count of [0, 2]) {
      const due = answers.find((one) => isPlain(one) && isClear(one) && one.labels.length === count);
      await askText(due.source, "Label");
      const found = [...due.labels].sort((one, other) => due.probabilities[other] - due.probabilities[one]);
      const words = found.map((name) => `${name} ${inPercent(due.probabilities[name])}`).join(", ");
      assert.equal(await page.textContent("#label"), words || "None of the labels");
      assert.equal(await page.textContent("#probability"), "");
      assert.equal(await page.locator("#probabilities .fill").count(), 3);
      const said = await page.getByRole("status").textContent();
      assert.ok(said.startsWith(`${words || "None of the labels"}. Read from: `), said);
    }
    assert.match(await page.textContent("#facts"), /Labels, any number of them.*Micro F1 on its test data0\.750/);
    assert.match(await page.textContent("#withholding"), /an input may get none/);
  });

  test("the least sure label decides whether several are answered", async () => {
    await open("multi-label-calibrated/");
    const { answers } = golden.bundles["multi-label-calibrated"];
    const due = answers.find((one) => isPlain(one) && String(one.refused_for) === "confidence");
    await askText(due.source, "Label");
    assert.match(await page.textContent("#reasons"), /^It is [\d.]+ % sure of the label that it is least sure of, and below/);
    assert.ok(await page.isVisible("#withheld"));
  });

  test("values stand with their names, without bars", async () => {
    await open("regression/");
    const due = golden.bundles.regression.answers.find(isPlain);
    await askText(due.source, "Answer");
    const words = await page.textContent("#label");
    const shown = words.split(", ").map((part) => part.split(" "));
    assert.deepEqual(shown.map(([name]) => name), Object.keys(due.values));
    for (const [name, text] of shown) {
      assert.ok(Math.abs(Number(text) - due.values[name]) < 1e-4, `${name} ${text} is not ${due.values[name]}`);
    }
    assert.equal(await page.locator("#probabilities .fill").count(), 0);
    assert.equal(await page.locator("#probabilities li").count(), 3);
    assert.equal(await page.textContent("#numbers"), "Values");
    assert.match(await page.textContent("#calibration"), /without a measure of how sure/);
    assert.match(await page.textContent("#facts"), /R² on its test data0\.750/);
    assert.equal(await page.isVisible("#withheld"), false);
  });
});

describe("the page of a bundle that withholds answers", () => {
  const { bundle, answers } = golden.bundles["text-calibrated"];
  const { calibration } = JSON.parse(fs.readFileSync(path.join(bundle, "config.json"), "utf8"));
  const isText = ({ source }) => /^[\x20-\x7e]+$/.test(source);
  const refused = (...reasons) =>
    answers.find((answer) => isText(answer) && String(answer.refused_for) === String(reasons));
  const ask = async ({ source }) => {
    await page.getByRole("textbox").fill(source);
    await page.getByRole("button", { name: "Classify" }).click();
    await page.waitForFunction((text) => document.querySelector("#highlighted").textContent === text, source);
  };

  test("says what it withholds, and another that it withholds nothing", async () => {
    await open("text-calibrated/", { viewport: { width: 1000, height: 800 } });
    assert.match(await page.textContent("#calibration"), /^Probabilities are calibrated \(temperature 1\.70\)/);
    const limits = await page.textContent("#withholding");
    assert.ok(limits.includes(`probability is below ${(calibration.confidence_threshold * 100).toPrecision(3)} % or`), limits);
    assert.ok(limits.includes(`margin is below ${calibration.margin_threshold.toPrecision(3)}.`), limits);
    await open("text/");
    assert.match(await page.textContent("#calibration"), /^Probabilities are not calibrated/);
    assert.match(await page.textContent("#withholding"), /^No answer is withheld/);
  });

  for (const [reasons, message] of [
    [["confidence"], /^The highest probability, ([\d.]+) %, is below ([\d.]+) %: too low for this model to answer\.$/],
    [["margin"], /^The margin, ([\d.e-]+), is below ([\d.e-]+): the choice of words is too near to a tie\.$/],
  ]) {
    test(`no answer for ${reasons}: said first, with the reason, and aloud`, async () => {
      const due = refused(...reasons);
      await open("text-calibrated/");
      await ask(due);
      const region = page.getByRole("region", { name: "No answer", exact: true });
      assert.ok(await region.isVisible());
      const shown = await region.innerText();
      assert.ok(shown.startsWith("No answer"), shown);
      const said = await page.textContent("#reasons");
      const [, found, least] = said.match(message) ?? assert.fail(said);
      assert.ok(Number(found) < Number(least), said);
      assert.equal(await page.textContent("#standing"), "Most probable, not to be relied on");
      assert.equal(await page.textContent("#label"), due.label);
      const aloud = await page.getByRole("status").textContent();
      assert.ok(aloud.startsWith(`No answer. ${said} Most probable, not to be relied on: ${due.label}, `), aloud);
      const size = (id) => page.locator(id).evaluate((node) => parseFloat(getComputedStyle(node).fontSize));
      assert.ok((await size("#label")) < (await size("#no-answer")));
    });
  }

  test("its contrasts hold, and it is no wider than a small phone", async () => {
    await page.setViewportSize({ width: 320, height: 640 });
    await page.evaluate(() => document.querySelectorAll("details").forEach((one) => (one.open = true)));
    assert.ok(await page.isVisible("#reasons"));
    for (const colorScheme of ["light", "dark"]) {
      await page.emulateMedia({ colorScheme });
      assert.deepEqual(await page.evaluate(poorContrasts, CONTRAST), []);
    }
    assert.ok((await page.evaluate(() => document.documentElement.scrollWidth)) <= 320);
  });

  test("the next answer that is given is shown as one", async () => {
    const due = refused();
    await ask(due);
    assert.equal(await page.isVisible("#withheld"), false);
    assert.equal(await page.textContent("#standing"), "Answer");
    assert.ok(await page.getByRole("region", { name: /^Answer / }).isVisible());
    assert.ok((await page.getByRole("status").textContent()).startsWith(`${due.label}, `));
  });
});

describe("the pages of two students", () => {
  const letters = (text) => text.replaceAll(/\s/g, "");
  const words = (spans) => letters(spans.map(({ text }) => text).join(""));

  for (const decided of ["agree", "first_convinces", "partner_convinces", "confidence"]) {
    test(`${decided}: says so, and marks apart what the one that answers read`, async () => {
      const isPlain = ({ source }) => /^[\x20-\x7e]+$/.test(source);
      const due = golden.bundles["text-pair"].answers.find(
        (answer) => answer.case === decided && answer.consulted.length > 0 && isPlain(answer),
      );
      await open("text-pair/", { viewport: { width: 1000, height: 800 } });
      await page.getByRole("textbox").fill(due.source);
      await page.getByRole("button", { name: "Classify" }).click();
      await page.waitForSelector("#result:not([hidden])");
      const marked = async (kind) => letters((await page.locator(`mark.${kind}`).allTextContents()).join(""));
      assert.equal(await marked("kept"), words(due.answer_rationale));
      assert.equal(await marked("consulted"), words(due.consulted));
      assert.equal(await page.textContent("#highlighted"), due.source);
      const name = decided.replaceAll("_", " ");
      assert.ok((await page.textContent("#decided")).startsWith(`Two students: ${name} (`));
      const count = (spans) => spans.flatMap(({ tokens }) => tokens).length;
      assert.ok((await page.textContent("#read")).startsWith(`${count(due.answer_rationale)} tokens `));
      assert.ok((await page.textContent("#consulted")).startsWith(`${count(due.consulted)} tokens `));
      const aloud = await page.getByRole("status").textContent();
      assert.ok(aloud.includes(`Read by the other student: ${due.consulted[0].text}`), aloud);
      assert.ok(aloud.includes(`Two students: ${name}.`), aloud);
    });
  }

  test("the marks differ in more than colour, with contrasts that hold, also on a small phone", async () => {
    const line = (kind) =>
      page.locator(`mark.${kind}`).first().evaluate((node) => getComputedStyle(node).borderBottomStyle);
    assert.deepEqual([await line("kept"), await line("consulted")], ["solid", "dashed"]);
    await page.setViewportSize({ width: 320, height: 640 });
    for (const colorScheme of ["light", "dark"]) {
      await page.emulateMedia({ colorScheme });
      assert.deepEqual(await page.evaluate(poorContrasts, CONTRAST), []);
    }
    assert.ok((await page.evaluate(() => document.documentElement.scrollWidth)) <= 320);
  });

  test("one student has neither, and offers no question without class-wise rationales", async () => {
    await open("text/");
    await page.getByRole("textbox").fill("a dull film");
    await page.getByRole("button", { name: "Classify" }).click();
    await page.waitForSelector("#result:not([hidden])");
    assert.equal(await page.isVisible("#why-not"), false);
    assert.equal(await page.isVisible("#decided"), false);
    assert.equal(await page.isVisible("#legend"), false);
    assert.equal(await page.locator("mark.consulted").count(), 0);
  });

  test("patches of the one that answers are outlined in yellow, the other's are not", async () => {
    const due = golden.bundles["image-pair"].answers.find(
      ({ source, consulted, width, height }) => source.endsWith(".png") && consulted.length > 0 && width === height && width >= 64,
    );
    await open("image-pair/", { viewport: { width: 1000, height: 800 } });
    await page.getByLabel("Choose an image").setInputFiles(due.source);
    await page.waitForSelector("#result:not([hidden])");
    assert.equal(await page.textContent("#label"), due.label);
    const yellow = (boxes) =>
      page.evaluate(
        ([all, side]) => {
          const shown = document.querySelector("canvas");
          const room = new OffscreenCanvas(shown.width, shown.height);
          const copy = room.getContext("2d", { willReadFrequently: true });
          copy.drawImage(shown, 0, 0);
          const scale = shown.width / side;
          return all.map(({ x, y, width, height }) => {
            const box = [x, y, width, height].map((value) => Math.round(value * scale));
            const { data } = copy.getImageData(...box);
            let found = 0;
            for (let at = 0; at < data.length; at += 4) {
              if (data[at] === 255 && data[at + 1] === 213 && data[at + 2] === 74) found++;
            }
            return found;
          });
        },
        [boxes, due.width],
      );
    for (const found of await yellow(due.answer_rationale)) assert.ok(found > 20);
    for (const found of await yellow(due.consulted)) assert.ok(found < 20);
    assert.match(await page.getAttribute("canvas", "aria-label"), /Read by the other student, row \d/);
    assert.ok((await page.textContent("#consulted")).startsWith(`${due.consulted.length} patches `));
  });
});

const inLetters = (text) => text.replaceAll(/\s/g, "");

describe("the page that can be asked why not", () => {
  const { answers } = golden.bundles["text-why-not-calibrated"];
  const isStill = (due) => (one) => !one.convinces && one.says === due.label;
  const button = () => page.getByRole("button", { name: /^Why not / });
  const cases = () => page.locator("#cases > li");
  const waitForCases = () => page.waitForSelector("#best-cases:not([hidden])");

  /** A sentence with shares in it, against that sentence with numbers from 0 to 1 in their place. */
  function sameSentence(found, due) {
    const shares = [];
    const words = found.replaceAll(/[\d.]+ %/g, (share) => {
      shares.push(parseFloat(share) / 100);
      return "%";
    });
    assert.equal(words.replaceAll(/[<>] %/g, "%"), due.filter((part) => typeof part === "string").join("%"));
    const numbers = due.filter((part) => typeof part === "number");
    assert.equal(shares.length, numbers.length);
    shares.forEach((share, index) => assert.ok(Math.abs(share - numbers[index]) < 0.00151, `${found}: ${numbers}`));
  }

  /** Compares what stands below the answer with what Python says; `said` is what is said aloud. */
  async function compareCases(due, unit) {
    const said = await page.getByRole("status").textContent();
    assert.equal(await cases().count(), due.why_not.length);
    for (const [index, one] of due.why_not.entries()) {
      const row = cases().nth(index);
      assert.equal(await row.getByRole("heading").textContent(), `Why not ${one.label}?`);
      const start = `From its best ${one.kept === 1 ? unit : `${one.kept} ${unit === "patch" ? "patches" : "tokens"}`} alone: `;
      const still = one.says === due.label ? "still " : "";
      const sentence = await row.locator("p").first().textContent();
      sameSentence(
        sentence,
        one.convinces
          ? [`${start}${one.label} `, one.probability, "."]
          : [`${start}${still}${one.says} `, one.says_probability, `, ${one.label} `, one.probability, "."],
      );
      const below = (await row.locator("p").last().textContent()).split("; ");
      sameSentence(below[0], ["In the answer ", one.answer_probability, ""]);
      if (one.margin === null) assert.equal(below[1], "nothing was dropped.");
      else assert.ok(Math.abs(parseFloat(below[1].replace("margin ", "")) - one.margin) <= 1e-4 + one.margin * 0.005, below[1]);
      assert.ok(said.includes(`Why not ${one.label}? ${sentence} Read from: `), said);
    }
    return said;
  }

  async function compareTexts(due) {
    const said = await compareCases(due, "token");
    for (const [index, { rationale }] of due.why_not.entries()) {
      const shown = cases().nth(index).locator(".highlighted");
      assert.equal(await shown.textContent(), due.source);
      const marked = await shown.locator("mark").allTextContents();
      assert.equal(inLetters(marked.join("")), inLetters(rationale.map(({ text }) => text).join("")));
      assert.ok(said.includes(`Read from: ${rationale.map(({ text }) => text).join(", ")}.`), said);
    }
  }

  test("is asked from the keyboard, shows the best case for each other label, and says so aloud", async () => {
    const due = answers.find((one) => isPlain(one) && !one.abstain && one.why_not.some(isStill(one)));
    await open("text-why-not-calibrated/", { viewport: { width: 1000, height: 800 } });
    await askText(due.source, "Classify");
    const others = [...due.why_not].map(({ label }) => label);
    assert.equal(await button().textContent(), `Why not ${others.join(" or ")}?`);
    assert.equal(await page.isVisible("#best-cases"), false);
    const before = await page.textContent("#answer");
    await button().focus();
    await page.keyboard.press("Enter");
    await waitForCases();
    await compareTexts(due);
    assert.equal(await page.textContent("#answer"), before);
    assert.equal(await page.textContent("#highlighted"), due.source);
    assert.ok(await button().evaluate((node) => node === document.activeElement));
    assert.equal(await page.isVisible("#asking"), false);
    const states = [];
    for (let time = 0; time < 3; time++) {
      states.push([await button().getAttribute("aria-expanded"), await page.isVisible("#best-cases")]);
      await page.keyboard.press("Space");
    }
    assert.deepEqual(states, [["true", true], ["false", false], ["true", true]]);
  });

  test("is asked about an answer that is withheld, which stays withheld", async () => {
    const due = answers.find((one) => isPlain(one) && one.abstain && one.why_not.some(({ convinces }) => convinces));
    await askText(due.source, "Classify");
    assert.equal(await page.isVisible("#best-cases"), false);
    assert.equal(await button().getAttribute("aria-expanded"), "false");
    await button().click();
    await waitForCases();
    await compareTexts(due);
    assert.ok(await page.isVisible("#withheld"));
    assert.equal(await page.textContent("#standing"), "Most probable, not to be relied on");
  });

  test("keeps its contrasts, and is no wider than a small phone", async () => {
    await page.setViewportSize({ width: 320, height: 640 });
    assert.equal(await cases().count(), 2);
    for (const colorScheme of ["light", "dark"]) {
      await page.emulateMedia({ colorScheme });
      assert.deepEqual(await page.evaluate(poorContrasts, CONTRAST), []);
    }
    assert.ok((await page.evaluate(() => document.documentElement.scrollWidth)) <= 320);
  });

  test("marks the patches of each other label, dimmed or not as the answer's", async () => {
    const { answers: images } = golden.bundles["image-why-not"];
    const due = images.find(({ source }) => source.endsWith("/view.png"));
    await open("image-why-not/", { viewport: { width: 1000, height: 800 } });
    await page.getByLabel("Choose an image").setInputFiles(due.source);
    await page.waitForSelector("#result:not([hidden])");
    await button().click();
    await waitForCases();
    const said = await compareCases(due, "patch");
    const [{ rationale, label }] = due.why_not;
    assert.ok(said.includes(`Read from: ${rationale.length} patches.`), said);
    const shown = page.getByRole("img", { name: /^The image with the patches kept/ });
    assert.equal(await shown.count(), 2);
    const description = await cases().getByRole("img").getAttribute("aria-label");
    for (const { row, column } of rationale) assert.match(description, new RegExp(`row ${row + 1}: (\\d+, )*${column + 1}`));
    /** Of each patch: whether it is outlined in yellow, and how bright a pixel is, red, green and blue together. */
    const patches = (isDim) =>
      page.evaluate(
        ([side, dim]) => {
          const control = document.querySelector("#dim");
          if (control.checked !== dim) control.click();
          const picture = document.querySelector("#cases canvas");
          const copy = new OffscreenCanvas(picture.width, picture.height).getContext("2d", { willReadFrequently: true });
          copy.drawImage(picture, 0, 0);
          const step = picture.width / side;
          return Array.from({ length: side * side }, (_, at) => {
            const { data } = copy.getImageData((at % side) * step, Math.floor(at / side) * step, step, step);
            let [yellow, sum] = [0, 0];
            for (let byte = 0; byte < data.length; byte += 4) {
              if (data[byte] === 255 && data[byte + 1] === 213 && data[byte + 2] === 74) yellow++;
              sum += data[byte] + data[byte + 1] + data[byte + 2];
            }
            return { isKept: yellow > 20, light: (sum * 4) / data.length };
          });
        },
        [due.grid, isDim],
      );
    const [dimmed, whole] = [await patches(true), await patches(false)];
    const kept = rationale.map(({ row, column }) => row * due.grid + column);
    for (const found of [dimmed, whole]) {
      assert.deepEqual(found.flatMap(({ isKept }, at) => (isKept ? at : [])), kept, label);
    }
    for (const [at, { light }] of dimmed.entries()) {
      const due = kept.includes(at) ? whole[at].light : 0.28 * whole[at].light + 0.72 * (12 + 14 + 18);
      assert.ok(Math.abs(light - due) < 3, `patch ${at}: ${light}, not ${due}`);
    }
  });
});

describe("the page for images", () => {
  const photo = path.join(GOLDEN, "images", "photo.png");
  const due = golden.bundles.image.answers.find(({ source }) => source === photo);

  test("answers a chosen image and draws what it was read from", async () => {
    await open("image/", { viewport: { width: 1000, height: 800 } });
    await page.getByLabel("Choose an image").setInputFiles(photo);
    await page.waitForSelector("#result:not([hidden])");
    assert.equal(await page.textContent("#label"), due.label);
    const light = (dim) =>
      page.evaluate(
        async ([boxes, isDim]) => {
          const control = document.querySelector("#dim");
          if (control.checked !== isDim) control.click();
          const shown = document.querySelector("canvas");
          const { width, height } = shown;
          const copy = new OffscreenCanvas(width, height).getContext("2d", { willReadFrequently: true });
          copy.drawImage(shown, 0, 0);
          const { data } = copy.getImageData(0, 0, width, height);
          const sums = { kept: 0, dropped: 0 };
          const counts = { kept: 0, dropped: 0 };
          const scale = width / 640;
          for (let y = 0; y < height; y += 3) {
            for (let x = 0; x < width; x += 3) {
              const [across, down] = [x / scale, y / scale];
              const isKept = boxes.some((box) => across >= box.x && across < box.x + box.width && down >= box.y && down < box.y + box.height);
              const kind = isKept ? "kept" : "dropped";
              sums[kind] += data[(y * width + x) * 4 + 1];
              counts[kind]++;
            }
          }
          return { kept: sums.kept / counts.kept, dropped: sums.dropped / counts.dropped };
        },
        [due.rationale, dim],
      );
    const [dimmed, whole] = [await light(true), await light(false)];
    assert.ok(Math.abs(dimmed.kept - whole.kept) < 1, JSON.stringify({ dimmed, whole }));
    assert.ok(dimmed.dropped < whole.dropped * 0.45, JSON.stringify({ dimmed, whole }));
    const [first] = due.rationale;
    const described = await page.getAttribute("canvas", "aria-label");
    assert.match(described, new RegExp(`row ${first.row + 1}: (\\d+, )*${first.column + 1}`));
    assert.ok(await page.isVisible("#crop"));
  });

  test("a dropped image is answered; what is no image gets a message", async () => {
    const drop = (name, type) =>
      page.evaluate(
        async ([file, kind]) => {
          const content = kind === "text/plain" ? "no image" : await (await fetch(`../golden/images/${file}`)).blob();
          const data = new DataTransfer();
          data.items.add(new File([content], file, { type: kind }));
          document.querySelector("#drop").dispatchEvent(new DragEvent("drop", { dataTransfer: data, bubbles: true, cancelable: true }));
        },
        [name, type],
      );
    await drop("no.txt", "text/plain");
    await page.waitForSelector("#image-problem:not(:empty)");
    assert.match(await page.textContent("#image-problem"), /not an image.*JPEG or PNG/);
    assert.equal(await page.isVisible("#result"), false);
    await drop("cifar-0.png", "image/png");
    await page.waitForSelector("#result:not([hidden])");
    assert.equal(await page.textContent("#image-problem"), "");
    const small = golden.bundles.image.answers.find(({ source }) => source.endsWith("/cifar-0.png"));
    assert.equal(await page.textContent("#label"), small.label);
    assert.equal(await page.isVisible("#crop"), false);
  });

  test("an image of 20,000 by 20,000 pixels is refused before it is unpacked", async () => {
    const header = Buffer.from(fs.readFileSync(photo).subarray(0, 64));
    header.writeUInt32BE(20_000, 16);
    header.writeUInt32BE(20_000, 20);
    const file = path.join(root, "huge.png");
    fs.writeFileSync(file, header);
    await page.getByLabel("Choose an image").setInputFiles(file);
    await page.waitForSelector("#image-problem:not(:empty)");
    assert.match(await page.textContent("#image-problem"), /too large: 20000 x 20000/);
  });

  test("contrasts hold here too, and nothing is wider than a small phone", async () => {
    await page.getByLabel("Choose an image").setInputFiles(photo);
    await page.waitForSelector("#result:not([hidden])");
    for (const colorScheme of ["light", "dark"]) {
      await page.emulateMedia({ colorScheme });
      assert.deepEqual(await page.evaluate(poorContrasts, CONTRAST), []);
    }
    await page.setViewportSize({ width: 320, height: 640 });
    assert.ok((await page.evaluate(() => document.documentElement.scrollWidth)) <= 320);
  });
});

describe("trust", () => {
  test("nothing was asked of another host, and nothing was complained about", () => {
    assert.ok(asked.length > 10);
    assert.deepEqual(asked.filter((url) => !/^(blob:)?http:\/\/localhost:\d+\//.test(url)), []);
    assert.deepEqual(complaints, []);
  });

  test("the page may neither ask another host nor run a script of its text", async () => {
    await open("text/");
    const outcome = await page.evaluate(async () => {
      const violations = new Set();
      const both = new Promise((resolve) => {
        document.addEventListener("securitypolicyviolation", (event) => {
          if (violations.add(event.violatedDirective).size === 2) resolve();
        });
      });
      const script = document.createElement("script");
      script.textContent = "window.injected = true";
      document.body.append(script);
      const asked = await fetch("https://example.invalid/").then(() => "asked", () => "refused");
      await both;
      return { asked, injected: window.injected === true, violations: [...violations].sort() };
    });
    assert.deepEqual(outcome, { asked: "refused", injected: false, violations: ["connect-src", "script-src-elem"] });
  });

  test("a changed model is refused, and so is a whole other bundle", async () => {
    const site = path.join(root, "text");
    for (const [name, message] of [
      ["bundle/model.onnx", /model\.onnx has changed \(sha256\)/],
      ["bundle/manifest.json", /this page was built for/],
    ]) {
      const changing = await serve(site, (asked, content) => {
        if (asked !== name) return content;
        const changed = Buffer.from(content);
        changed[changed.length - 2] ^= 1;
        return changed;
      });
      await page.goto(changing.url);
      await page.waitForSelector("#failure:not([hidden])");
      assert.match(await page.textContent("#failure-message"), message);
      assert.equal(await page.isVisible("#text-form"), false);
      assert.equal(await page.textContent("#verified"), "Not verified");
      await changing.close();
    }
  });

  test("a file of the question that has gone since the start refuses it, and the answer stays", async () => {
    let isThere = true;
    const site = path.join(root, "text-why-not-calibrated");
    const own = await serve(site, (asked, content) => {
      if (asked === "service_worker.js" || (asked === "bundle/why_not.onnx" && !isThere)) return null;
      return content;
    });
    await page.goto(own.url);
    await page.waitForSelector(READY);
    await askText("a dull film", "Classify");
    const button = page.getByRole("button", { name: /^Why not / });
    isThere = false;
    await button.click();
    const problem = page.getByRole("alert").filter({ hasText: "why_not.onnx is missing" });
    await problem.waitFor();
    assert.ok(await page.isVisible("#answer"));
    assert.equal(await page.isVisible("#best-cases"), false);
    isThere = true;
    await button.click();
    await page.waitForSelector("#best-cases:not([hidden])");
    assert.equal(await problem.count(), 0);
    await own.close();
  });

  test("once saved, the page answers without a network, and says why not", async () => {
    const own = await serve(path.join(root, "text-why-not-calibrated"));
    await page.goto(own.url);
    await page.waitForSelector('#offline[data-state="good"]');
    await own.close();
    await page.reload();
    await page.waitForSelector(READY);
    const due = golden.bundles["text-why-not-calibrated"].answers[1];
    await page.getByRole("textbox").fill(due.source);
    await page.getByRole("button", { name: "Classify" }).click();
    await page.waitForSelector("#result:not([hidden])");
    assert.equal(await page.textContent("#label"), due.label);
    await page.getByRole("button", { name: /^Why not / }).click();
    await page.waitForSelector("#best-cases:not([hidden])");
    const found = await page.locator("#cases h3").allTextContents();
    assert.deepEqual(found, due.why_not.map(({ label }) => `Why not ${label}?`));
  });

  test("a new version is used when the person says so", async () => {
    const site = path.join(root, "text");
    const digest = (content) => createHash("sha256").update(content).digest("hex");
    const old = fs.readFileSync(path.join(site, "index.html"), "utf8");
    const renewed = old.replace("<title>", "<title>New: ");
    let isNew = false;
    const own = await serve(site, (asked, content) => {
      if (isNew && asked === "index.html") return renewed;
      if (!isNew || asked !== "service_worker.js") return content;
      return `${content}`
        .replace(digest(old), digest(renewed))
        .replace(/\b[0-9a-f]{16}\b/, "0".repeat(16));
    });
    const good = '#offline[data-state="good"]';
    await page.goto(own.url);
    await page.waitForSelector(good);
    isNew = true;
    await page.reload();
    await page.waitForSelector(good);
    const button = page.getByRole("button", { name: "Use it now" });
    await button.waitFor();
    assert.doesNotMatch(await page.title(), /^New/);
    await button.click();
    await page.waitForFunction(() => document.title.startsWith("New: "));
    await page.waitForSelector(READY);
    const kept = await page.evaluate(() => caches.keys());
    assert.equal(kept.length, 1);
    assert.ok(kept[0].endsWith("0".repeat(16)));
    await own.close();
  });

  test("a page that does not arrive as built is not saved", async () => {
    const changing = await serve(path.join(root, "text"), (asked, content) =>
      asked === "icon.svg" ? Buffer.from(`${content} `) : content,
    );
    await page.goto(changing.url);
    await page.waitForSelector(READY);
    await page.waitForSelector('#offline[data-state="bad"]');
    assert.deepEqual(await page.evaluate(() => caches.keys()), []);
    await changing.close();
  });
});

/** Runs in the page: every visible text whose contrast with what is behind it is too low. */
function poorContrasts(least) {
  const channels = (color) => color.match(/[\d.]+/g).map(Number);
  const luminance = (color) => {
    const [red, green, blue] = channels(color).map((value) => {
      const share = value / 255;
      return share <= 0.04045 ? share / 12.92 : ((share + 0.055) / 1.055) ** 2.4;
    });
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue;
  };
  const ground = (node) => {
    for (let one = node; one !== null; one = one.parentElement) {
      const color = getComputedStyle(one).backgroundColor;
      if ((channels(color)[3] ?? 1) === 1) return color;
    }
    return "rgb(255, 255, 255)";
  };
  const poor = [];
  for (const node of document.body.querySelectorAll("*")) {
    const hasText = [...node.childNodes].some((one) => one.nodeType === 3 && one.data.trim() !== "");
    if (!hasText || !node.checkVisibility() || node.closest(".hidden-text")) continue;
    const [one, other] = [luminance(getComputedStyle(node).color), luminance(ground(node))];
    const ratio = (Math.max(one, other) + 0.05) / (Math.min(one, other) + 0.05);
    if (ratio < least) poor.push(`${node.id || node.className || node.tagName} ${ratio.toFixed(2)}`);
  }
  return poor;
}
