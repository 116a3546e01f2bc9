"""From runs and bundles to a page for people: read what was recorded, run the models, show both.

Everything on the page comes from files of the runs and bundles, or from running the models on the
test split; nothing is filled in.
"""

from __future__ import annotations

import contextlib
import io
import json
import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rekd_edge import __version__
from rekd_edge.bench.timing import PERCENTILES
from rekd_edge.bundle import Bundle, open_bundle
from rekd_edge.bundle.manifest import MANIFEST_FILE, MODEL_FILE
from rekd_edge.convert import file_sha256, weights_sha256
from rekd_edge.data.loader import make_loader
from rekd_edge.data.preprocess import Preprocessor, TextPreprocessor, load_preprocessor
from rekd_edge.data.split import Split, stratified_limit
from rekd_edge.errors import (
    BackendError,
    IntegrityError,
    RekdEdgeError,
    UsageError,
)
from rekd_edge.export_pipeline import find_run, student_sha256
from rekd_edge.fuse import FusedRationalist, fuse
from rekd_edge.models.build import same_tokens
from rekd_edge.pareto import on_front
from rekd_edge.report.content import (
    Answer,
    Bench,
    Box,
    Checks,
    Example,
    ExampleGroup,
    Facts,
    Front,
    FrontPoint,
    GateLine,
    Lineage,
    ModelResult,
    Picture,
    ReportContent,
    Span,
    Stage,
    Timing,
    Training,
    TrainingPhase,
)
from rekd_edge.report.examples import Choice, Compared, choose
from rekd_edge.report.page import fit_page
from rekd_edge.report.statistics import Answers, agreement, confidence, confusion
from rekd_edge.run_folder import RUN_FILE, Run, open_run
from rekd_edge.runners import TorchRunner, file_runner
from rekd_edge.types import Modality, Outputs

EXAMPLES = 40
MAX_SIZE_MB = 5.0
BATCH = 64
PICTURE_SIDE = 224
LOSSLESS_SIDE = 96
"""Pictures up to this side are PNG, larger ones JPEG."""
Progress = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Report:
    """``page`` is the file's text, ``content`` what it shows."""

    page: str
    content: ReportContent

    def to_json(self) -> dict[str, Any]:
        """The figures of the page, without its examples."""
        return {
            "schema_version": 1,
            "title": self.content.title,
            "bytes": len(self.page.encode()),
            "examples": self.content.examples,
            "primary": self.content.primary,
            "models": [
                {
                    "name": result.name,
                    "source": result.source,
                    "accuracy": result.accuracy,
                    "examples": result.examples,
                    "per_class": dict(result.per_class),
                    "confusion": None if result.counts is None else result.counts.tolist(),
                    "agreement": None if result.agreement is None else asdict(result.agreement),
                }
                for result in self.content.results
            ],
            "benches": [bench.title for bench in self.content.benches],
            "notes": list(self.content.notes),
        }


@dataclass(slots=True)
class _Subject:
    """A run, or what is left of one in a bundle, with the bundles made from its student."""

    name: str
    run: Run | None
    bundles: list[tuple[str, Bundle]] = field(default_factory=list)

    def title(self, role: str) -> str:
        return f"{role} of {self.name}" if self.name else role


@dataclass(frozen=True, slots=True)
class _Model:
    """Something that answers on the test split. ``answer`` takes ``batch`` examples at a time."""

    name: str
    source: str
    preprocessor: Preprocessor
    grid: tuple[int, int] | None
    batch: int
    run: Callable[[Iterator[Mapping[str, np.ndarray]]], Iterator[Outputs]]
    reference: str | None
    deployed: bool


def build_report(
    paths: Sequence[Path],
    *,
    benches: Sequence[Path] = (),
    examples: int = EXAMPLES,
    limit: int | None = None,
    max_size_mb: float = MAX_SIZE_MB,
    progress: Progress = lambda _: None,
) -> Report:
    """A page about runs and bundles over one and the same test split.

    A bundle's run is looked for among ``paths`` and in the folders above the bundle; without it,
    only what the bundle recorded is shown. ``benches`` are files of ``rekd-edge bench --json``,
    matched to bundles by the model file's sha256. ``examples`` and ``max_size_mb`` bound the page;
    ``limit`` runs the models on that many test examples, drawn by class.

    Raises:
        UsageError: a path is neither run nor bundle, or they are about other data or labels; a
            benchmark that measured none of the bundles.
        IntegrityError: a file is not what it should be.
    """
    subjects = _subjects(paths)
    labels = _labels(subjects)
    notes: list[str] = []
    results: list[ModelResult] = []
    answers: dict[str, Answers] = {}
    models: list[_Model] = []
    compared: list[Compared] = []
    test: Split | None = None
    with_run = [subject.run for subject in subjects if subject.run is not None]
    if with_run:
        test = _test_split(with_run[0], limit, notes)
        models = list(_models(subjects, notes))
        for model in list(models):
            progress(f"running {model.name}")
            try:
                answers[model.name] = _collect(model, test)
            except BackendError as error:
                notes.append(f"{model.name} was not run: {error.message}")
                models.remove(model)
        compared = list(_compared(models, answers))
        counted = f"run on {len(test):,} test examples"
        results = [_result(m, answers, compared, labels, test, counted) for m in models]
    results += _recorded(subjects, {result.name for result in results})
    primary = _primary(subjects, results)
    groups: tuple[ExampleGroup, ...] = ()
    if test is not None and examples and primary in answers:
        assert primary is not None
        progress("choosing examples")
        chosen = choose(answers, primary=primary, compared=compared, count=examples)
        groups = _groups(chosen, models, answers, test, labels, primary)
    measured = _benches(subjects, benches)
    first = subjects[0]
    modality, ratio = _kind(first)
    described = _described(first)
    content = ReportContent(
        title=described[0],
        description=described[1],
        modality=modality,
        label_names=labels,
        rationale_ratio=ratio,
        created=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        version=__version__,
        primary=primary,
        lineages=tuple(_lineage(subject) for subject in subjects),
        data=_data_facts(subjects),
        trainings=tuple(t for subject in subjects for t in _trainings(subject)),
        results=tuple(results),
        confidences=tuple(
            confidence(answers[name], name) for name in _deployed(models, primary) if name
        ),
        benches=tuple(measured),
        fronts=tuple(_fronts(subjects, benches)),
        checks=tuple(_checks(name, b) for s in subjects for name, b in s.bundles),
        groups=groups,
        notes=tuple(notes),
    )
    progress("writing the page")
    page, shown = fit_page(content, max_bytes=int(max_size_mb * 1e6))
    return Report(page, shown)


# --- what was given ---------------------------------------------------------------------------


def _subjects(paths: Sequence[Path]) -> list[_Subject]:
    runs: dict[Path, Run] = {}
    bundles: list[tuple[Path, Bundle]] = []
    for path in paths:
        if (path / MANIFEST_FILE).is_file():
            bundles.append((path, open_bundle(path)))
        elif (path / RUN_FILE).is_file():
            runs[path.resolve()] = _finished(open_run(path))
        else:
            raise UsageError(
                f"{path} is neither a run nor a bundle",
                hint="make one with: rekd-edge distill, rekd-edge export",
            )
    digests = {student_sha256(run): key for key, run in runs.items()}
    belongs: list[Path | None] = []
    for _, bundle in bundles:
        digest = bundle.manifest.lineage.checkpoint_sha256
        if digest not in digests:
            try:
                found = find_run(bundle)
            except UsageError:
                belongs.append(None)
                continue
            runs[found.path.resolve()] = _finished(found)
            digests[student_sha256(found)] = found.path.resolve()
        assert digest is not None
        belongs.append(digests[digest])
    names = _short_names([*runs]) if len(runs) > 1 else dict.fromkeys(runs, "")
    subjects = {key: _Subject(names[key], run) for key, run in runs.items()}
    orphans: list[_Subject] = []
    titles = _short_names([path.resolve() for path, _ in bundles])
    for (path, bundle), home in zip(bundles, belongs, strict=True):
        named = f"{titles[path.resolve()]} ({bundle.config.precision})"
        if home is None:
            orphans.append(_Subject(titles[path.resolve()], None, [(named, bundle)]))
        else:
            subjects[home].bundles.append((named, bundle))
    return [*subjects.values(), *orphans]


def _finished(run: Run) -> Run:
    if run.info.get("status") != "finished":
        raise UsageError(
            f"the run {run.path} is not finished",
            hint="go on with: rekd-edge distill RECIPE --output RUN --resume",
        )
    if run.recipe.task == "classify":
        raise UsageError(f"{run.path} holds a plain classifier, which has no rationales to show")
    return run


def _short_names(paths: Sequence[Path]) -> dict[Path, str]:
    """The fewest last parts of each path that tell all apart."""
    for depth in range(1, 1 + max((len(path.parts) for path in paths), default=0)):
        names = {path: "/".join(path.parts[-depth:]) for path in paths}
        if len(set(names.values())) == len(names):
            return names
    return {path: path.name for path in paths}


def _labels(subjects: Sequence[_Subject]) -> tuple[str, ...]:
    """The label names that all share.

    Raises:
        UsageError: they are about other labels or data.
    """
    known = [(_label_names(s), _data_of(s), s) for s in subjects]
    labels, data, _ = known[0]
    for names, source, subject in known[1:]:
        where = subject.run.path if subject.run else subject.name
        if names != labels:
            raise UsageError(
                f"{where} knows the labels {', '.join(names)}, the first one {', '.join(labels)}",
                hint="make a page for each",
            )
        keys = {"name", "sha256", "split_seed", "test"}
        different = sorted(k for k in keys if source.get(k) != data.get(k))
        if different:
            raise UsageError(
                f"{where} is about another test split than the first one "
                f"({', '.join(different)} differ)",
                hint="make a page for each",
            )
    return labels


def _label_names(subject: _Subject) -> tuple[str, ...]:
    return subject.run.label_names if subject.run else subject.bundles[0][1].config.label_names


def _data_of(subject: _Subject) -> Mapping[str, str]:
    if subject.run is not None:
        return {key: str(value) for key, value in subject.run.info.get("data", {}).items()}
    return subject.bundles[0][1].manifest.lineage.data


def _kind(subject: _Subject) -> tuple[Modality, float]:
    if subject.run is not None:
        return subject.run.recipe.modality, subject.run.recipe.rationale_ratio
    config = subject.bundles[0][1].config
    return config.modality, config.rationale_ratio


def _described(subject: _Subject) -> tuple[str, str]:
    if subject.run is not None:
        return subject.run.recipe.name, subject.run.recipe.description
    manifest = subject.bundles[0][1].manifest
    return manifest.name, manifest.lineage.description


# --- running the models -----------------------------------------------------------------------


def _test_split(run: Run, limit: int | None, notes: list[str]) -> Split:
    test = run.data().test
    if limit is not None and limit < len(test):
        notes.append(f"the models were run on {limit:,} of {len(test):,} test examples, by class")
        return test.take(stratified_limit(test.labels, limit, seed=0))
    return test


def _models(subjects: Sequence[_Subject], notes: list[str]) -> Iterator[_Model]:
    """Teacher, student and files of every run; a teacher of several runs comes once."""
    teachers: dict[str, str] = {}
    for subject in subjects:
        run = subject.run
        if run is None:
            notes.extend(
                f"{name} was not run: its run is not in the folders above it and was not given"
                for name, _ in subject.bundles
            )
            continue
        teacher = _teacher(run, subject.title("teacher"), teachers, notes)
        if isinstance(teacher, _Model):
            yield teacher
        known_as = teacher.name if isinstance(teacher, _Model) else teacher
        student = subject.title("student")
        yield _torch_model(
            student, run.fused(), run.preprocessor.deployed(), "torch, fused", known_as
        )
        for name, bundle in subject.bundles:
            yield _file_model(name, bundle, student)


def _teacher(run: Run, name: str, known: dict[str, str], notes: list[str]) -> _Model | str | None:
    """The run's teacher; its name alone where it was met before; None where there is none."""
    try:
        model = run.teacher()
        if model is None:
            return None
        fused = fuse(
            model,
            label_names=run.label_names,
            max_length=run.max_length,
            pixel_scale=run.teacher_preprocessor.pixel_scale,
        )
    except (UsageError, IntegrityError, BackendError) as error:
        notes.append(f"{name} was not run: {error.message}")
        return None
    digest = weights_sha256(fused)
    if digest in known:
        return known[digest]
    known[digest] = name
    return _torch_model(name, fused, run.teacher_preprocessor.deployed(), "torch, fused", None)


def _torch_model(
    name: str, model: FusedRationalist, preprocessor: Preprocessor, source: str, other: str | None
) -> _Model:
    names = tuple(tensor.name for tensor in model.io_spec().inputs)

    def run(batches: Iterator[Mapping[str, np.ndarray]]) -> Iterator[Outputs]:
        with TorchRunner(model, names) as runner:
            yield from map(runner.run, batches)

    return _Model(name, source, preprocessor, model.grid, BATCH, run, other, False)


def _file_model(name: str, bundle: Bundle, student: str) -> _Model:
    config = bundle.config
    grid = None
    if config.image_size is not None and config.patch_size is not None:
        grid = (config.image_size // config.patch_size,) * 2

    def run(batches: Iterator[Mapping[str, np.ndarray]]) -> Iterator[Outputs]:
        runner = file_runner(
            bundle.model_path, runtime=config.runtime, settings=config.runtime_settings
        )
        with runner:
            yield from map(runner.run, batches)

    preprocessor = load_preprocessor(bundle.folder)
    # One example at a time, as on a device: int8 takes its ranges from the whole batch.
    return _Model(
        name, f"{config.runtime}, one at a time", preprocessor, grid, 1, run, student, True
    )


@torch.no_grad()
def _collect(model: _Model, test: Split) -> Answers:
    loader = make_loader(test, model.preprocessor, batch_size=model.batch, shuffle=False)
    labels: list[np.ndarray] = []
    selectable: list[np.ndarray] = []

    def batches() -> Iterator[Mapping[str, np.ndarray]]:
        for batch in loader:
            labels.append(batch.labels.numpy())
            yield {name: value.numpy() for name, value in batch.inputs.items()}

    logits, margins, kept = [], [], []
    lowest = np.finfo(np.float32).min
    for out in model.run(batches()):
        logits.append(out.logits)
        margins.append(out.selection_margin)
        kept += [np.flatnonzero(row) for row in out.rationale_mask]
        selectable.append((out.selection_score > lowest).sum(axis=1))
    return Answers(
        np.concatenate(logits),
        np.concatenate(labels),
        np.concatenate(margins),
        tuple(kept),
        np.concatenate(selectable),
    )


def _compared(models: Sequence[_Model], answers: Mapping[str, Answers]) -> Iterator[Compared]:
    by_name = {model.name: model for model in models}
    for model in models:
        other = by_name.get(model.reference or "")
        if other is None or other.name not in answers:
            continue
        same = same_tokens(model.preprocessor, other.preprocessor) and model.grid == other.grid
        yield Compared(model.name, other.name, same, model.deployed)


def _result(
    model: _Model,
    answers: Mapping[str, Answers],
    compared: Sequence[Compared],
    labels: tuple[str, ...],
    test: Split,
    counted: str,
) -> ModelResult:
    mine = answers[model.name]
    counts = confusion(mine, len(labels))
    support = counts.sum(axis=1)
    pair = next((one for one in compared if one.model == model.name), None)
    return ModelResult(
        name=model.name,
        source=f"{counted} ({model.source})",
        accuracy=mine.accuracy,
        examples=len(test),
        per_class={
            name: int(counts[i, i]) / int(support[i]) for i, name in enumerate(labels) if support[i]
        },
        support={name: int(support[i]) for i, name in enumerate(labels)},
        counts=counts,
        agreement=None
        if pair is None
        else agreement(mine, answers[pair.other], pair.other, same_tokens=pair.same_tokens),
    )


def _recorded(subjects: Sequence[_Subject], known: set[str]) -> Iterator[ModelResult]:
    """What check reports recorded about models that were not run here."""
    for subject in subjects:
        for name, bundle in subject.bundles:
            check = bundle.reports().get("check", {})
            recorded: Mapping[str, Any] = check.get("accuracy", {})
            wanted = {"onnx": name}
            for role in ("torch", "teacher", "plain"):
                wanted[role] = subject.title({"torch": "student"}.get(role, role))
            for role, title in wanted.items():
                if role not in recorded or title in known:
                    continue
                known.add(title)
                found = recorded[role]
                yield ModelResult(
                    name=title,
                    source=f"check report of {name}",
                    accuracy=float(found["overall"]),
                    examples=sum(found["support"].values()),
                    per_class={n: v for n, v in found["per_class"].items() if v is not None},
                    support=dict(found["support"]),
                )


def _primary(subjects: Sequence[_Subject], results: Sequence[ModelResult]) -> str | None:
    """The first bundle, or the first student: what the summary is about."""
    names = {result.name for result in results}
    wanted = [name for s in subjects for name, _ in s.bundles]
    wanted += [s.title("student") for s in subjects]
    return next((name for name in wanted if name in names), None)


def _deployed(models: Sequence[_Model], primary: str | None) -> list[str]:
    """Files, or the primary model where there is none; four at most, so that lines stay apart."""
    files = [model.name for model in models if model.deployed]
    return (files or [name for name in [primary] if name in {m.name for m in models}])[:4]


# --- examples ---------------------------------------------------------------------------------


def _groups(
    chosen: Sequence[Choice],
    models: Sequence[_Model],
    answers: Mapping[str, Answers],
    test: Split,
    labels: tuple[str, ...],
    primary: str,
) -> tuple[ExampleGroup, ...]:
    probabilities = {name: found.probabilities for name, found in answers.items()}
    known = {model.name for model in models}

    def example(index: int) -> Example:
        raw = test.raw(index)
        text = raw if isinstance(raw, str) else None
        reference = {m.name: m.reference for m in models}
        shown = []
        for model in models:
            mine = answers[model.name]
            predicted = int(mine.predicted[index])
            other = reference[model.name]
            shown.append(
                Answer(
                    model=model.name,
                    label=labels[predicted],
                    probability=float(probabilities[model.name][index, predicted]),
                    right=predicted == int(test.labels[index]),
                    margin=float(mine.margin[index]),
                    kept=len(mine.kept[index]),
                    candidates=int(mine.candidates[index]),
                    evidence=_evidence(model, raw, mine.kept[index]),
                    reference=other if other in known else None,
                )
            )
        return Example(
            index=index,
            label=labels[int(test.labels[index])],
            reasons=_reasons(answers, primary, index),
            text=text,
            picture=None if isinstance(raw, str) else _picture(raw),
            answers=tuple(shown),
        )

    return tuple(
        ExampleGroup(one.key, one.title, one.explanation, tuple(example(i) for i in one.indices))
        for one in chosen
    )


def _reasons(answers: Mapping[str, Answers], primary: str, index: int) -> tuple[str, ...]:
    reasons = []
    wrong = [name for name, found in answers.items() if not found.right[index]]
    if wrong:
        everyone = len(wrong) == len(answers)
        reasons.append("all models are wrong" if everyone else f"wrong: {', '.join(wrong)}")
    margin = float(answers[primary].margin[index])
    if math.isfinite(margin):
        share = float((answers[primary].margin <= margin).mean())
        if share <= 0.05:
            reasons.append(f"margin {margin:.2g}, among the smallest {share:.1%}")
    if len({int(found.predicted[index]) for found in answers.values()}) > 1:
        reasons.append("labels differ")
    return tuple(reasons)


def _evidence(
    model: _Model, raw: str | np.ndarray, kept: np.ndarray
) -> tuple[Span, ...] | tuple[Box, ...]:
    if isinstance(raw, str):
        assert isinstance(model.preprocessor, TextPreprocessor)
        offsets = model.preprocessor.offsets(raw)
        return tuple(Span(*offsets[int(position)]) for position in kept)
    assert model.grid is not None
    rows, columns = model.grid
    return tuple(
        Box(int(p) % columns / columns, int(p) // columns / rows, 1 / columns, 1 / rows)
        for p in kept
    )


def _picture(image: np.ndarray) -> Picture:
    """The centre square, which is what the models see, at most :data:`PICTURE_SIDE` wide."""
    from PIL import Image

    height, width = image.shape[:2]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    square = Image.fromarray(image[top : top + side, left : left + side])
    if side > PICTURE_SIDE:
        square = square.resize((PICTURE_SIDE, PICTURE_SIDE), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    if square.width <= LOSSLESS_SIDE:
        square.save(buffer, format="PNG", optimize=True)
        return Picture("image/png", buffer.getvalue(), square.width)
    square.save(buffer, format="JPEG", quality=82)
    return Picture("image/jpeg", buffer.getvalue(), square.width)


# --- what was recorded ------------------------------------------------------------------------


def _data_facts(subjects: Sequence[_Subject]) -> Facts:
    """As every subject says it: parts that only concern training may differ between them."""
    merged: dict[str, list[str]] = {}
    for subject in subjects:
        for key, value in _data_of(subject).items():
            values = merged.setdefault(key, [])
            if str(value) not in values:
                values.append(str(value))
    named = {"train": "training examples", "dev": "development examples", "test": "test examples"}
    return tuple(
        (named.get(key, key.replace("_", " ")), ", ".join(_portable(value) for value in values))
        for key, values in merged.items()
    )


def _portable(value: str) -> str:
    """An absolute path says nothing on another machine, and something about this one."""
    return Path(value).name if value.startswith("/") else value


def _lineage(subject: _Subject) -> Lineage:
    return Lineage(
        title=subject.name or _described(subject)[0],
        stages=tuple(_stages(subject)),
        files=tuple(_file_stage(name, bundle) for name, bundle in subject.bundles),
    )


def _stages(subject: _Subject) -> Iterator[Stage]:
    run = subject.run
    manifest = None if not subject.bundles else subject.bundles[0][1].manifest
    if run is None:
        assert manifest is not None
        lineage = manifest.lineage
        facts = [
            ("task", lineage.task),
            ("seed", "" if lineage.seed is None else str(lineage.seed)),
        ]
        yield Stage("recipe", f"Recipe: {lineage.recipe_name}", tuple(facts))
        weights = tuple((role, _portable(source)) for role, source in lineage.weights.items())
        facts = [("weights sha256", lineage.checkpoint_sha256 or ""), *weights]
        yield Stage("student", "Student", tuple(facts))
        return
    recipe = run.recipe
    yield Stage(
        "recipe",
        f"Recipe: {recipe.name}",
        (
            ("task", recipe.task),
            ("seed", str(recipe.seed)),
            ("rationale", f"{recipe.rationale_ratio:.0%} of the tokens or patches"),
            ("objective", recipe.objective.name),
            ("sha256 of the resolved recipe", file_sha256(run.path / "recipe.resolved.yaml")),
        ),
    )
    if recipe.task == "distill":
        yield _teacher_stage(run)
    yield Stage("student", "Student", _trained_facts(run, "student"))
    found = run.report("fuse")
    fused: Facts = (("largest difference of logits", ""),)
    if found is not None:
        modes = found["modes"]
        fused = (
            ("equal to the trained model", "yes" if found["passed"] else "NO"),
            ("largest difference of logits", f"{found['fused_difference']:.2g}"),
            ("folds", ", ".join(fold["name"] for fold in found["folds"]) or "none"),
            *(
                (f"accuracy, {name.replace('_', ' ')}", f"{mode['accuracy']:.3f}")
                for name, mode in modes.items()
            ),
        )
    note = "" if found else "The run has no fuse report (reports/fuse.json)."
    yield Stage("fused", "Fused: deterministic, reads the rationale alone", fused, note)


def _teacher_stage(run: Run) -> Stage:
    try:
        home, role = _teacher_home(run)
    except RekdEdgeError as error:
        return Stage("teacher", "Teacher", (("weights sha256", ""),), error.message)
    note = "" if home is run else "Trained in a run of its own."
    return Stage("teacher", "Teacher", _trained_facts(home, role), note)


def _teacher_home(run: Run) -> tuple[Run, str]:
    """The run in which the run's teacher was trained, and in which role."""
    spec = run.recipe.teacher
    assert spec is not None
    if spec.run is None:
        return run, "teacher"
    other = open_run(Path(spec.run))
    return _teacher_home(other) if other.recipe.task == "distill" else (other, "student")


def _trained_facts(run: Run, role: str) -> Facts:
    info = run.info
    file = run.path / role / "best" / "model.safetensors"
    weights = info.get("weights", {}).get(role, {})
    versions = info.get("versions", {})
    machine = info.get("hardware", {})
    return (
        ("finished", str(info.get("finished", ""))),
        ("seed", str(info.get("seed", ""))),
        *(
            (f"{part} started from", _portable(str(source["source"])))
            for part, source in weights.items()
            if isinstance(source, Mapping) and source.get("source")
        ),
        ("trained with", ", ".join(f"{n} {versions[n]}" for n in _SHOWN if n in versions)),
        ("on", ", ".join(str(machine[k]) for k in ("processor", "system") if machine.get(k))),
        ("precision", str(info.get("precision", ""))),
        ("weights sha256", file_sha256(file) if file.is_file() else ""),
    )


_SHOWN = ("rekd-edge", "python", "torch", "transformers", "timm", "onnx", "onnxruntime")


def _file_stage(name: str, bundle: Bundle) -> Stage:
    manifest, config = bundle.manifest, bundle.config
    entry = next(file for file in manifest.files if file.path == MODEL_FILE)
    failed = [gate.name for gate in manifest.gates if not gate.passed]
    return Stage(
        "file",
        f"File: {name}",
        (
            ("made", manifest.created),
            ("target", f"{manifest.target}, {config.precision}, {config.runtime}"),
            ("size", f"{entry.size_bytes / 1e6:.1f} MB"),
            (
                "gates",
                f"{len(manifest.gates) - len(failed)} of {len(manifest.gates)} held"
                if manifest.gates
                else "",
            ),
            ("made with", ", ".join(f"{n} {v}" for n, v in manifest.versions.items())),
            ("model.onnx sha256", entry.sha256),
            ("made from the student with sha256", manifest.lineage.checkpoint_sha256 or ""),
            (
                "manifest.json sha256",
                file_sha256(bundle.folder / MANIFEST_FILE),
            ),
        ),
    )


def _trainings(subject: _Subject) -> Iterator[Training]:
    run = subject.run
    if run is None:
        return
    logs: list[tuple[str, Run, str]] = [("student", run, "student")]
    if run.recipe.task == "distill":
        with contextlib.suppress(RekdEdgeError):  # the lineage says why
            logs.insert(0, ("teacher", *_teacher_home(run)))
    for title, home, role in logs:
        log = home.path / role / "log.jsonl"
        if log.is_file():
            stated = (home.report("distill") or {}).get("warnings", [])
            warnings = tuple(w["message"] for w in stated if w["role"] == role)
            yield read_training(log, subject.title(title).capitalize(), warnings)


def read_training(log: Path, title: str, warnings: tuple[str, ...] = ()) -> Training:
    """A role's ``log.jsonl``; a last line that was cut off is passed over.

    Raises:
        IntegrityError: another line is no JSON object.
    """
    losses: dict[str, list[tuple[int, float]]] = {}
    dev: dict[str, list[tuple[int, float]]] = {}
    lines = log.read_text(encoding="utf-8").splitlines()
    for number, line in enumerate(lines, 1):
        try:
            entry = json.loads(line)
            phase, step = str(entry["phase"]), int(entry["step"])
        except (ValueError, KeyError, TypeError) as error:
            if number == len(lines):
                break
            raise IntegrityError(f"{log}, line {number}: not an entry of a log") from error
        name, _, kind = phase.partition("/")
        if not kind and _finite(entry.get("loss")):
            losses.setdefault(name, []).append((step, float(entry["loss"])))
        elif kind == "dev" and _finite(entry.get("accuracy")):
            dev.setdefault(name, []).append((step, float(entry["accuracy"])))
    return Training(
        title,
        tuple(
            TrainingPhase(name, tuple(s for s, _ in rows), tuple(v for _, v in rows))
            for name, rows in losses.items()
        ),
        tuple(
            (name, tuple(s for s, _ in rows), tuple(v for _, v in rows))
            for name, rows in dev.items()
        ),
        warnings,
    )


def _finite(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _checks(name: str, bundle: Bundle) -> Checks:
    check = bundle.reports().get("check", {})
    structural, numerical = check.get("structural_exclusion"), check.get("numerical_exclusion")
    exclusion = "That unselected input cannot reach the answer was not measured."
    if structural is not None and numerical is not None:
        exclusion = (
            f"Replacing {numerical['replaced_positions']:,} unselected pieces of "
            f"{numerical['examples']:,} examples changed {numerical['changed_examples']:,} "
            f"answers; {len(structural['leaks'])} paths lead from unselected input to the answer."
        )
    gates = tuple(
        GateLine(
            gate.name,
            gate.goal,
            gate.detail or ("" if gate.value is None else f"{gate.value:.6g}"),
            gate.passed,
        )
        for gate in bundle.manifest.gates
    )
    return Checks(name, gates, exclusion)


# --- latency ----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Measured:
    """A benchmark's JSON and which of its files are bundles of the page: candidate to name."""

    path: Path
    document: Mapping[str, Any]
    names: Mapping[str, str]


def _measured(subjects: Sequence[_Subject], benches: Sequence[Path]) -> Iterator[_Measured]:
    digests = {
        entry.sha256: name
        for subject in subjects
        for name, bundle in subject.bundles
        for entry in bundle.manifest.files
        if entry.path == MODEL_FILE
    }
    for path in benches:
        try:
            document = json.loads(path.read_text(encoding="utf-8"))
            found = {
                candidate: digests[report["sha256"]]
                for candidate, report in document["candidates"].items()
                if report["sha256"] in digests
            }
            document["machine"]["cpu"], document["result_validity"]
        except OSError as error:
            raise UsageError(f"--bench {path}: {error.strerror or error}") from error
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise UsageError(
                f"--bench {path} is no result of a benchmark",
                hint="write one with: rekd-edge bench BUNDLE --json FILE",
            ) from error
        if not found:
            raise UsageError(
                f"--bench {path} measured none of these bundles (no sha256 is the same)",
                hint="measure the bundle as it is now: rekd-edge bench BUNDLE --json FILE",
            )
        yield _Measured(path, document, found)


def _benches(subjects: Sequence[_Subject], benches: Sequence[Path]) -> Iterator[Bench]:
    for found in _measured(subjects, benches):
        document, machine = found.document, found.document["machine"]
        timings = []
        for name, report in document["candidates"].items():
            samples = np.asarray(report["samples_ns"], dtype=np.float64) / 1e6
            quantiles = np.percentile(samples, [0, 5, 25, 50, 75, 95, 99], method="higher")
            cold, ratio = report["cold_start"], report["ratio"]
            peaks = [] if cold is None else [p for p in cold["peak_rss_bytes"] if p is not None]
            timings.append(
                Timing(
                    name=found.names.get(name, name),
                    quantiles=tuple(float(value) for value in quantiles),
                    p90_ms=report[f"result_{PERCENTILES[1]}_percentile_latency_ns"] / 1e6,
                    ratio=None if ratio is None else (ratio["value"], ratio["low"], ratio["high"]),
                    first_answer_s=None
                    if cold is None
                    else float(np.median(cold["time_to_first_answer_ns"])) / 1e9,
                    peak_rss_mb=max(peaks) / 1e6 if peaks else None,
                    size_mb=report["size_bytes"] / 1e6,
                    queries=int(report["result_query_count"]),
                )
            )
        yield Bench(
            title=" and ".join(found.names.values()),
            setting=f"{machine['cpu']}, {document['threads']} thread(s), {document['runtime']} "
            f"{machine.get(document['runtime'], '')}, {document['scope']}; {document['inputs']}; "
            f"{document['date'][:10]}.",
            valid=document["result_validity"] == "VALID",
            why_invalid=document["result_invalid_reason"],
            reference=document["reference"],
            timings=tuple(timings),
            notes=tuple(document["notes"]),
        )


def _fronts(subjects: Sequence[_Subject], benches: Sequence[Path]) -> Iterator[Front]:
    """Files that were timed alike: on the same machine by ``--bench``, and in one interleaved run
    by ``rekd-edge export --precision auto``."""
    bundles = {name: bundle for subject in subjects for name, bundle in subject.bundles}
    alike: dict[tuple[Any, ...], dict[str, tuple[float, float, bool]]] = {}
    counts: Counter[tuple[Any, ...]] = Counter()
    for found in _measured(subjects, benches):
        document, machine = found.document, found.document["machine"]
        key = (machine["cpu"], document["threads"], document["batch"], document["runtime"])
        counts[key] += 1
        points = alike.setdefault(key, {})
        for candidate, report in document["candidates"].items():
            name, ours = found.names.get(candidate, candidate), candidate in found.names
            owner = bundles[next(iter(found.names.values()))]
            accuracy = owner.manifest.accuracy.get("student_onnx" if ours else candidate)
            if ours:
                accuracy = bundles[name].manifest.accuracy.get("student_onnx")
            if accuracy is None or name in points:
                continue
            points[name] = (
                accuracy,
                report["result_50_percentile_latency_ns"] / 1e6,
                ours,
            )
    for key, points in alike.items():
        if len(points) > 1:
            cpu, threads, batch, runtime = key
            separate = " Measured in separate runs." if counts[key] > 1 else ""
            yield _front(
                "Files of this page",
                f"{cpu}, {threads} thread(s), {batch} example(s) a query, {runtime}.{separate}",
                points,
            )
    for name, bundle in bundles.items():
        found = bundle.reports().get("precision")
        if found is None:
            continue
        variants = {
            v["target"]: (v["accuracy"], v["p50_ms"], v["target"] == found["chosen"])
            for v in found["variants"]
            if v["accuracy"] is not None and v["p50_ms"] is not None
        }
        if len(variants) > 1:
            yield _front(
                f"Precisions tried for {name}",
                f"One interleaved run when the bundle was made, {found['threads']} thread(s), "
                f"{found['validity']}; precisions that failed a gate were not timed.",
                variants,
            )


def _front(title: str, note: str, points: Mapping[str, tuple[float, float, bool]]) -> Front:
    ordered = sorted(points.items(), key=lambda item: item[1][1])
    best = on_front([(accuracy, -latency) for _, (accuracy, latency, _) in ordered])
    return Front(
        title,
        note,
        tuple(
            FrontPoint(name, accuracy, latency, first, ours)
            for (name, (accuracy, latency, ours)), first in zip(ordered, best, strict=True)
        ),
    )
