"""What runs, bundles and benchmarks recorded, as the parts of a page. Runs no model."""

from __future__ import annotations

import contextlib
import json
import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np

from rekd_edge.bundle import Bundle
from rekd_edge.bundle.manifest import MANIFEST_FILE, MODEL_FILE, BundleConfig
from rekd_edge.calibrate.spec import Calibration
from rekd_edge.check.gates import METRICS
from rekd_edge.convert import file_sha256
from rekd_edge.errors import IntegrityError, RekdEdgeError, UsageError
from rekd_edge.evaluate.pair import PUBLISHED
from rekd_edge.pareto import on_front
from rekd_edge.problem import PRIMARY, PROBLEM_TITLES, SCORE_TITLES
from rekd_edge.recipe.schema import Recipe
from rekd_edge.report.content import (
    Bench,
    Checks,
    ClassReach,
    ClassWise,
    Facts,
    Front,
    FrontPoint,
    GateLine,
    Lineage,
    Pair,
    PairCase,
    Stage,
    StoredCalibration,
    Timing,
    Training,
    TrainingPhase,
)
from rekd_edge.run_folder import RECIPE_FILE, SIMULABILITY, Run, open_run
from rekd_edge.types import PAIR_OUTPUTS, Modality, ProblemType, RationaleUnit


@dataclass(slots=True)
class Subject:
    """A run, or what is left of one in a bundle, with the bundles made from its student."""

    name: str
    run: Run | None
    bundles: list[tuple[str, Bundle]] = field(default_factory=list)

    def title(self, role: str) -> str:
        return f"{role} of {self.name}" if self.name else role

    @property
    def problems(self) -> tuple[ProblemType, ...]:
        """Of the run and of every bundle."""
        of_run = () if self.run is None else (self.run.recipe.problem_type,)
        return (*of_run, *(bundle.config.problem_type for _, bundle in self.bundles))

    @property
    def is_pair(self) -> bool:
        """Whether two students answer together."""
        if self.run is not None:
            return self.run.recipe.ensemble is not None
        return of_pair(self.bundles[0][1].config)

    @property
    def student(self) -> str:
        """What the trained model is called that a file is made from."""
        return "pair" if self.is_pair else "student"


def of_pair(config: BundleConfig) -> bool:
    """Whether two students answer together in that bundle."""
    return set(PAIR_OUTPUTS) <= {output.name for output in config.outputs}


def common_problem(subjects: Sequence[Subject]) -> ProblemType:
    """The problem type that all share.

    Raises:
        UsageError: they are of several.
    """
    found: list[ProblemType] = []
    for subject in subjects:
        for problem in subject.problems:
            if problem not in found:
                found.append(problem)
    if len(found) > 1:
        raise UsageError(
            f"a page is about one problem type, and these are a "
            f"{' and a '.join(PROBLEM_TITLES[one] for one in found)}",
            hint="make a page for each",
        )
    return found[0]


def common_labels(subjects: Sequence[Subject]) -> tuple[str, ...]:
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


def _label_names(subject: Subject) -> tuple[str, ...]:
    return subject.run.label_names if subject.run else subject.bundles[0][1].config.label_names


def _data_of(subject: Subject) -> Mapping[str, str]:
    if subject.run is not None:
        return {key: str(value) for key, value in subject.run.info.get("data", {}).items()}
    return subject.bundles[0][1].manifest.lineage.data


def kept_of(subject: Subject) -> tuple[Modality, float, RationaleUnit]:
    """What rationales are made of: modality, ratio, and what is kept whole."""
    if subject.run is not None:
        recipe = subject.run.recipe
        return recipe.modality, recipe.rationale_ratio, recipe.rationale_unit
    config = subject.bundles[0][1].config
    return config.modality, config.rationale_ratio, config.rationale_unit


def _kept(recipe: Recipe) -> str:
    share = f"{recipe.rationale_ratio:.0%} of the tokens or patches"
    unit, size = recipe.rationale_unit, recipe.region_size
    blocks = f" of {size} x {size} patches" if unit == "region" else ""
    return share if unit == "token" else f"whole {unit}s{blocks}, at most {share}"


def described(subject: Subject) -> tuple[str, str]:
    if subject.run is not None:
        return subject.run.recipe.name, subject.run.recipe.description
    manifest = subject.bundles[0][1].manifest
    return manifest.name, manifest.lineage.description


# --- what was recorded ------------------------------------------------------------------------


def data_facts(subjects: Sequence[Subject]) -> Facts:
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


def without_folders(message: str) -> str:
    """A message with the last part of each absolute path in it."""
    return re.sub(r"(?<![\w.])/(?=\S)(?:[^\n:/]+/)+", "", message)


def _portable(value: str) -> str:
    """An absolute path says nothing on another machine, and something about this one."""
    return Path(value).name if value.startswith("/") else value


def lineage_of(subject: Subject) -> Lineage:
    return Lineage(
        title=subject.name or described(subject)[0],
        stages=tuple(_stages(subject)),
        files=tuple(_file_stage(name, bundle) for name, bundle in subject.bundles),
    )


def _stages(subject: Subject) -> Iterator[Stage]:
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
            ("rationale", _kept(recipe)),
            ("objective", recipe.objective.name),
            ("sha256 of the resolved recipe", file_sha256(run.path / RECIPE_FILE)),
        ),
    )
    if recipe.task == "distill":
        yield _teacher_stage(run)
    learned = (*_trained_facts(run, "student"), *_simulability(run))
    yield Stage("student", "Student", learned)
    found = run.report("fuse")
    fused: Facts = (("largest difference of logits", "not measured"),)
    if found is not None:
        modes = found["modes"]
        fused = (
            ("equal to the trained model", "yes" if found["passed"] else "NO"),
            ("largest difference of logits", f"{found['fused_difference']:.2g}"),
            ("folds", ", ".join(fold["name"] for fold in found["folds"]) or "none"),
            *(
                (f"{_score(run)}, {name.replace('_', ' ')}", f"{mode['accuracy']:.3f}")
                for name, mode in modes.items()
            ),
        )
    note = "" if found else "The run has no fuse report (reports/fuse.json)."
    yield Stage("fused", "Fused: deterministic, reads the rationale alone", fused, note)


def _score(run: Run) -> str:
    return SCORE_TITLES[PRIMARY[run.recipe.problem_type]]


def _simulability(run: Run) -> Facts:
    found = run.simulability()
    if found is None:
        return ()
    shares = (
        (found.with_rationales, "trained with the teacher's rationales"),
        (found.without_rationales, "trained on the teacher's answers alone"),
    )
    of_values = SIMULABILITY[run.recipe.problem_type] == "value_r2"
    said = [
        f"{f'{share:.3f}' if of_values else f'{share:.1%}'} {how}"
        for share, how in shares
        if share is not None
    ]
    what = (
        "R² of test values against the teacher's" if of_values else "test answers as the teacher's"
    )
    return ((f"simulability ({what})", "; ".join(said)),)


def _teacher_stage(run: Run) -> Stage:
    try:
        home, role = _teacher_home(run)
    except RekdEdgeError as error:
        return Stage(
            "teacher", "Teacher", (("weights sha256", ""),), without_folders(error.message)
        )
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


def _date(moment: str) -> str:
    """ISO 8601 in UTC as people write it."""
    return moment.replace("T", " ")[:16] + " UTC" if moment.endswith("+00:00") else moment


def _trained_facts(run: Run, role: str) -> Facts:
    info = run.info
    file = run.path / role / "best" / "model.safetensors"
    weights = info.get("weights", {}).get(role, {})
    versions = info.get("versions", {})
    machine = info.get("hardware", {})
    return (
        ("finished", _date(str(info.get("finished", "")))),
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
            ("made", _date(manifest.created)),
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


def pairs_of(subject: Subject) -> Iterator[Pair]:
    """What the run's two students did together, where it has two."""
    run = subject.run
    found = None if run is None else (run.report("distill") or {}).get("pair")
    if found is not None:
        stated = found["test"]
        cases = tuple(PairCase(**case) for case in stated["cases"].values())
        numbers = ("examples", "accuracy", "student", "partner", "averaged", "rationale_jaccard")
        known = {name: stated[name] for name in numbers}
        yield Pair(title=subject.title("pair"), cases=cases, published=PUBLISHED, **known)


def class_wise_of(subject: Subject) -> Iterator[ClassWise]:
    """What the run's class-wise rationales are worth, where it trained any; without the run, what
    the first bundle holds of that."""
    if subject.run is not None:
        report = subject.run.report("distill") or {}
    else:
        report = subject.bundles[0][1].reports().get("distill") or {}
    found = report.get("class_wise")
    if found is not None:
        stated = found["test"]
        names = [field.name for field in fields(ClassReach)]
        classes = tuple(ClassReach(**{n: one[n] for n in names}) for one in stated["classes"])
        count = stated["classes"][0]["examples"]
        yield ClassWise(subject.title("student"), count, classes, stated["above_chance"])


def trainings_of(subject: Subject) -> Iterator[Training]:
    run = subject.run
    if run is None:
        return
    logs: list[tuple[str, Run, str]] = [("student", run, "student"), ("partner", run, "partner")]
    if run.recipe.task == "distill":
        with contextlib.suppress(RekdEdgeError):  # the lineage says why
            logs.insert(0, ("teacher", *_teacher_home(run)))
    for title, home, role in logs:
        log = home.path / role / "log.jsonl"
        if log.is_file():
            stated = (home.report("distill") or {}).get("warnings", [])
            warnings = tuple(w["message"] for w in stated if w["role"] == role)
            score = PRIMARY[run.recipe.problem_type]
            yield read_training(log, subject.title(title).capitalize(), warnings, score)


def read_training(
    log: Path, title: str, warnings: tuple[str, ...] = (), score: str = "accuracy"
) -> Training:
    """A role's ``log.jsonl``, with its primary score; a last line that was cut off is passed over.

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
        elif kind == "dev" and _finite(entry.get(score)):
            dev.setdefault(name, []).append((step, float(entry[score])))
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


def checks_of(name: str, bundle: Bundle) -> Checks:
    check = bundle.reports().get("check", {})
    structural, numerical = check.get("structural_exclusion"), check.get("numerical_exclusion")
    replaced = "tokens" if bundle.config.modality == "text" else "patches"
    exclusion = "That unselected input cannot reach the answer was not measured."
    if structural is not None and numerical is not None:
        exclusion = (
            f"Replacing {numerical['replaced_positions']:,} unselected {replaced} of "
            f"{numerical['examples']:,} examples changed {numerical['changed_examples']:,} "
            f"answers; {len(structural['leaks'])} paths lead from unselected input to the answer."
        )
    gates = tuple(map(_gate_line, check.get("gates", [])))
    return Checks(name, gates, exclusion)


def _gate_line(gate: Mapping[str, Any]) -> GateLine:
    """A line of a check report's gates, as :class:`~rekd_edge.check.gates.GateResult` writes it."""
    metric = METRICS.get(gate["metric"])
    sign = "≥" if metric is None or metric.higher_is_better else "≤"
    against = f" ({gate['reference']} {gate['value']:g})" if gate["reference"] else ""
    return GateLine(
        name=gate["metric"],
        meaning="" if metric is None else metric.description,
        found="" if gate["measured"] is None else f"{gate['measured']:.4g}",
        needed="" if gate["bound"] is None else f"{sign} {gate['bound']:.4g}{against}",
        outcome=gate["outcome"],
    )


def calibration_of(name: str, bundle: Bundle) -> StoredCalibration | None:
    """What the bundle's calibration report says; None where it has none, as in bundles of schema 1
    and where the development split was too small.

    Raises:
        IntegrityError: it is no calibration report, or of another calibration than the runtime's.
    """
    found = bundle.reports().get("calibration")
    if found is None:
        return None
    try:
        calibration, test = Calibration.model_validate(found["calibration"]), found["test"]
        asked = {} if calibration.asked is None else calibration.asked.model_dump(exclude_none=True)
        stored = StoredCalibration(
            temperature=calibration.temperature,
            fitted_on=calibration.examples,
            confidence_threshold=calibration.confidence_threshold,
            margin_threshold=calibration.margin_threshold,
            asked=asked,
            promised={
                key: float(found["promises"][key]["bound"])
                for key in ("risk", "rationale_risk")
                if key in found["promises"]
            },
            examples=int(test["examples"]),
            ece_before=float(test["uncalibrated"]["ece"]),
            ece_after=float(test["calibrated"]["ece"]),
            coverage=float(test["coverage"]),
            risk=None if test["risk"] is None else float(test["risk"]),
            rationale_risk=(
                None if test["rationale_risk"] is None else float(test["rationale_risk"])
            ),
            refused={key: int(test["refused"][key]) for key in ("confidence", "margin")},
        )
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise IntegrityError(
            f"{name}: reports/calibration.json is no calibration report"
        ) from error
    if calibration != bundle.config.calibration:
        raise IntegrityError(
            f"{name}: reports/calibration.json is not about the calibration in config.json",
            hint="export the bundle again",
        )
    return stored


# --- latency ----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Measured:
    """A benchmark's JSON and which of its files are bundles of the page: candidate to name."""

    path: Path
    document: Mapping[str, Any]
    names: Mapping[str, str]


def _measured(subjects: Sequence[Subject], benches: Sequence[Path]) -> Iterator[_Measured]:
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
            if not document["machine"]["cpu"] or not document["result_validity"]:
                raise ValueError("no machine, or no validity")
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


def benches_of(subjects: Sequence[Subject], benches: Sequence[Path]) -> Iterator[Bench]:
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
                    p90_ms=report["result_90_percentile_latency_ns"] / 1e6,
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


def fronts_of(subjects: Sequence[Subject], benches: Sequence[Path]) -> Iterator[Front]:
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
