"""Figures of one model's answers on a split, or of two models' answers side by side."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from rekd_edge.calibrate.probabilities import expected_calibration_error, reliability, softmax
from rekd_edge.calibrate.selective import Curve, Refusals, risk_coverage
from rekd_edge.calibrate.spec import Calibration
from rekd_edge.report.content import Agreement, Confidence


@dataclass(frozen=True, slots=True)
class Answers:
    """A model's answers in the order of the split.

    ``logits`` float ``[example, class]``, ``labels`` int64 ``[example]``, ``margin`` float
    ``[example]``; ``kept`` holds the positions of each rationale on the token axis, int64
    ``[kept]``, and ``candidates`` how many could have been kept, ``[example]``.
    ``calibration`` is what a file's runtime applies to them, None where there is nothing to apply.
    """

    logits: np.ndarray
    labels: np.ndarray
    margin: np.ndarray
    kept: tuple[np.ndarray, ...]
    candidates: np.ndarray
    calibration: Calibration | None = None

    @property
    def predicted(self) -> np.ndarray:
        return self.logits.argmax(axis=1)

    @property
    def right(self) -> np.ndarray:
        return self.predicted == self.labels

    @property
    def accuracy(self) -> float:
        return float(self.right.mean())

    @property
    def probabilities(self) -> np.ndarray:
        """As the runtime gives them, ``[example, class]``."""
        return softmax(
            self.logits, 1.0 if self.calibration is None else self.calibration.temperature
        )

    @property
    def refusals(self) -> Refusals | None:
        """None where nothing can be withheld."""
        if self.calibration is None:
            return None
        return Refusals.of(self.probabilities.max(axis=1), self.margin, self.calibration)


def confusion(answers: Answers, classes: int) -> np.ndarray:
    """Counts, int64 ``[label, answer]``."""
    table = np.zeros((classes, classes), dtype=np.int64)
    np.add.at(table, (answers.labels, answers.predicted), 1)
    return table


def wilson_interval(share: float, count: int) -> tuple[float, float]:
    """95 % interval of a share of ``count`` examples (Wilson 1927)."""
    if count == 0:
        return 0.0, 1.0
    z2 = 1.959964**2
    centre = share + z2 / (2 * count)
    reach = math.sqrt(z2) * math.sqrt(share * (1 - share) / count + z2 / (4 * count**2))
    scale = 1 + z2 / count
    return max(0.0, (centre - reach) / scale), min(1.0, (centre + reach) / scale)


def agreement(mine: Answers, other: Answers, name: str, *, same_tokens: bool) -> Agreement:
    """How often two models say the same; ``same_tokens``: whether their rationales can be compared
    token by token."""
    labels = float((mine.predicted == other.predicted).mean())
    if not same_tokens:
        return Agreement(name, labels, None, None)
    shared = [jaccard(a, b) for a, b in zip(mine.kept, other.kept, strict=True)]
    exact = float(np.mean([value == 1.0 for value in shared]))
    return Agreement(name, labels, exact, float(np.mean(shared)))


def jaccard(left: np.ndarray, right: np.ndarray) -> float:
    """Shared positions of all that either holds; 1 for two empty sets."""
    either = np.union1d(left, right).size
    return np.intersect1d(left, right).size / either if either else 1.0


def confidence(answers: Answers, name: str) -> Confidence:
    """Risk and coverage by descending probability, and calibration."""
    probability, right = answers.probabilities.max(axis=1), answers.right
    return Confidence(
        model=name,
        points=Curve.of(risk_coverage(probability, ~right)).points,
        bins=reliability(probability, right),
        calibration_error=expected_calibration_error(probability, right),
    )
