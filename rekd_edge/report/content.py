"""What a page says, as values. What is None or empty is shown as "not measured"."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from rekd_edge.calibrate.probabilities import ReliabilityBin
from rekd_edge.types import Modality, ProblemType, RationaleUnit

Interval = tuple[float, float]
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
    """One role's log. ``dev`` holds, by phase, steps and primary scores on the development split;
    ``warnings`` are those of the monitor."""

    title: str
    phases: tuple[TrainingPhase, ...]
    dev: tuple[tuple[str, tuple[int, ...], tuple[float, ...]], ...]
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class LabelFigures:
    """Of several labels one: in how many examples it is there and given (``both``), given alone
    (``extra``), there alone (``missing``), or ``neither``."""

    name: str
    both: int
    extra: int
    missing: int
    neither: int

    @property
    def prevalence(self) -> float:
        return (self.both + self.missing) / (self.both + self.extra + self.missing + self.neither)

    @property
    def precision(self) -> float | None:
        """None where it is never given."""
        given = self.both + self.extra
        return self.both / given if given else None

    @property
    def recall(self) -> float | None:
        """None where it is never there."""
        there = self.both + self.missing
        return self.both / there if there else None

    @property
    def f1(self) -> float:
        """0 where it is neither there nor given, as in :mod:`rekd_edge.problem`."""
        total = 2 * self.both + self.extra + self.missing
        return 2 * self.both / total if total else 0.0


@dataclass(frozen=True, slots=True)
class ValueFigures:
    """One target of a regression in its own unit: ``truth`` and ``found`` float64 ``[example]``;
    ``intervals`` by the name of a score, where there is one."""

    name: str
    truth: np.ndarray
    found: np.ndarray
    r2: float
    mean_absolute_error: float
    root_mean_squared_error: float
    intervals: Mapping[str, Interval]

    @property
    def error(self) -> np.ndarray:
        """Value minus truth, ``[example]``."""
        return self.found - self.truth


@dataclass(frozen=True, slots=True)
class ModelResult:
    """What a model reached on the test split. ``accuracy`` is the primary score of its problem type
    (:data:`rekd_edge.problem.PRIMARY`), ``per_class`` that of each label, ``scores`` all.

    Where it was run for this page there is one of ``counts``, int64 ``[class, answer]``, ``labels``
    and ``values``; otherwise the figures come from a report. ``intervals`` are of ``scores``, 95 %,
    where they are not Wilson's of ``accuracy``. ``agreement`` compares with another model.
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
    scores: Mapping[str, float] = field(default_factory=dict)
    intervals: Mapping[str, Interval] = field(default_factory=dict)
    labels: tuple[LabelFigures, ...] = ()
    values: tuple[ValueFigures, ...] = ()


@dataclass(frozen=True, slots=True)
class ValueAgreement:
    """How near two models' values of one target are: mean distance in its unit, and Pearson's
    correlation, None where either does not vary."""

    name: str
    distance: float
    correlation: float | None


@dataclass(frozen=True, slots=True)
class Agreement:
    """Shares (0..1) of examples in which two models say the same (every label alike); ``labels`` is
    None of values, which have ``values`` instead. Rationales are None where they are not about the
    same tokens."""

    other: str
    labels: float | None
    rationale_exact: float | None
    rationale_jaccard: float | None
    values: tuple[ValueAgreement, ...] = ()


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
class ClassReach:
    """How often the rationale for one class makes the predictor say so (shares, 0..1): in all
    examples and where that is not the answer, beside as many random tokens; None without any."""

    label: str
    reach: float
    reach_random: float
    not_answered: int
    reach_not_answered: float | None
    reach_random_not_answered: float | None


@dataclass(frozen=True, slots=True)
class ClassWise:
    """What the class-wise rationales of a student are worth, on the test split, in torch."""

    title: str
    examples: int
    classes: tuple[ClassReach, ...]
    above_chance: bool


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
    """A patch, or a region that is kept whole, in shares (0..1) of the square that the model
    sees."""

    x: float
    y: float
    width: float
    height: float


Evidence = tuple[Span, ...] | tuple[Box, ...]
LabelState = Literal["right", "extra", "missing"]


@dataclass(frozen=True, slots=True)
class LabelMark:
    """Of several labels one that is there (``missing`` if it was not given) or given (``extra`` if
    it is not there), with its probability."""

    name: str
    state: LabelState
    probability: float


@dataclass(frozen=True, slots=True)
class ValueMark:
    """One value of an answer, in the target's unit."""

    name: str
    value: float
    truth: float

    @property
    def error(self) -> float:
        return self.value - self.truth


@dataclass(frozen=True, slots=True)
class Decision:
    """How two students came to one answer: ``case`` is one of
    :data:`~rekd_edge.models.interactive.CASES`, ``by_student`` whether the answer is the first's,
    None where that is not known, and ``other`` the part of the evidence that only the other one
    kept."""

    case: str
    by_student: bool | None
    other: Evidence


@dataclass(frozen=True, slots=True)
class Answer:
    """One model on one example; ``reference`` names what its rationale is compared with.

    ``label`` is the answer in words. Of several labels ``probability`` is how sure it is of the one
    that it is least sure of, ``right`` whether all are, and ``labels`` holds those that are there
    or given. Of values neither is there, and ``values`` has one for each target.
    """

    model: str
    label: str
    probability: float | None
    right: bool | None
    margin: float
    kept: int
    candidates: int
    evidence: Evidence
    reference: str | None
    withheld: tuple[str, ...] = ()
    """Why a bundle's runtime does not answer (``confidence``, ``margin``); empty where it does."""
    labels: tuple[LabelMark, ...] = ()
    values: tuple[ValueMark, ...] = ()
    regions: bool = False
    """Of an image: whether regions are kept and counted, not single patches."""
    decision: Decision | None = None
    """None where one student answers alone."""


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
    """The truth in words."""
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
    ascending in coverage. Of several labels an answer with any wrong is wrong, and ``bins`` and
    ``calibration_error`` are over all labels of all examples; ``by_label`` has the error of each.
    """

    model: str
    points: tuple[tuple[float, float], ...]
    bins: tuple[ReliabilityBin, ...]
    calibration_error: float
    by_label: tuple[float, ...] = ()

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
class Regions:
    """Of each image ``kept`` of ``total`` square regions are kept, ``size`` patches on a side."""

    size: int
    kept: int
    total: int


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
    problem: ProblemType = "single_label_classification"
    unit: RationaleUnit = "token"
    """What a rationale keeps whole."""
    regions: Regions | None = None
    """What is known of them where ``unit`` is region."""
    two_students: bool = False
    """Whether the model of the summary is a pair."""
    class_wise: tuple[ClassWise, ...] = ()

    @property
    def examples(self) -> int:
        return sum(len(group.examples) for group in self.groups)

    def result(self, name: str | None) -> ModelResult | None:
        return next((result for result in self.results if result.name == name), None)
