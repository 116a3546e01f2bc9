"""What a page says of the answers of each problem type: figures, examples and words.

One object for each type. Whoever makes a page asks that of its answers (:func:`kind_for`) and has
no case for a type of its own; ``template`` holds the macros that write the sections.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np

from rekd_edge.problem import PRIMARY, SCORE_TITLES
from rekd_edge.report.content import (
    Agreement,
    Confidence,
    LabelMark,
    LabelState,
    ModelResult,
    ValueMark,
)
from rekd_edge.report.statistics import (
    Answers,
    agreement,
    confidence,
    confusion,
    deviations,
    jaccard,
    label_calibration_errors,
    label_figures,
    label_intervals,
    value_agreement,
    value_figures,
    value_intervals,
)
from rekd_edge.types import ProblemType

NO_LABEL = "no label"
NEAR = 0.01
"""Values that lie less than this part of a deviation apart count as alike."""
FAR = 0.5
"""Deviations between the values of two models that are worth a word."""
RANGES = 10
"""Parts of equal size of the true values, of which a sample takes examples in turn."""


@dataclass(frozen=True, slots=True)
class Words:
    """What a group of examples is called, and which are in it."""

    title: str
    explanation: str


@dataclass(frozen=True, slots=True)
class Said:
    """An answer to one example (:class:`~rekd_edge.report.content.Answer`)."""

    label: str
    probability: float | None = None
    right: bool | None = None
    labels: tuple[LabelMark, ...] = ()
    values: tuple[ValueMark, ...] = ()


class Kind(ABC):
    """Base of the three."""

    problem: ClassVar[ProblemType]
    template: ClassVar[str]
    """Macros of the sections, beside the page."""
    drawn: ClassVar[str]
    """How a part of the test split is drawn."""

    @property
    def score(self) -> str:
        """The name of the primary score, for people."""
        return SCORE_TITLES[PRIMARY[self.problem]]

    @property
    def in_percent(self) -> bool:
        """Whether the primary score is a share of answers."""
        return False

    def format(self, score: float) -> str:
        """The primary score as it is written."""
        return f"{score:.3f}"

    # --- figures

    @abstractmethod
    def result(
        self, name: str, source: str, found: Answers, labels: Sequence[str]
    ) -> ModelResult: ...

    def recorded(self, name: str, source: str, found: Mapping[str, Any], count: int) -> ModelResult:
        """From ``accuracy`` of a check report, over ``count`` examples."""
        return ModelResult(
            name=name,
            source=source,
            accuracy=float(found["overall"]),
            examples=count,
            per_class={n: v for n, v in found["per_class"].items() if v is not None},
            support=dict(found["support"]),
            scores=dict(found.get("scores", {})),
        )

    def agreement(
        self, mine: Answers, other: Answers, name: str, labels: Sequence[str], *, same_tokens: bool
    ) -> Agreement:
        return agreement(mine, other, name, same_tokens=same_tokens)

    def confidence(self, found: Answers, name: str) -> Confidence | None:
        """None where nothing says how sure an answer is."""
        return confidence(found, name)

    # --- examples

    different: ClassVar[str]
    """Which examples are in the group where the models differ."""
    sample: ClassVar[Words]

    @abstractmethod
    def worst(self, first: Answers, primary: str) -> tuple[Words, np.ndarray]:
        """With indices, the worst first."""

    @abstractmethod
    def differs(self, mine: Answers, other: Answers) -> np.ndarray:
        """How far two models' answers are apart, float ``[example]``: 0 if alike."""

    @abstractmethod
    def queues(self, first: Answers, order: np.ndarray) -> list[np.ndarray]:
        """The examples in ``order``, by what a sample takes in turn; one may be in several."""

    @abstractmethod
    def truth(self, found: Answers, index: int, labels: Sequence[str]) -> str: ...

    @abstractmethod
    def said(self, found: Answers, index: int, labels: Sequence[str]) -> Said: ...

    @abstractmethod
    def fault(self, answers: Mapping[str, Answers], primary: str, index: int) -> str:
        """What is wrong with the answers to an example; empty where nothing is."""

    @abstractmethod
    def dispute(self, answers: Mapping[str, Answers], index: int) -> str:
        """How the models differ in it; empty where they do not."""


class _RightOrWrong(Kind):
    """Answers that are one or the other."""

    wrong: ClassVar[str]
    all_wrong: ClassVar[str]

    def worst(self, first: Answers, primary: str) -> tuple[Words, np.ndarray]:
        wrong = np.flatnonzero(~first.right)
        order = wrong[np.argsort(-first.confidence[wrong], kind="stable")]
        return Words("Wrong, and sure of it", self.wrong.format(primary)), order

    def fault(self, answers: Mapping[str, Answers], primary: str, index: int) -> str:
        wrong = [name for name, found in answers.items() if not found.right[index]]
        if len(wrong) == len(answers):
            return self.all_wrong
        return f"wrong: {', '.join(wrong)}" if wrong else ""

    def dispute(self, answers: Mapping[str, Answers], index: int) -> str:
        said = {found.predicted[index].tobytes() for found in answers.values()}
        return "labels differ" if len(said) > 1 else ""


class Classes(_RightOrWrong):
    """One class of several."""

    problem = "single_label_classification"
    template = "classes.html.j2"
    drawn = "by class"
    wrong = "Where {} is wrong, the highest probability first."
    all_wrong = "all models are wrong"
    different = "Where labels differ, or rationales share least; the deployed files first."
    sample = Words(
        "A sample of every class",
        "Drawn at random, the same for each page, as many of every class as there is room for.",
    )

    @property
    def in_percent(self) -> bool:
        return True

    def format(self, score: float) -> str:
        return f"{score * 100:.1f} %"

    def result(self, name: str, source: str, found: Answers, labels: Sequence[str]) -> ModelResult:
        counts = confusion(found, len(labels))
        support = counts.sum(axis=1)
        return ModelResult(
            name=name,
            source=source,
            accuracy=found.accuracy,
            examples=len(found.labels),
            per_class={
                label: int(counts[i, i]) / int(support[i])
                for i, label in enumerate(labels)
                if support[i]
            },
            support={label: int(support[i]) for i, label in enumerate(labels)},
            counts=counts,
            scores=found.scores,
        )

    def recorded(self, name: str, source: str, found: Mapping[str, Any], count: int) -> ModelResult:
        """Each example has one class."""
        return super().recorded(name, source, found, sum(found["support"].values()))

    def differs(self, mine: Answers, other: Answers) -> np.ndarray:
        return (mine.predicted != other.predicted).astype(np.float64)

    def queues(self, first: Answers, order: np.ndarray) -> list[np.ndarray]:
        return [order[first.labels[order] == label] for label in np.unique(first.labels)]

    def truth(self, found: Answers, index: int, labels: Sequence[str]) -> str:
        return labels[int(found.labels[index])]

    def said(self, found: Answers, index: int, labels: Sequence[str]) -> Said:
        predicted = int(found.predicted[index])
        return Said(
            labels[predicted],
            float(found.probabilities[index, predicted]),
            predicted == int(found.labels[index]),
        )


class Labels(_RightOrWrong):
    """Any number of labels."""

    problem = "multi_label_classification"
    template = "labels.html.j2"
    drawn = "by combination of labels"
    wrong = (
        "Where {} has any label wrong, the surest first: by the probability of the label that it "
        "is least sure of."
    )
    all_wrong = "all models have a label wrong"
    different = (
        "Where the given labels, or the rationales, share least; the deployed files weigh most."
    )
    sample = Words(
        "A sample of every label",
        "Drawn at random, the same for each page: for each label in turn an example that has it, "
        "then one that has none.",
    )

    def result(self, name: str, source: str, found: Answers, labels: Sequence[str]) -> ModelResult:
        figures = label_figures(found, labels)
        return ModelResult(
            name=name,
            source=source,
            accuracy=found.accuracy,
            examples=len(found.labels),
            per_class={one.name: one.f1 for one in figures},
            support={one.name: one.both + one.missing for one in figures},
            scores=found.scores,
            intervals=label_intervals(found),
            labels=figures,
        )

    def confidence(self, found: Answers, name: str) -> Confidence | None:
        return replace(confidence(found, name), by_label=label_calibration_errors(found))

    def differs(self, mine: Answers, other: Answers) -> np.ndarray:
        pairs = zip(mine.predicted, other.predicted, strict=True)
        return np.asarray([1 - jaccard(np.flatnonzero(a), np.flatnonzero(b)) for a, b in pairs])

    def queues(self, first: Answers, order: np.ndarray) -> list[np.ndarray]:
        there = first.labels[order] > 0.5
        of_each = [order[there[:, label]] for label in range(there.shape[1])]
        return [*of_each, order[~there.any(axis=1)]]

    def truth(self, found: Answers, index: int, labels: Sequence[str]) -> str:
        return _named(found.labels[index] > 0.5, labels) or "none"

    def said(self, found: Answers, index: int, labels: Sequence[str]) -> Said:
        given, there = found.predicted[index], found.labels[index] > 0.5
        probabilities = found.probabilities[index]
        states: dict[tuple[bool, bool], LabelState] = {
            (True, True): "right",
            (True, False): "extra",
            (False, True): "missing",
        }
        return Said(
            _named(given, labels) or NO_LABEL,
            float(found.confidence[index]),
            bool(found.right[index]),
            labels=tuple(
                LabelMark(label, states[one, true], float(probability))
                for label, one, true, probability in zip(
                    labels, given.tolist(), there.tolist(), probabilities, strict=True
                )
                if one or true
            ),
        )


def _named(which: np.ndarray, labels: Sequence[str]) -> str:
    return ", ".join(label for label, one in zip(labels, which, strict=True) if one)


class Values(Kind):
    """One or more numbers."""

    problem = "regression"
    template = "values.html.j2"
    drawn = "over the range of values"
    different = (
        "Where values lie furthest apart, measured in deviations of the truth (less than a "
        "hundredth counts as alike), or rationales share least; the deployed files weigh most."
    )
    sample = Words(
        "A sample over the range",
        f"Drawn at random, the same for each page: in turn from {RANGES} parts of equal size of "
        "the true values, the lowest first.",
    )

    def result(self, name: str, source: str, found: Answers, labels: Sequence[str]) -> ModelResult:
        figures = value_figures(found, labels)
        return ModelResult(
            name=name,
            source=source,
            accuracy=found.accuracy,
            examples=len(found.labels),
            per_class={one.name: one.r2 for one in figures},
            support={one.name: len(found.labels) for one in figures},
            scores=found.scores,
            intervals=value_intervals(found),
            values=figures,
        )

    def agreement(
        self, mine: Answers, other: Answers, name: str, labels: Sequence[str], *, same_tokens: bool
    ) -> Agreement:
        found = agreement(mine, other, name, same_tokens=same_tokens)
        return replace(found, values=value_agreement(mine, other, labels))

    def confidence(self, found: Answers, name: str) -> Confidence | None:
        return None

    def worst(self, first: Answers, primary: str) -> tuple[Words, np.ndarray]:
        several = ", measured in deviations of the truth" if first.labels.shape[1] > 1 else ""
        words = Words(
            "Largest errors", f"Where {primary} is furthest from the truth{several}, first of all."
        )
        return words, np.argsort(-_error(first), kind="stable")

    def differs(self, mine: Answers, other: Answers) -> np.ndarray:
        found = _distance(mine.logits, other.logits, deviations(mine))
        return np.where(found < NEAR, 0.0, np.minimum(found, 1.0))

    def queues(self, first: Answers, order: np.ndarray) -> list[np.ndarray]:
        scaled = first.labels / deviations(first)
        by_value = np.argsort(scaled.mean(axis=1), kind="stable")
        part = np.empty(len(by_value), dtype=np.int64)
        part[by_value] = np.arange(len(by_value)) * RANGES // len(by_value)
        return [order[part[order] == number] for number in np.unique(part)]

    def truth(self, found: Answers, index: int, labels: Sequence[str]) -> str:
        return _valued(found.labels[index], labels)

    def said(self, found: Answers, index: int, labels: Sequence[str]) -> Said:
        mine, truth = found.logits[index], found.labels[index]
        return Said(
            _valued(mine, labels),
            values=tuple(
                ValueMark(label, float(value), float(true))
                for label, value, true in zip(labels, mine, truth, strict=True)
            ),
        )

    def fault(self, answers: Mapping[str, Answers], primary: str, index: int) -> str:
        error = _error(answers[primary])
        share = float((error >= error[index]).mean())
        return f"error among the largest {share:.1%}" if share <= 0.05 else ""

    def dispute(self, answers: Mapping[str, Answers], index: int) -> str:
        found = list(answers.values())
        spread = deviations(found[0])
        furthest = max(
            float(np.abs((a.logits[index] - b.logits[index]) / spread).mean())
            for a in found
            for b in found
        )
        return f"values {furthest:.2g} deviations apart" if furthest >= FAR else ""


def _distance(left: np.ndarray, right: np.ndarray, spread: np.ndarray) -> np.ndarray:
    """In deviations, the mean over targets, ``[example]``."""
    return np.abs((left.astype(np.float64) - right) / spread).mean(axis=1)


def _error(found: Answers) -> np.ndarray:
    return _distance(found.logits, found.labels, deviations(found))


def number(value: float) -> str:
    """Four significant digits, without an exponent where that can be read."""
    if not math.isfinite(value):
        return "not a number"
    digits = 3 - math.floor(math.log10(abs(value))) if value else 0
    if abs(digits) > 8:
        return f"{value:.3e}"
    return f"{value + 0.0:,.{max(0, digits)}f}"


def _valued(values: np.ndarray, names: Sequence[str]) -> str:
    """One value alone, several with their names."""
    if len(names) == 1:
        return number(float(values[0]))
    return ", ".join(f"{name} {number(float(v))}" for name, v in zip(names, values, strict=True))


_KINDS: dict[ProblemType, Kind] = {one.problem: one for one in (Classes(), Labels(), Values())}


def kind_for(problem: ProblemType) -> Kind:
    return _KINDS[problem]
