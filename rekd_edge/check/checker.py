"""The check: one ONNX file against the torch model it was made from, on real data.

Order: inputs and outputs, structure, sizes and lengths, the whole test split, exclusion by
numbers, accuracy, gates. Whatever stops a part from being measured is recorded and fails the
gates that wanted the number; nothing is passed over.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from google.protobuf.message import DecodeError
from torch import nn

from rekd_edge.check.compare import Comparison, ExampleDifferences, differences, summarise
from rekd_edge.check.exclusion import (
    NumericalExclusion,
    StructuralExclusion,
    numerical_exclusion,
    structural_exclusion,
)
from rekd_edge.check.gates import GateResult, GateSet, evaluate_gates
from rekd_edge.check.inputs import (
    BATCH_SIZES,
    Inputs,
    LabelledBatch,
    NamedBatch,
    TextEdges,
    examples_of,
    in_parts,
    parity_batches,
)
from rekd_edge.check.report import Accuracy, CheckReport, ParityCase
from rekd_edge.convert import IoSpecError, file_sha256, validate_io
from rekd_edge.convert.graph import GraphError
from rekd_edge.errors import BackendError, DataError, IntegrityError
from rekd_edge.models.interactive import CaseCount, count_cases
from rekd_edge.problem import Reading, label_scores, penalised, scores, uninformed
from rekd_edge.runners import (
    FileRunner,
    RunError,
    RuntimeSettings,
    TorchRunner,
    file_runner,
    resolve_threads,
)
from rekd_edge.types import IoSpec, ProblemType, RuntimeName

_SINGLE: ProblemType = "single_label_classification"

LogitFunction = Callable[[Inputs], np.ndarray]
"""Model inputs to logits, float ``[batch, class]``."""

PARITY_EXAMPLES = 64
"""Test examples from which the batches of several sizes are drawn."""
LATENCY_METRICS = frozenset({"latency_ms_p50", "latency_ms_p90"})
"""Measured only where a gate asks for them."""


ANSWER_METRICS = frozenset(
    {
        "failed_shapes",
        "max_logit_error",
        "max_scaled_logit_error",
        "max_score_error",
        "max_scaled_score_error",
        "max_margin_error",
        "max_scaled_margin_error",
        "label_agreement",
        "mean_value_error",
        "rationale_exact",
        "rationale_jaccard",
        "answer_agreement",
        "unexplained_flips",
        "score",
        "accuracy",
        "worst_class_accuracy",
        "f1_micro",
        "f1_macro",
        "r2",
        "mean_absolute_error",
        "root_mean_squared_error",
    }
)
"""Those that :func:`check_answers` measures."""


def check_artefact(
    path: Path,
    *,
    model: nn.Module,
    io_spec: IoSpec,
    label_names: Sequence[str],
    batches: Iterable[LabelledBatch],
    gates: GateSet,
    edges: TextEdges | None = None,
    baselines: Mapping[str, Accuracy] | None = None,
    batch_sizes: Sequence[int] = BATCH_SIZES,
    provider: str = "CPUExecutionProvider",
    threads: int | None = None,
    runtime: RuntimeName = "onnxruntime",
    runtime_settings: RuntimeSettings | None = None,
    seed: int = 0,
) -> CheckReport:
    """Checks ``path`` against ``model`` (fused, in eval mode) on all of ``batches``. What its
    logits mean is the ``problem_type`` of ``model``.

    ``batches`` is the whole test split. ``edges`` gives what the edge lengths of a text model
    are built from and is None for images. ``baselines`` is what other models (``teacher``,
    ``plain``) reach on the same batches (:func:`baseline_accuracy`).

    A gate that does not hold makes the report's ``passed`` False and raises nothing. Raises
    :class:`UsageError` where one asks for what the problem type has not, :class:`IntegrityError` if
    the file is no ONNX model, :class:`BackendError` if the runtime or its provider is not
    available, :class:`DataError` for an empty split.
    """
    problem = problem_of(model)
    asked = gates.applicable(problem)
    threads = resolve_threads(
        threads, None if runtime_settings is None else runtime_settings.threads
    )
    engine = _Engine(runtime, provider, threads, runtime_settings)
    held = list(batches)
    if sum(len(batch.labels) for batch in held) == 0:
        raise DataError("the test split is empty: there is nothing to check the file on")
    try:
        proto = onnx.load(str(path))
    except FileNotFoundError as error:
        raise IntegrityError(f"{path} does not exist") from error
    except DecodeError as error:
        raise IntegrityError(f"{path} is not an ONNX file, or is cut short") from error
    found = _Found(reading_of(problem, held))
    found.metrics["size_bytes"] = float(path.stat().st_size)
    _check_io(proto, io_spec, found)
    _check_structure(proto, found)
    examples = examples_of(held, PARITY_EXAMPLES)
    named = list(parity_batches(examples, edges=edges, batch_sizes=batch_sizes, seed=seed))
    input_names = tuple(tensor.name for tensor in io_spec.inputs)
    try:
        with (
            engine.open(path) as runner,
            TorchRunner(model, input_names, threads=threads) as reference,
        ):
            found.placement = runner.placement
            _check_sizes(runner, reference, named, gates, found)
            _check_split(runner, reference, held, label_names, gates, found)
    except RunError as error:
        found.problems.append(error.message)
    _check_numbers(proto, named, found, engine, seed=seed)
    found.accuracy.update(baselines or {})
    references = _references(held, label_names, found)
    if any(gate.metric in LATENCY_METRICS for gate in gates.gates):
        _measure_latency(path, examples, found, engine)
    return CheckReport(
        file_sha256=file_sha256(path),
        size_bytes=path.stat().st_size,
        provider=provider,
        threads=threads,
        gate_set=gates.name,
        runtime=runtime,
        runtime_settings={} if runtime_settings is None else runtime_settings.differences(),
        placement=found.placement,
        gates=evaluate_gates(asked, found.metrics, references),
        problem_type=problem,
        not_applicable=gates.not_applicable(problem),
        metrics=dict(sorted(found.metrics.items())),
        cases=tuple(found.cases),
        comparison=found.comparison,
        pair_cases=found.pair_cases,
        structural=found.structural,
        numerical=found.numerical,
        accuracy=found.accuracy,
        problems=tuple(found.problems),
    )


def problem_of(model: nn.Module) -> ProblemType:
    """What the model says of itself (:class:`~rekd_edge.fuse.fused.DeployModel`)."""
    found: ProblemType = getattr(model, "problem_type", _SINGLE)
    return found


def reading_of(problem: ProblemType, batches: Sequence[LabelledBatch]) -> Reading:
    """``batches`` are the whole split."""
    return Reading.of(problem, np.concatenate([batch.labels for batch in batches]))


@dataclass(frozen=True, slots=True)
class AnswerReport:
    """What answers alone can show; the gates of structure and exclusion are the file's."""

    metrics: Mapping[str, float]
    gates: tuple[GateResult, ...]

    @property
    def failures(self) -> tuple[str, ...]:
        return tuple(gate.reason for gate in self.gates if not gate.passed)


def check_answers(
    runner: FileRunner,
    *,
    model: nn.Module,
    io_spec: IoSpec,
    label_names: Sequence[str],
    batches: Iterable[LabelledBatch],
    gates: GateSet,
    edges: TextEdges | None = None,
    largest_batch: int | None = None,
    seed: int = 0,
) -> AnswerReport:
    """Sizes and lengths, parity, rationales and accuracy of an open ``runner``, which may run
    something else than the checked file (an engine made of it), in batches of at most
    ``largest_batch``; other arguments as of :func:`check_artefact`. Gates against the teacher or a
    plain classifier are the file's.

    Raises :class:`RunError` where it does not answer the test split.
    """
    problem = problem_of(model)
    applicable = gates.applicable(problem)
    held = [part for batch in batches for part in in_parts(batch, largest_batch)]
    found = _Found(reading_of(problem, held))
    examples = examples_of(held, PARITY_EXAMPLES)
    named = [
        batch
        for batch in parity_batches(examples, edges=edges, seed=seed)
        if largest_batch is None or len(next(iter(batch.inputs.values()))) <= largest_batch
    ]
    input_names = tuple(tensor.name for tensor in io_spec.inputs)
    with TorchRunner(model, input_names) as reference:
        _check_sizes(runner, reference, named, gates, found)
        _check_split(runner, reference, held, label_names, gates, found)
    wanted = tuple(
        gate
        for gate in applicable.gates
        if gate.metric in ANSWER_METRICS and gate.reference in (None, "torch", "majority")
    )
    references = _references(held, label_names, found)
    asked = gates.model_copy(update={"gates": wanted})
    return AnswerReport(found.metrics, evaluate_gates(asked, found.metrics, references))


@dataclass(frozen=True, slots=True)
class _Engine:
    """What runs the file, and how."""

    runtime: RuntimeName
    provider: str
    threads: int
    settings: RuntimeSettings | None

    def open(self, path: Path) -> FileRunner:
        return file_runner(
            path,
            runtime=self.runtime,
            threads=self.threads,
            provider=self.provider,
            settings=self.settings,
        )

    def options(self) -> dict[str, Any]:
        """As the keywords of :func:`bench_files` and :func:`numerical_exclusion`."""
        return {
            "runtime": self.runtime,
            "provider": self.provider,
            "threads": self.threads,
            "runtime_settings": self.settings,
        }


@dataclass(slots=True)
class _Found:
    """What has been measured so far, and what a row of logits means."""

    reading: Reading
    metrics: dict[str, float] = field(default_factory=dict)
    cases: list[ParityCase] = field(default_factory=list)
    comparison: Comparison | None = None
    pair_cases: tuple[CaseCount, ...] = ()
    structural: StructuralExclusion | None = None
    numerical: NumericalExclusion | None = None
    accuracy: dict[str, Accuracy] = field(default_factory=dict)
    placement: Mapping[str, Any] | None = None
    problems: list[str] = field(default_factory=list)


def _check_io(proto: onnx.ModelProto, io_spec: IoSpec, found: _Found) -> None:
    try:
        validate_io(proto, io_spec)
        found.metrics["io_valid"] = 1.0
    except IoSpecError as error:
        found.metrics["io_valid"] = 0.0
        found.problems.append(error.message)


def _check_structure(proto: onnx.ModelProto, found: _Found) -> None:
    try:
        found.structural = structural_exclusion(proto)
    except GraphError as error:
        found.problems.append(error.message)
        return
    found.metrics["exclusion_leaks"] = float(len(found.structural.leaks))
    found.problems += [f"unselected input can leak: {leak}" for leak in found.structural.leaks]


def _check_sizes(
    runner: FileRunner,
    reference: TorchRunner,
    batches: Sequence[NamedBatch],
    gates: GateSet,
    found: _Found,
) -> None:
    failed = 0
    for batch in batches:
        shapes = {name: tuple(value.shape) for name, value in batch.inputs.items()}
        error = comparison = None
        try:
            part = differences(reference.run(batch.inputs), runner.run(batch.inputs), found.reading)
            comparison = summarise([part], near_tie_margin=gates.near_tie_margin)
        except (RunError, ValueError) as problem:
            failed += 1
            error = str(problem)
            found.problems.append(f"{batch.name}: {error}")
        found.cases.append(ParityCase(batch.name, shapes, comparison, error))
    found.metrics["failed_shapes"] = float(failed)


def _check_split(
    runner: FileRunner,
    reference: TorchRunner,
    batches: Sequence[LabelledBatch],
    label_names: Sequence[str],
    gates: GateSet,
    found: _Found,
) -> None:
    parts: list[ExampleDifferences] = []
    mine: list[np.ndarray] = []
    decided: list[np.ndarray] = []
    theirs: list[np.ndarray] = []
    for batch in batches:
        want, have = reference.run(batch.inputs), runner.run(batch.inputs)
        try:
            parts.append(differences(want, have, found.reading))
        except ValueError as error:
            found.problems.append(str(error))
            return
        mine.append(have.logits)
        if have.case is not None:
            decided.append(have.case)
        theirs.append(want.logits)
    found.comparison = summarise(parts, near_tie_margin=gates.near_tie_margin)
    labels = np.concatenate([batch.labels for batch in batches])
    if decided:
        right = np.concatenate(mine).argmax(axis=1) == labels
        found.pair_cases = count_cases(np.concatenate(decided), right)
    problem = found.reading.problem
    for name, logits in (("onnx", mine), ("torch", theirs)):
        found.accuracy[name] = _accuracy(np.concatenate(logits), labels, label_names, problem)
    found.metrics.update(_scores(found.accuracy["onnx"], problem))
    # The worst over the split and over the batches of odd sizes.
    seen = [found.comparison, *(c.comparison for c in found.cases if c.comparison is not None)]
    total = found.comparison
    found.metrics.update(
        **{name: _worst(getattr(item, name) for item in seen) for name in _WORST},
        rationale_exact=total.rationale_exact,
        rationale_jaccard=total.rationale_jaccard,
        answer_agreement=total.answer_agreement,
        unexplained_flips=float(sum(item.unexplained_flips for item in seen)),
    )
    if total.label_agreement is not None:
        found.metrics["label_agreement"] = total.label_agreement
    if total.mean_value_error is not None:
        found.metrics["mean_value_error"] = total.mean_value_error


_WORST = (
    "max_logit_error",
    "max_scaled_logit_error",
    "max_score_error",
    "max_scaled_score_error",
    "max_margin_error",
    "max_scaled_margin_error",
)


def _worst(errors: Iterable[float]) -> float:
    """The largest, and not-a-number if any is (Python's ``max`` may lose it)."""
    return float(np.max(list(errors)))


def _check_numbers(
    proto: onnx.ModelProto,
    batches: Sequence[NamedBatch],
    found: _Found,
    engine: _Engine,
    *,
    seed: int,
) -> None:
    try:
        numerical = numerical_exclusion(
            proto,
            [batch.inputs for batch in batches],
            seed=seed,
            reading=found.reading,
            **engine.options(),
        )
    except (GraphError, BackendError) as error:
        found.problems.append(f"exclusion could not be measured: {error.message}")
        return
    found.numerical = numerical
    found.metrics.update(
        exclusion_max_change=numerical.max_change,
        exclusion_changed=float(numerical.changed_examples),
        rationale_mismatches=float(numerical.mask_mismatches),
        exclusion_control=numerical.control_changed,
        exclusion_reproduction=numerical.reproduction_error,
    )


def baseline_accuracy(
    baselines: Mapping[str, LogitFunction],
    batches: Iterable[LabelledBatch],
    label_names: Sequence[str],
    problem: ProblemType = _SINGLE,
) -> dict[str, Accuracy]:
    """What other models reach on the whole test split, by name."""
    held = list(batches)
    labels = np.concatenate([batch.labels for batch in held])
    return {
        name: _accuracy(
            np.concatenate([answer(one.other_inputs.get(name, one.inputs)) for one in held]),
            labels,
            label_names,
            problem,
        )
        for name, answer in baselines.items()
    }


def _references(
    batches: Sequence[LabelledBatch], label_names: Sequence[str], found: _Found
) -> dict[str, dict[str, float]]:
    problem = found.reading.problem
    labels = np.concatenate([batch.labels for batch in batches])
    alike = uninformed(labels, problem, len(label_names))
    known = {"majority": _accuracy(alike, labels, label_names, problem), **found.accuracy}
    return {name: _scores(one, problem) for name, one in known.items() if name != "onnx"}


def _scores(found: Accuracy, problem: ProblemType) -> dict[str, float]:
    """As metrics."""
    own = {"score": found.overall, **found.scores}
    if problem == "single_label_classification":
        own["worst_class_accuracy"] = found.worst_class
    return own


def _accuracy(
    logits: np.ndarray, labels: np.ndarray, label_names: Sequence[str], problem: ProblemType
) -> Accuracy:
    found = penalised(logits, labels, problem)
    each, support = label_scores(found, labels, problem, len(label_names))
    return Accuracy(
        per_class=dict(zip(label_names, each.tolist(), strict=True)),
        support=dict(zip(label_names, support.tolist(), strict=True)),
        scores=scores(found, labels, problem),
        examples=len(labels),
    )


def _measure_latency(
    path: Path,
    examples: Sequence[Inputs],
    found: _Found,
    engine: _Engine,
) -> None:
    from rekd_edge.bench import BenchSettings, bench_files

    settings = BenchSettings(min_duration_s=2.0, min_count=50, warmup_count=10, cold_starts=0)
    report = bench_files({"file": path}, examples, settings=settings, **engine.options())
    measured = report.candidates["file"]
    found.metrics["latency_ms_p50"] = measured.latency_ns["50"] / 1e6
    found.metrics["latency_ms_p90"] = measured.latency_ns["90"] / 1e6
