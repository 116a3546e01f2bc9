"""What a page says, as values. What is None or empty is shown as "not measured"."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from rekd_edge.calibrate.probabilities import ReliabilityBin
from rekd_edge.types import Modality

Facts = tuple[tuple[str, str], ...]
"""Name and value; an empty value is "not measured"."""


@dataclass(frozen=True, slots=True)
class Stage:
    """One step of the lineage."""

    kind: str
    """``recipe``, ``teacher``, ``student``, ``fused`` or ``file``."""
    title: str
    facts: Facts
    note: str = ""


@dataclass(frozen=True, slots=True)
class Lineage:
    """From a recipe to a student, and the files made of it."""

    title: str
    stages: tuple[Stage, ...]
    files: tuple[Stage, ...]


@dataclass(frozen=True, slots=True)
class TrainingPhase:
    """The loss of one phase: ``steps`` and ``losses`` of equal length."""

    name: str
    steps: tuple[int, ...]
    losses: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Training:
    """One role's log. ``dev`` holds, by phase, steps and accuracies (0..1) on the development
    split; ``warnings`` are those of the monitor."""

    title: str
    phases: tuple[TrainingPhase, ...]
    dev: tuple[tuple[str, tuple[int, ...], tuple[float, ...]], ...]
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class ModelResult:
    """What a model reached on the test split.

    ``counts`` int64 ``[label, answer]`` where it was run for this page; otherwise ``per_class``
    (recall, 0..1) comes from a report. ``agreement`` compares with another model.
    """

    name: str
    source: str
    """Where the figures come from, in words."""
    accuracy: float
    examples: int
    per_class: Mapping[str, float]
    support: Mapping[str, int] = field(default_factory=dict)
    counts: np.ndarray | None = None
    agreement: Agreement | None = None


@dataclass(frozen=True, slots=True)
class Agreement:
    """Shares (0..1) of examples in which two models say the same; rationales are None where they
    are not about the same tokens."""

    other: str
    labels: float
    rationale_exact: float | None
    rationale_jaccard: float | None


@dataclass(frozen=True, slots=True)
class PairCase:
    """How often something decided between two students, and who was right (shares, 0..1; None where
    it did not happen). ``by_student`` counts answers of the first of the two."""

    name: str
    examples: int
    share: float
    accuracy: float | None
    student: float | None
    partner: float | None
    by_student: int


@dataclass(frozen=True, slots=True)
class Pair:
    """Two students that answer together, on the test split, in torch: accuracies (0..1)."""

    title: str
    examples: int
    accuracy: float
    student: float
    partner: float
    averaged: float
    """Of the mean of their probabilities, without any exchange."""
    rationale_jaccard: float
    cases: tuple[PairCase, ...]
    published: str


@dataclass(frozen=True, slots=True)
class Timing:
    """One file in a benchmark, milliseconds; ``quantiles``: minimum, 5, 25, 50, 75, 95, 99 %."""

    name: str
    quantiles: tuple[float, ...]
    p90_ms: float
    ratio: tuple[float, float, float] | None
    """Of the medians to the reference, with its 95 % interval."""
    first_answer_s: float | None
    peak_rss_mb: float | None
    size_mb: float
    queries: int


@dataclass(frozen=True, slots=True)
class Bench:
    """One benchmark: all files in turn on one machine."""

    title: str
    setting: str
    valid: bool
    why_invalid: str
    reference: str | None
    timings: tuple[Timing, ...]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class FrontPoint:
    name: str
    accuracy: float
    latency_ms: float
    on_front: bool
    ours: bool
    """Whether it is a bundle of this page (others are what it was compared with)."""


@dataclass(frozen=True, slots=True)
class Front:
    """Accuracy against latency of files that were timed alike."""

    title: str
    note: str
    points: tuple[FrontPoint, ...]


@dataclass(frozen=True, slots=True)
class GateLine:
    """``outcome`` is ``passed``, ``failed`` or ``skipped`` (there is nothing to compare with)."""

    name: str
    meaning: str
    found: str
    needed: str
    outcome: str


@dataclass(frozen=True, slots=True)
class Checks:
    """The gates that a file had to hold, and the proof of exclusion in words."""

    title: str
    gates: tuple[GateLine, ...]
    exclusion: str


@dataclass(frozen=True, slots=True)
class Span:
    """Characters ``[start, end)`` of a text."""

    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Box:
    """A patch in shares (0..1) of the square that the model sees."""

    x: float
    y: float
    width: float
    height: float


@dataclass(frozen=True, slots=True)
class Answer:
    """One model on one example; ``reference`` names what its rationale is compared with."""

    model: str
    label: str
    probability: float
    right: bool
    margin: float
    kept: int
    candidates: int
    evidence: tuple[Span, ...] | tuple[Box, ...]
    reference: str | None
    withheld: tuple[str, ...] = ()
    """Why a bundle's runtime does not answer (``confidence``, ``margin``); empty where it does."""


@dataclass(frozen=True, slots=True)
class Picture:
    """The square that the model sees, encoded; ``side`` in pixels."""

    media_type: str
    content: bytes
    side: int


@dataclass(frozen=True, slots=True)
class Example:
    """A test example with the answers of all models, in their order."""

    index: int
    label: str
    reasons: tuple[str, ...]
    """Why it is shown, in words."""
    text: str | None
    picture: Picture | None
    answers: tuple[Answer, ...]


@dataclass(frozen=True, slots=True)
class ExampleGroup:
    key: str
    title: str
    explanation: str
    examples: tuple[Example, ...]


@dataclass(frozen=True, slots=True)
class Confidence:
    """How the probability of an answer goes with its being right, on the test split.

    ``points`` are (coverage, risk), shares (0..1): the error among the most confident share,
    ascending in coverage.
    """

    model: str
    points: tuple[tuple[float, float], ...]
    bins: tuple[ReliabilityBin, ...]
    calibration_error: float

    def risk_at(self, coverage: float) -> float:
        """The error where at least that share is answered."""
        return next(risk for share, risk in self.points if share >= coverage - 1e-9)


@dataclass(frozen=True, slots=True)
class StoredCalibration:
    """What a bundle's ``reports/calibration.json`` says, thresholds null where nothing is refused.

    ``ece_before``, ``ece_after``, ``coverage``, ``risk``, ``rationale_risk`` and ``refused`` (by
    reason; one example may be under both) are those of ``examples`` of the test split.
    """

    temperature: float
    fitted_on: int
    """Examples of the development split."""
    confidence_threshold: float | None
    margin_threshold: float | None
    asked: Mapping[str, float]
    """`coverage`, `risk`, `rationale_risk`, `confidence`: as far as asked; empty: nothing was."""
    promised: Mapping[str, float]
    """Upper bounds by the name of what was asked."""
    examples: int
    ece_before: float
    ece_after: float
    coverage: float
    risk: float | None
    rationale_risk: float | None
    refused: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class ReportContent:
    """Everything on a page."""

    title: str
    description: str
    modality: Modality
    label_names: tuple[str, ...]
    rationale_ratio: float
    created: str
    version: str
    primary: str | None
    """The model that the summary is about."""
    lineages: tuple[Lineage, ...]
    data: Facts
    trainings: tuple[Training, ...]
    results: tuple[ModelResult, ...]
    confidences: tuple[Confidence, ...]
    calibrations: tuple[tuple[str, StoredCalibration | None], ...]
    """Of every bundle."""
    benches: tuple[Bench, ...]
    fronts: tuple[Front, ...]
    checks: tuple[Checks, ...]
    groups: tuple[ExampleGroup, ...]
    notes: tuple[str, ...] = ()
    pairs: tuple[Pair, ...] = ()

    @property
    def examples(self) -> int:
        return sum(len(group.examples) for group in self.groups)

    def result(self, name: str | None) -> ModelResult | None:
        return next((result for result in self.results if result.name == name), None)
