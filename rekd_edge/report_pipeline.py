"""From runs and bundles to a page for people: read what was recorded, run the models, show both.

Everything on the page comes from files of the runs and bundles, or from running the models on the
test split; nothing is filled in.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch

from rekd_edge import __version__
from rekd_edge.bundle import Bundle, open_bundle
from rekd_edge.bundle.manifest import MANIFEST_FILE, BundleConfig
from rekd_edge.calibrate.selective import Refusals
from rekd_edge.calibrate.spec import Calibration
from rekd_edge.convert import GraphError, weights_sha256, with_own_answers
from rekd_edge.data.loader import make_loader
from rekd_edge.data.preprocess import Preprocessor, TextPreprocessor, load_preprocessor
from rekd_edge.data.split import Split, stratified_limit
from rekd_edge.errors import BackendError, IntegrityError, UsageError
from rekd_edge.export_pipeline import find_run, student_sha256
from rekd_edge.fuse import FusedPair, FusedRationalist, fuse
from rekd_edge.models.build import same_tokens
from rekd_edge.models.interactive import CASES
from rekd_edge.models.units import region_of_patch
from rekd_edge.report.content import (
    Answer,
    Box,
    Confidence,
    Decision,
    Evidence,
    Example,
    ExampleGroup,
    ModelResult,
    Picture,
    Regions,
    ReportContent,
    Span,
)
from rekd_edge.report.examples import Choice, Compared, choose
from rekd_edge.report.kinds import Kind, kind_for
from rekd_edge.report.page import fit_page
from rekd_edge.report.statistics import Answers
from rekd_edge.report_sources import (
    Subject,
    benches_of,
    calibration_of,
    checks_of,
    class_wise_of,
    common_labels,
    common_problem,
    data_facts,
    described,
    fronts_of,
    kept_of,
    lineage_of,
    of_pair,
    pairs_of,
    trainings_of,
    without_folders,
)
from rekd_edge.run_folder import RUN_FILE, Run, open_run
from rekd_edge.runners import TorchRunner, file_runner
from rekd_edge.selection import slot_count
from rekd_edge.types import OWN_ANSWERS, Outputs, ProblemType

EXAMPLES = 40
MAX_SIZE_MB = 5.0
BATCH = 64
PICTURE_SIDE = 224
LOSSLESS_SIDE = 96
"""Pictures up to this side are PNG, larger ones JPEG."""
Progress = Callable[[str], None]
Arrays = Mapping[str, np.ndarray]
"""Inputs or outputs of a model, by name."""


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
            "problem_type": self.content.problem,
            "bytes": len(self.page.encode()),
            "examples": self.content.examples,
            "primary": self.content.primary,
            "models": [
                {
                    "name": result.name,
                    "source": result.source,
                    "accuracy": result.accuracy,
                    "examples": result.examples,
                    "scores": dict(result.scores),
                    "intervals": {name: list(ends) for name, ends in result.intervals.items()},
                    "per_class": dict(result.per_class),
                    "confusion": None if result.counts is None else result.counts.tolist(),
                    "labels": [asdict(label) for label in result.labels],
                    "values": [
                        {
                            "name": target.name,
                            "r2": target.r2,
                            "mean_absolute_error": target.mean_absolute_error,
                            "root_mean_squared_error": target.root_mean_squared_error,
                            "intervals": {
                                name: list(ends) for name, ends in target.intervals.items()
                            },
                        }
                        for target in result.values
                    ],
                    "agreement": None if result.agreement is None else asdict(result.agreement),
                }
                for result in self.content.results
            ],
            "calibrations": {
                name: None if found is None else asdict(found)
                for name, found in self.content.calibrations
            },
            "benches": [bench.title for bench in self.content.benches],
            "notes": list(self.content.notes),
        }


@dataclass(frozen=True, slots=True)
class _Model:
    """Something that answers on the test split. ``answer`` takes ``batch`` examples at a time."""

    name: str
    source: str
    preprocessor: Preprocessor
    grid: tuple[int, int] | None
    batch: int
    run: Callable[[Iterator[Arrays]], Iterator[Outputs]]
    reference: str | None
    deployed: bool
    calibration: Calibration | None = None
    regions: Regions | None = None
    own_answers: Callable[[Iterator[Arrays]], Iterator[Arrays]] | None = None
    """Of two students: :data:`~rekd_edge.types.OWN_ANSWERS`, which a file does not return."""

    @property
    def region_of_patch(self) -> np.ndarray | None:
        """The first patch of the region of each, int64 ``[patch]``; None where single tokens or
        patches are shown."""
        if self.grid is None or self.regions is None:
            return None
        return region_of_patch(self.grid, self.regions.size, torch.device("cpu")).numpy()

    def pieces(self, kept: np.ndarray) -> np.ndarray:
        """Of positions on the token axis one for each piece that is shown and counted."""
        region = self.region_of_patch
        return kept if region is None else np.unique(region[kept])


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
    ``limit`` runs the models on that many test examples, drawn by class (by combination of labels,
    over the range of values).

    Raises:
        UsageError: a path is neither run nor bundle, they are about other data, labels or problem
            types; a benchmark that measured none of the bundles.
        IntegrityError: a file is not what it should be.
    """
    subjects = _subjects(paths)
    problem = common_problem(subjects)
    kind = kind_for(problem)
    labels = common_labels(subjects)
    bundles = [pair for subject in subjects for pair in subject.bundles]
    calibrations = tuple((name, calibration_of(name, bundle)) for name, bundle in bundles)
    measured = tuple(benches_of(subjects, benches))  # refused before models are run
    notes: list[str] = []
    results: list[ModelResult] = []
    answers: dict[str, Answers] = {}
    compared: list[Compared] = []
    with_run = [subject.run for subject in subjects if subject.run is not None]
    test = _test_split(with_run[0], limit, kind, notes) if with_run else None
    models = list(_models(subjects, notes))
    regions = _regions_of(subjects[0], models)
    if test is not None:
        for model in list(models):
            progress(f"running {model.name}")
            try:
                answers[model.name] = _collect(model, test, problem)
            except BackendError as error:
                notes.append(f"{model.name} was not run: {without_folders(error.message)}")
                models.remove(model)
        compared = list(_compared(models, answers))
        counted = f"run on {len(test):,} test examples"
        results = [_result(m, kind, answers, compared, labels, counted) for m in models]
    results += _recorded(subjects, kind, {result.name for result in results})
    primary = _primary(subjects, results)
    groups: tuple[ExampleGroup, ...] = ()
    if test is not None and examples and primary in answers:
        assert primary is not None
        progress("choosing examples")
        chosen = choose(answers, primary=primary, compared=compared, count=examples)
        groups = _groups(chosen, kind, models, answers, test, labels, primary)
    modality, ratio, unit = kept_of(subjects[0])
    title, description = described(subjects[0])
    content = ReportContent(
        title=title,
        description=description,
        modality=modality,
        label_names=labels,
        rationale_ratio=ratio,
        created=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        version=__version__,
        primary=primary,
        lineages=tuple(lineage_of(subject) for subject in subjects),
        data=data_facts(subjects),
        trainings=tuple(t for subject in subjects for t in trainings_of(subject)),
        results=tuple(results),
        confidences=tuple(_confidences(kind, models, answers, primary)),
        calibrations=calibrations,
        benches=measured,
        fronts=tuple(fronts_of(subjects, benches)),
        checks=tuple(checks_of(name, bundle) for name, bundle in bundles),
        groups=groups,
        notes=tuple(notes),
        pairs=tuple(pair for subject in subjects for pair in pairs_of(subject)),
        problem=problem,
        unit=unit,
        regions=regions,
        two_students=subjects[0].is_pair,
        class_wise=tuple(found for subject in subjects for found in class_wise_of(subject)),
    )
    progress("writing the page")
    page, shown = fit_page(content, max_bytes=int(max_size_mb * 1e6))
    return Report(page, shown)


# --- what was given ---------------------------------------------------------------------------


def _subjects(paths: Sequence[Path]) -> list[Subject]:
    runs: dict[Path, Run] = {}
    bundles: list[tuple[Path, Bundle]] = []
    for path in paths:
        if (path / MANIFEST_FILE).is_file():
            if path.resolve() in {known.resolve() for known, _ in bundles}:
                raise UsageError(f"{path} is given twice")
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
    subjects = {key: Subject(names[key], run) for key, run in runs.items()}
    orphans: list[Subject] = []
    titles = _short_names([path.resolve() for path, _ in bundles])
    for (path, bundle), home in zip(bundles, belongs, strict=True):
        named = f"{titles[path.resolve()]} ({bundle.config.precision})"
        if home is None:
            alone = not runs and len(bundles) == 1
            name = "" if alone else titles[path.resolve()]
            orphans.append(Subject(name, None, [(named, bundle)]))
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


# --- running the models -----------------------------------------------------------------------


def _test_split(run: Run, limit: int | None, kind: Kind, notes: list[str]) -> Split:
    test = run.data().test
    if limit is not None and limit < len(test):
        notes.append(
            f"the models were run on {limit:,} of {len(test):,} test examples, {kind.drawn}"
        )
        return test.take(stratified_limit(test.labels, limit, seed=0))
    return test


def _models(subjects: Sequence[Subject], notes: list[str]) -> Iterator[_Model]:
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
        student = subject.title(subject.student)
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
        if model.answers_from_whole_input:
            notes.append(f"{name} was not run: it is a plain classifier without rationales to show")
            return None
        fused = fuse(
            model,
            label_names=run.label_names,
            max_length=run.max_length,
            pixel_scale=run.teacher_preprocessor.pixel_scale,
        )
    except (UsageError, IntegrityError, BackendError) as error:
        notes.append(f"{name} was not run: {without_folders(error.message)}")
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

    def run(batches: Iterator[Arrays]) -> Iterator[Outputs]:
        with TorchRunner(model, names) as runner:
            yield from map(runner.run, batches)

    def own_answers(batches: Iterator[Arrays]) -> Iterator[Arrays]:
        with TorchRunner(model, names) as runner:
            for batch in batches:
                yield runner.run_named(batch, OWN_ANSWERS)

    return _Model(
        name,
        source,
        preprocessor,
        model.grid,
        BATCH,
        run,
        other,
        False,
        regions=_regions(model.grid, model.region_size, model.rationale_ratio_fraction),
        own_answers=own_answers if isinstance(model, FusedPair) else None,
    )


def _file_model(name: str, bundle: Bundle, student: str) -> _Model:
    config = bundle.config

    def run(batches: Iterator[Arrays]) -> Iterator[Outputs]:
        runner = file_runner(
            bundle.model_path, runtime=config.runtime, settings=config.runtime_settings
        )
        with runner:
            yield from map(runner.run, batches)

    def own_answers(batches: Iterator[Arrays]) -> Iterator[Arrays]:
        graph = with_own_answers(onnx.load(str(bundle.model_path))).SerializeToString()
        with file_runner(graph, runtime=config.runtime, settings=config.runtime_settings) as runner:
            for batch in batches:
                yield runner.run_named(batch, OWN_ANSWERS)

    preprocessor = load_preprocessor(bundle.folder)
    # One example at a time, as on a device: int8 takes its ranges from the whole batch.
    source = f"{config.runtime}, one at a time"
    return _Model(
        name,
        source,
        preprocessor,
        _grid_of(config),
        1,
        run,
        student,
        True,
        calibration=config.calibration,
        regions=_regions_of_config(config),
        own_answers=own_answers if of_pair(config) else None,
    )


def _grid_of(config: BundleConfig) -> tuple[int, int] | None:
    if config.image_size is None or config.patch_size is None:
        return None
    side = config.image_size // config.patch_size
    return side, side


def _regions(
    grid: tuple[int, int] | None, size: int | None, fraction: tuple[int, int]
) -> Regions | None:
    """None where single tokens or patches are kept; ``fraction`` is the budget's."""
    if grid is None or size is None:
        return None
    patches, area = grid[0] * grid[1], size * size
    return Regions(size, slot_count(patches, *fraction) // area, patches // area)


def _regions_of_config(config: BundleConfig) -> Regions | None:
    return _regions(_grid_of(config), config.region_size, config.rationale_ratio_fraction)


def _regions_of(subject: Subject, models: Sequence[_Model]) -> Regions | None:
    """Of the trained model, or of the first bundle where its run is not there."""
    if subject.run is None:
        return _regions_of_config(subject.bundles[0][1].config)
    student = subject.title(subject.student)
    return next((model.regions for model in models if model.name == student), None)


def _collect(model: _Model, test: Split, problem: ProblemType) -> Answers:
    """The model's answers, in the order of the split.

    Raises:
        BackendError: one of them is not finite, keeps a part of a region, or is decided in a way
            that there is not.
    """
    places: list[np.ndarray] = []
    logits, margins, candidates, cases = [], [], [], []
    kept: list[np.ndarray] = []
    read: list[np.ndarray] = []
    lowest = np.finfo(np.float32).min
    region = model.region_of_patch
    for out in model.run(_batches(model, test, places)):
        if region is not None and (out.rationale_mask != out.rationale_mask[:, region]).any():
            raise BackendError("it keeps parts of regions, which are to be kept whole")
        logits.append(out.logits)
        margins.append(out.selection_margin)
        kept += [np.flatnonzero(row) for row in out.rationale_mask]
        candidates.append((out.selection_score > lowest).sum(axis=1))
        if out.case is not None and out.answer_mask is not None:
            known = (out.case >= 0) & (out.case < len(CASES))
            if not known.all() or (out.answer_mask & ~out.rationale_mask).any():
                raise BackendError("it answers with a case or a rationale that two students lack")
            cases.append(out.case)
            read += [np.flatnonzero(row) for row in out.answer_mask]
    order = np.argsort(np.concatenate(places))  # texts come by their length
    answered = np.concatenate(logits)[order]
    if not np.isfinite(answered).all():
        raise BackendError("it answers with numbers that are not finite")
    return Answers(
        answered,
        test.labels,
        np.concatenate(margins)[order],
        tuple(kept[int(place)] for place in order),
        np.concatenate(candidates)[order],
        model.calibration,
        problem,
        np.concatenate(cases)[order] if cases else None,
        tuple(read[int(place)] for place in order) if cases else None,
    )


def _batches(model: _Model, split: Split, places: list[np.ndarray]) -> Iterator[Arrays]:
    """The split as the model reads it; ``places`` gets the positions of each batch in it."""
    for batch in make_loader(split, model.preprocessor, batch_size=model.batch, shuffle=False):
        places.append(batch.index.numpy())
        yield {name: value.numpy() for name, value in batch.inputs.items()}


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
    kind: Kind,
    answers: Mapping[str, Answers],
    compared: Sequence[Compared],
    labels: tuple[str, ...],
    counted: str,
) -> ModelResult:
    mine = answers[model.name]
    result = kind.result(model.name, f"{counted} ({model.source})", mine, labels)
    pair = next((one for one in compared if one.model == model.name), None)
    if pair is None:
        return result
    other, same = answers[pair.other], pair.same_tokens
    return replace(
        result, agreement=kind.agreement(mine, other, pair.other, labels, same_tokens=same)
    )


def _recorded(subjects: Sequence[Subject], kind: Kind, known: set[str]) -> Iterator[ModelResult]:
    """What check reports recorded about models that were not run here."""
    for subject in subjects:
        for name, bundle in subject.bundles:
            check = bundle.reports().get("check", {})
            recorded: Mapping[str, Any] = check.get("accuracy", {})
            wanted = {"onnx": name}
            for role in ("torch", "teacher", "plain"):
                wanted[role] = subject.title({"torch": subject.student}.get(role, role))
            for role, title in wanted.items():
                if role not in recorded or title in known:
                    continue
                known.add(title)
                count = int((check.get("comparison") or {}).get("examples", 0))
                yield kind.recorded(title, f"check report of {name}", recorded[role], count)


def _primary(subjects: Sequence[Subject], results: Sequence[ModelResult]) -> str | None:
    """The first bundle, or the first student: what the summary is about."""
    names = {result.name for result in results}
    wanted = [name for s in subjects for name, _ in s.bundles]
    wanted += [s.title(s.student) for s in subjects]
    return next((name for name in wanted if name in names), None)


def _deployed(models: Sequence[_Model], primary: str | None) -> list[str]:
    """Files, or the primary model where there is none; four at most, so that lines stay apart."""
    files = [model.name for model in models if model.deployed]
    return (files or [name for name in [primary] if name in {m.name for m in models}])[:4]


def _confidences(
    kind: Kind, models: Sequence[_Model], answers: Mapping[str, Answers], primary: str | None
) -> Iterator[Confidence]:
    for name in _deployed(models, primary):
        found = kind.confidence(answers[name], name)
        if found is not None:
            yield found


# --- examples ---------------------------------------------------------------------------------


def _groups(
    chosen: Sequence[Choice],
    kind: Kind,
    models: Sequence[_Model],
    answers: Mapping[str, Answers],
    test: Split,
    labels: tuple[str, ...],
    primary: str,
) -> tuple[ExampleGroup, ...]:
    refusals = {name: found.refusals for name, found in answers.items()}
    indices = np.asarray([index for one in chosen for index in one.indices])
    by_student = {m.name: _by_student(m, answers[m.name], test, indices) for m in models}
    known = {model.name for model in models}

    def example(index: int) -> Example:
        raw = test.raw(index)
        text = raw if isinstance(raw, str) else None
        reference = {m.name: m.reference for m in models}
        shown = []
        for model in models:
            mine = answers[model.name]
            said = kind.said(mine, index, labels)
            other = reference[model.name]
            tokens = int(mine.candidates[index])
            shown.append(
                Answer(
                    model=model.name,
                    label=said.label,
                    probability=said.probability,
                    right=said.right,
                    margin=float(mine.margin[index]),
                    kept=len(model.pieces(mine.kept[index])),
                    candidates=model.regions.total if model.regions else tokens,
                    evidence=_evidence(model, raw, mine.kept[index]),
                    reference=other if other in known else None,
                    withheld=_withheld(refusals[model.name], index),
                    labels=said.labels,
                    values=said.values,
                    regions=model.regions is not None,
                    decision=_decision(model, mine, raw, index, by_student[model.name].get(index)),
                )
            )
        return Example(
            index=index,
            label=kind.truth(answers[primary], index, labels),
            reasons=_reasons(kind, answers, primary, index),
            text=text,
            picture=None if isinstance(raw, str) else _picture(raw),
            answers=tuple(shown),
        )

    return tuple(
        ExampleGroup(one.key, one.title, one.explanation, tuple(example(i) for i in one.indices))
        for one in chosen
    )


def _by_student(model: _Model, found: Answers, test: Split, indices: np.ndarray) -> dict[int, bool]:
    """Whether the first of two students answers, by example of ``indices``.

    Where confidence decides a file does not say so: both are asked for their own answers, one of
    which is the pair's. A file that cannot be asked leaves such examples out.
    """
    if found.case is None or model.own_answers is None:
        return {}
    confidence, partner = CASES.index("confidence"), CASES.index("partner_convinces")
    known = {int(i): bool(found.case[i] != partner) for i in indices if found.case[i] != confidence}
    undecided = indices[found.case[indices] == confidence]
    if not len(undecided):
        return known
    places: list[np.ndarray] = []
    try:
        asked = list(model.own_answers(_batches(model, test.take(undecided), places)))
    except (GraphError, BackendError):
        return known
    rows = undecided[np.concatenate(places)]
    own, partners = (
        np.abs(np.concatenate([one[name] for one in asked]) - found.logits[rows]).max(axis=1)
        for name in OWN_ANSWERS
    )
    return known | {int(i): bool(a <= b) for i, a, b in zip(rows, own, partners, strict=True)}


def _decision(
    model: _Model, found: Answers, raw: str | np.ndarray, index: int, by_student: bool | None
) -> Decision | None:
    if found.case is None or found.read is None:
        return None
    other = np.setdiff1d(found.kept[index], found.read[index])
    return Decision(CASES[int(found.case[index])], by_student, _evidence(model, raw, other))


def _withheld(refusals: Refusals | None, index: int) -> tuple[str, ...]:
    if refusals is None:
        return ()
    reasons = {"confidence": refusals.confidence, "margin": refusals.margin}
    return tuple(name for name, found in reasons.items() if found[index])


def _reasons(
    kind: Kind, answers: Mapping[str, Answers], primary: str, index: int
) -> tuple[str, ...]:
    reasons = [kind.fault(answers, primary, index)]
    margin = float(answers[primary].margin[index])
    if math.isfinite(margin):
        share = float((answers[primary].margin <= margin).mean())
        if share <= 0.05:
            reasons.append(f"margin {margin:.2g}, among the smallest {share:.1%}")
    reasons.append(kind.dispute(answers, index))
    return tuple(reason for reason in reasons if reason)


def _evidence(model: _Model, raw: str | np.ndarray, kept: np.ndarray) -> Evidence:
    """The places of what is kept: characters, or boxes of patches or whole regions."""
    if isinstance(raw, str):
        assert isinstance(model.preprocessor, TextPreprocessor)
        offsets = model.preprocessor.offsets(raw)
        return tuple(Span(*offsets[int(position)]) for position in kept)
    assert model.grid is not None
    rows, columns = model.grid
    side = 1 if model.regions is None else model.regions.size
    return tuple(
        Box(int(p) % columns / columns, int(p) // columns / rows, side / columns, side / rows)
        for p in model.pieces(kept)
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
