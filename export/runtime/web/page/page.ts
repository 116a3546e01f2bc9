/** The page: loads the bundle beside it, takes a text or an image, shows the answer. */
import {
  type Case,
  type ClassRationale,
  type Config,
  type Prediction,
  type PatchBox,
  Rationalist,
  RekdError,
  type WordSpan,
} from "../src/rationalist.js";
import { type Row, WORDS, bestCase, limitsOf, percent, question, reasons, score, shown } from "./answer.js";
import { type Marked, drawOverlay } from "./overlay.js";
import { highlightedParts, visible } from "./highlight.js";

const SHOWN_LABELS = 6;
const NOT_RELIABLE = "Most probable, not to be relied on";
/** What decided between two students (docs/ensemble.md). */
const DECIDED: Record<Case, string> = {
  agree: "both give this label; the first one's answer",
  first_convinces: "they disagreed; shown what the first one read, the second gives its label, and not the other way round",
  partner_convinces: "they disagreed; shown what the second one read, the first gives its label, and not the other way round",
  confidence: "they disagreed, and neither or both convinced the other; the more confident one answers",
};

function element<Kind extends HTMLElement>(id: string, kind: new () => Kind): Kind {
  const found = document.getElementById(id);
  if (!(found instanceof kind)) throw new Error(`the page has no ${id}`);
  return found;
}

const at = (id: string) => element(id, HTMLElement);

function show(id: string, isShown = true): void {
  at(id).hidden = !isShown;
}

function state(id: string, text: string, value: "busy" | "good" | "bad"): void {
  at(id).textContent = text;
  at(id).dataset["state"] = value;
}

/** An element with text; never markup. */
function made(name: string, text: string, className = ""): HTMLElement {
  const node = document.createElement(name);
  node.textContent = text;
  node.className = className;
  return node;
}

function milliseconds(value: number): string {
  return `${value < 10 ? value.toFixed(1) : value.toFixed(0)} ms`;
}

function explain(error: unknown): [string, string] {
  if (error instanceof RekdError) return [error.message, error.hint];
  const reason = error instanceof Error ? `${error.name}: ${error.message}` : String(error);
  return [`Unexpected: ${reason}`, "This is a bug: please report it."];
}

async function load(): Promise<Rationalist> {
  const bar = element("progress", HTMLProgressElement);
  const fingerprint = document.querySelector<HTMLMetaElement>("meta[name=rekd-fingerprint]");
  const model = await Rationalist.load(new URL("bundle/", document.baseURI), {
    ...(fingerprint === null ? {} : { fingerprint: fingerprint.content }),
    onProgress: ({ path, doneBytes, totalBytes }) => {
      bar.value = doneBytes / totalBytes;
      const megabytes = (bytes: number) => (bytes / 1e6).toFixed(1);
      at("progress-text").textContent =
        path === ""
          ? "Opening the model"
          : `${megabytes(doneBytes)} of ${megabytes(totalBytes)} MB read and checked`;
    },
  });
  return model;
}

function describeModel(model: Rationalist): void {
  const { document: manifest, files, sha256 } = model.manifest;
  const { config } = model;
  state("verified", `${files.length} files match their sha256`, "good");
  const unit = config.modality === "text" ? "tokens" : "patches";
  const accuracy = manifest["accuracy"] as Record<string, number> | undefined;
  const words = WORDS[config.problemType];
  const reads =
    config.modality === "text"
      ? `the first ${config.maxLength} tokens`
      : `the central square, as ${config.imageSize} x ${config.imageSize} pixels`;
  const facts: Array<[string, string]> = [
    [words.labels, config.labelNames.join(", ")],
    ["Answers from", `${percent(config.rationaleRatio)} of the ${unit}`],
    ["Reads", reads],
    [words.score, score(config, accuracy?.["student_onnx"])],
    ["Precision", config.precision],
    ["Exported", String(manifest["created"]).slice(0, 10)],
  ];
  const list = at("facts");
  for (const [name, value] of facts) {
    const row = document.createElement("div");
    row.append(made("dt", name), made("dd", value));
    list.append(row);
  }
  [at("calibration").textContent, at("withholding").textContent] = limitsOf(config);
  const gates = (manifest["gates"] ?? []) as Array<{ name: string; goal: string; passed: boolean }>;
  const passed = gates.filter((gate) => gate.passed).length;
  at("checks").textContent = `${passed} of ${gates.length} checks passed before export`;
  at("gates").append(
    ...gates.map((gate) => {
      const result = gate.passed ? "passed" : "failed";
      return made("li", `${gate.name.replaceAll("_", " ")} (${gate.goal}): ${result}`);
    }),
  );
  at("fingerprint").textContent = sha256;
  const versions = manifest["versions"] as Record<string, string> | undefined;
  at("version").textContent = ` ${versions?.["rekd-edge"] ?? ""}`;
}

function bars(list: HTMLElement, rows: readonly Row[]): void {
  list.replaceChildren(
    ...rows.map(({ name, share, text }) => {
      const row = document.createElement("li");
      const track = made("span", "", share === null ? "" : "track");
      if (share !== null) {
        const fill = made("div", "", "fill");
        fill.style.width = `${share * 100}%`;
        track.append(fill);
      }
      row.append(made("span", name), track, made("span", text, "value"));
      return row;
    }),
  );
}

function showPrediction(prediction: Prediction, config: Config): void {
  const { abstain } = prediction;
  show("withheld", abstain);
  at("reasons").textContent = reasons(prediction, config);
  at("standing").textContent = abstain ? NOT_RELIABLE : "Answer";
  at("result").setAttribute("aria-labelledby", abstain ? "no-answer" : "answer");
  const { kept, candidates, margin, modelMs, preprocessMs } = prediction;
  const isText = prediction.modality === "text";
  const { answer, number, title, rows } = shown(prediction);
  at("label").textContent = answer;
  at("probability").textContent = number;
  at("notices").replaceChildren(...prediction.notices.map((notice) => made("li", notice)));
  at("evidence").textContent =
    `${kept} of ${candidates} ${isText ? "tokens" : "patches"}. ` +
    `Nothing else entered the ${abstain ? "probabilities" : "answer"}.`;
  at("numbers").textContent = title;
  showDecision(prediction, isText ? "tokens" : "patches");
  at("unit").textContent = isText ? "token" : "patch";
  bars(at("probabilities"), rows.slice(0, SHOWN_LABELS));
  const others = rows.slice(SHOWN_LABELS);
  show("others", others.length > 0);
  at("others").querySelector("summary")!.textContent = `${others.length} more`;
  bars(at("others").querySelector("ol")!, others);
  at("margin").textContent = Number.isFinite(margin)
    ? margin.toPrecision(3)
    : "none: nothing was dropped";
  at("time").textContent = milliseconds(preprocessMs + modelMs);
  at("shares").textContent =
    `model ${milliseconds(modelMs)}, ` +
    `${isText ? "tokens" : "reading the image"} ${milliseconds(preprocessMs)}`;
  show("highlighted", isText);
  show("overlay", !isText);
}

/** Of two students: what decided, and which marks are whose. */
function showDecision({ case: decided, answerRationale, consulted }: Prediction, unit: string): void {
  show("decided", decided !== null);
  show("legend", decided !== null);
  if (decided === null || answerRationale === null || consulted === null) return;
  at("decided").textContent = `Two students: ${inWords(decided)} (${DECIDED[decided]}).`;
  const parts = (evidence: readonly (WordSpan | PatchBox)[]) =>
    evidence.reduce((sum, part) => sum + ("tokens" in part ? part.tokens.length : 1), 0);
  at("read").textContent = `${parts(answerRationale)} ${unit} that the student that answers read`;
  at("consulted").textContent = `${parts(consulted)} ${unit} that only the other one read`;
}

function inWords(decided: Case): string {
  return decided.replaceAll("_", " ");
}

/** The whole answer, or as much of it as there is room for. */
function bringIntoView(): void {
  show("result");
  const isCalm = matchMedia("(prefers-reduced-motion: reduce)").matches;
  at("result").scrollIntoView({ block: "nearest", behavior: isCalm ? "instant" : "smooth" });
}

function aloud(parts: readonly (WordSpan | PatchBox)[]): string {
  const words = parts.flatMap((part) => ("text" in part ? part.text : []));
  return words.length > 0 ? words.join(", ") : `${parts.length} patches`;
}

function announce(prediction: Prediction, config: Config): void {
  const { case: decided, rationale, answerRationale, consulted } = prediction;
  const { answer, number } = shown(prediction);
  const evidence = aloud(answerRationale ?? rationale);
  const other = consulted?.length ? ` Read by the other student: ${aloud(consulted)}.` : "";
  const by = decided === null ? "" : ` Two students: ${inWords(decided)}.`;
  const notices = prediction.notices.join(" ");
  const first = prediction.abstain
    ? `No answer. ${reasons(prediction, config)} ${NOT_RELIABLE}: `
    : "";
  at("announcement").textContent =
    `${first}${[answer, number].filter(Boolean).join(", ")}. Read from: ${evidence}.` +
    `${other}${by} ${notices}`;
}

function showText(place: HTMLElement, prediction: Parameters<typeof highlightedParts>[0]): void {
  place.replaceChildren(
    ...highlightedParts(prediction).map(({ text: raw, kind }) => {
      const text = visible(raw);
      if (kind === "kept" || kind === "consulted") return made("mark", text, kind);
      return kind === "unread" ? made("span", text, "unread") : document.createTextNode(text);
    }),
  );
}

/** The answer that is shown: what is asked about an older one comes too late. */
let answered: Prediction | null = null;

/**
 * The question below an answer. `picture` shows the input with the best case for a label marked.
 */
function offerQuestion<Part extends WordSpan | PatchBox>(
  model: Rationalist,
  prediction: Prediction & { readonly whyNot: ReadonlyArray<ClassRationale<Part>> | null },
  picture: (one: ClassRationale<Part>) => HTMLElement,
): void {
  const button = element("ask", HTMLButtonElement);
  const isAsking = (value: boolean) => {
    button.setAttribute("aria-disabled", String(value));
    show("asking", value);
  };
  const open = (isOpen: boolean) => {
    button.setAttribute("aria-expanded", String(isOpen));
    show("best-cases", isOpen);
  };
  let isTold = false;
  const ask = async () => {
    if (answered !== prediction) return;
    try {
      await painted();
      const { whyNot, notices } = await model.addWhyNot(prediction);
      const added = notices.slice(prediction.notices.length);
      at("why-not-notices").replaceChildren(...added.map((notice) => made("li", notice)));
      at("cases").replaceChildren(...whyNot!.map((one) => caseFor(one, prediction, picture(one))));
      isTold = true;
      open(true);
      const said = whyNot!.map(
        (one) => `${whyNotLabel(one)} ${bestCase(one, prediction)} Read from: ${aloud(one.rationale)}.`,
      );
      at("announcement").textContent = [...said, ...added].join(" ");
    } finally {
      isAsking(false);
    }
  };
  answered = prediction;
  show("why-not", model.canSayWhyNot);
  isAsking(false);
  open(false);
  at("why-not-problem").textContent = "";
  at("cases").replaceChildren();
  if (!model.canSayWhyNot) return;
  button.textContent = question(prediction);
  button.onclick = () => {
    if (button.getAttribute("aria-disabled") === "true") return;
    if (isTold) return open(button.getAttribute("aria-expanded") === "false");
    isAsking(true);
    at("announcement").textContent = "Asking…";
    void attempt("why-not-problem", ask, () => {
      at("announcement").textContent = "";
    });
  };
}

/** Until the browser has had time to draw: while the model runs, it does not. */
function painted(): Promise<void> {
  return new Promise((resolve) => setTimeout(resolve, 50));
}

function whyNotLabel({ label }: ClassRationale<unknown>): string {
  return `Why not ${label}?`;
}

function caseFor(one: ClassRationale<unknown>, prediction: Prediction, picture: HTMLElement): HTMLElement {
  const row = made("li", "");
  const { answerProbability, margin } = one;
  const found = Number.isFinite(margin) ? `margin ${margin.toPrecision(3)}` : "nothing was dropped";
  row.append(
    made("h3", whyNotLabel(one)),
    made("p", bestCase(one, prediction)),
    picture,
    made("p", `In the answer ${percent(answerProbability)}; ${found}.`, "quiet"),
  );
  return row;
}

function patchesInWords({ rationale, answerRationale, consulted }: Marked, grid: number): string {
  const inRows = (boxes: readonly PatchBox[]) => {
    const rows = new Map<number, number[]>();
    for (const { row, column } of boxes) {
      rows.set(row + 1, [...(rows.get(row + 1) ?? []), column + 1]);
    }
    return [...rows].map(([row, columns]) => `row ${row}: ${columns.join(", ")}`).join("; ");
  };
  const other = consulted?.length ? `. Read by the other student, ${inRows(consulted)}` : "";
  const kept = inRows(answerRationale ?? rationale);
  return `The image with the patches kept, of ${grid} by ${grid}. ${kept}${other}`;
}

/** What speaks for a class, marked as what one student read. */
function alone<Part>({ rationale }: ClassRationale<Part>) {
  return { rationale, answerRationale: null, consulted: null };
}

function readyForTexts(model: Rationalist): void {
  const form = element("text-form", HTMLFormElement);
  const field = element("text", HTMLTextAreaElement);
  const words = WORDS[model.config.problemType];
  field.labels[0]!.textContent = words.field;
  form.querySelector("button")!.textContent = words.button;
  show("text-form");
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    void attempt("text-problem", async () => {
      const prediction = await model.predict(field.value);
      if (prediction.modality !== "text") return;
      showPrediction(prediction, model.config);
      showText(at("highlighted"), prediction);
      offerQuestion(model, prediction, (one) => {
        const place = made("div", "", "highlighted");
        place.dir = "auto";
        showText(place, { ...prediction, ...alone(one) });
        return place;
      });
      bringIntoView();
      announce(prediction, model.config);
    });
  });
  field.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) form.requestSubmit();
  });
}

function readyForImages(model: Rationalist): void {
  const input = element("file", HTMLInputElement);
  const drop = at("drop");
  const dim = element("dim", HTMLInputElement);
  const canvas = element("canvas", HTMLCanvasElement);
  let shown: ImageBitmap | undefined;
  let drawn: Array<() => void> = [];
  let latest = 0;
  const answer = (file: Blob) =>
    attempt("image-problem", async () => {
      const number = ++latest;
      const prediction = await model.predict(file);
      if (prediction.modality !== "image") return;
      const bitmap = await createImageBitmap(file);
      if (number !== latest) return bitmap.close();
      shown?.close();
      shown = bitmap;
      drawn = [];
      const draw = (place: HTMLCanvasElement, marked: Marked) => {
        const again = () => drawOverlay(place, bitmap, { ...marked, view: prediction.view }, dim.checked);
        place.setAttribute("aria-label", patchesInWords(marked, prediction.grid));
        drawn.push(again);
        again();
      };
      showPrediction(prediction, model.config);
      const { width, height } = prediction.view;
      show("crop", width !== height);
      draw(canvas, prediction);
      offerQuestion(model, prediction, (one) => {
        const place = document.createElement("canvas");
        place.setAttribute("role", "img");
        draw(place, alone(one));
        return place;
      });
      bringIntoView();
      announce(prediction, model.config);
    });
  const answerFirst = (files: FileList | null | undefined) => {
    const file = files?.[0];
    if (file !== undefined) void answer(file);
  };
  show("image-form");
  dim.addEventListener("change", () => drawn.forEach((again) => again()));
  input.addEventListener("change", () => {
    answerFirst(input.files);
    input.value = "";
  });
  for (const name of ["dragenter", "dragover"]) {
    document.addEventListener(name, (event) => {
      event.preventDefault();
      drop.classList.add("over");
    });
  }
  document.addEventListener("dragleave", (event) => {
    if (event.relatedTarget === null) drop.classList.remove("over");
  });
  document.addEventListener("drop", (event) => {
    event.preventDefault();
    drop.classList.remove("over");
    answerFirst(event.dataTransfer?.files);
  });
  document.addEventListener("paste", (event) => answerFirst(event.clipboardData?.files));
}

function dropAnswer(): void {
  answered = null;
  show("result", false);
  at("announcement").textContent = "";
}

/** One answer at a time; a failure is shown where it belongs, and the old answer goes. */
let queue: Promise<void> = Promise.resolve();
function attempt(problem: string, work: () => Promise<void>, failed = dropAnswer): Promise<void> {
  queue = queue.then(async () => {
    at(problem).textContent = "";
    try {
      await work();
    } catch (error) {
      failed();
      at(problem).textContent = explain(error).filter(Boolean).join(" ");
    }
  });
  return queue;
}

async function keepForOffline(): Promise<void> {
  if (!("serviceWorker" in navigator)) {
    state("offline", "This browser cannot keep the page for use without a network", "bad");
    return;
  }
  state("offline", "Being saved for use without a network", "busy");
  try {
    const registration = await navigator.serviceWorker.register("service_worker.js");
    await activated(registration);
    state("offline", "Works without a network", "good");
    offerUpdate(registration);
    void navigator.storage?.persist?.();
  } catch (error) {
    state("offline", `Not saved for use without a network (${explain(error)[0]})`, "bad");
  }
}

/** Everything is kept; throws where a file did not arrive as it was built. */
function activated({ active, installing, waiting }: ServiceWorkerRegistration): Promise<void> {
  const worker = active ?? waiting ?? installing;
  return new Promise((resolve, reject) => {
    const look = () => {
      if (worker?.state === "activated") resolve();
      if (worker === null || worker.state === "redundant") {
        reject(new RekdError("integrity", "a file did not arrive as it was built"));
      }
    };
    worker?.addEventListener("statechange", look);
    look();
  });
}

/** A new version is fetched beside the old one and used when the person says so. */
function offerUpdate(registration: ServiceWorkerRegistration): void {
  const offer = () => {
    if (registration.waiting === null) return;
    const button = made("button", "Use it now");
    button.addEventListener("click", () => {
      navigator.serviceWorker.addEventListener("controllerchange", () => location.reload());
      registration.waiting?.postMessage("activate");
    });
    at("offline").replaceChildren("A new version of this page is ready ", button);
  };
  const watch = () => registration.installing?.addEventListener("statechange", offer);
  registration.addEventListener("updatefound", watch);
  watch();
  offer();
}

async function main(): Promise<void> {
  try {
    const model = await load();
    describeModel(model);
    if (model.config.modality === "text") readyForTexts(model);
    else readyForImages(model);
    show("about");
    show("loading", false);
    await keepForOffline();
  } catch (error) {
    const [message, hint] = explain(error);
    state("verified", "Not verified", "bad");
    at("failure-message").textContent = message;
    at("failure-hint").textContent = hint;
    show("failure");
    show("loading", false);
  }
}

void main();
