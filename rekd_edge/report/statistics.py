"""Figures of one model's answers on a split, or of two models' answers side by side."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from rekd_edge.calibrate.probabilities import (
    confidence_of,
    decisions,
    expected_calibration_error,
    probabilities_of,
    reliability,
)
from rekd_edge.calibrate.selective import Curve, Refusals, risk_coverage
from rekd_edge.calibrate.spec import Calibration
from rekd_edge.problem import answers as decided
from rekd_edge.problem import label_scores, same_answers, scores
from rekd_edge.report.content import (
    Agreement,
    Confidence,
    Interval,
    LabelFigures,
    ValueAgreement,
    ValueFigures,
)
from rekd_edge.types import ProblemType

RESAMPLES = 1000
"""Bootstrap samples of an interval; the same examples are drawn each time."""
SEED = 0


@dataclass(frozen=True, slots=True)
class Answers:
    """A model's answers in the order of the split.

    ``logits`` float ``[example, label]`` and ``labels`` as in :mod:`rekd_edge.problem`, ``margin``
    float ``[example]``; ``kept`` holds the positions of each rationale on the token axis, int64
    ``[kept]``, and ``candidates`` how many could have been kept, ``[example]``.
    ``calibration`` is what a file's runtime applies to them, None where there is nothing to apply.
    Of two students ``case`` int64 ``[example]`` says what decided, and ``read`` is the part of
    ``kept`` that the one that answers kept; None where one answers alone.
    Probabilities, :attr:`confidence` and :attr:`right` are for classes and labels: a regression
    has none.
    """

    logits: np.ndarray
    labels: np.ndarray
    margin: np.ndarray
    kept: tuple[np.ndarray, ...]
    candidates: np.ndarray
    calibration: Calibration | None = None
    problem: ProblemType = "single_label_classification"
    case: np.ndarray | None = None
    read: tuple[np.ndarray, ...] | None = None

    @property
    def predicted(self) -> np.ndarray:
        """The decisions (:func:`rekd_edge.problem.answers`)."""
        return decided(self.logits, self.problem)

    @property
    def right(self) -> np.ndarray:
        """bool ``[example]``: the class, or every label, is the true one."""
        assert self.problem != "regression", "a value is near or far"
        found = self.predicted
        if found.ndim == 1:
            return found == self.labels
        return (found == (self.labels > 0.5)).all(axis=1)

    @property
    def scores(self) -> dict[str, float]:
        """Every score by its name, the primary one first."""
        return scores(self.logits, self.labels, self.problem)

    @property
    def accuracy(self) -> float:
        """The primary score; of a single-label classification the share that is right."""
        return next(iter(self.scores.values()))

    @property
    def temperature(self) -> float:
        return 1.0 if self.calibration is None else self.calibration.temperature

    @property
    def probabilities(self) -> np.ndarray:
        """As the runtime gives them, ``[example, label]``."""
        return probabilities_of(self.logits, self.problem, self.temperature)

    @property
    def confidence(self) -> np.ndarray:
        """``[example]``: what :func:`~rekd_edge.calibrate.probabilities.confidence_of` says."""
        return confidence_of(self.logits, self.problem, self.temperature)

    @property
    def refusals(self) -> Refusals | None:
        """None where nothing can be withheld."""
        if self.calibration is None:
            return None
        return Refusals.of(self.confidence, self.margin, self.calibration)


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
    same = same_answers(mine.logits, other.logits, mine.problem)
    labels = None if same is None else float(same.mean())
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
    """Risk and coverage by descending confidence, and calibration: of the probability of each
    answer's class, or of every label of every example, as in ``reports/calibration.json``."""
    stated, came_true = decisions(
        answers.logits, answers.labels, answers.problem, answers.temperature
    )
    return Confidence(
        model=name,
        points=Curve.of(risk_coverage(answers.confidence, ~answers.right)).points,
        bins=reliability(stated, came_true),
        calibration_error=expected_calibration_error(stated, came_true),
    )


# --- several labels ---------------------------------------------------------------------------


def label_figures(answers: Answers, names: Sequence[str]) -> tuple[LabelFigures, ...]:
    """The 2 x 2 table of each label."""
    given, there = answers.predicted, answers.labels > 0.5
    return tuple(
        LabelFigures(
            name,
            both=int((given[:, i] & there[:, i]).sum()),
            extra=int((given[:, i] & ~there[:, i]).sum()),
            missing=int((~given[:, i] & there[:, i]).sum()),
            neither=int((~given[:, i] & ~there[:, i]).sum()),
        )
        for i, name in enumerate(names)
    )


def label_intervals(answers: Answers) -> dict[str, Interval]:
    """95 % intervals: of the two F1 by bootstrap, of the share with all labels right Wilson's."""
    given, there = answers.predicted, answers.labels > 0.5
    count = given.shape[1]
    totals = _resampled(np.hstack([given & there, given, there]))
    hits, total = totals[:, :count], totals[:, count : 2 * count] + totals[:, 2 * count :]
    each = np.divide(2 * hits, total, out=np.zeros_like(hits), where=total > 0)
    found = {
        "f1_micro": _interval(_ratio(2 * hits.sum(axis=1), total.sum(axis=1))),
        "f1_macro": _interval(each.mean(axis=1)),
    }
    known = {name: interval for name, interval in found.items() if interval is not None}
    right = answers.right
    return known | {"accuracy": wilson_interval(float(right.mean()), len(right))}


def label_calibration_errors(answers: Answers) -> tuple[float, ...]:
    """Expected calibration error of each label's own probability."""
    columns = zip(answers.probabilities.T, (answers.labels > 0.5).T, strict=True)
    return tuple(expected_calibration_error(stated, there) for stated, there in columns)


# --- values -----------------------------------------------------------------------------------


def value_figures(answers: Answers, names: Sequence[str]) -> tuple[ValueFigures, ...]:
    """Of each target, in its own unit."""
    found, truth = answers.logits.astype(np.float64), answers.labels.astype(np.float64)
    shares, _ = label_scores(answers.logits, answers.labels, "regression", len(names))
    determined, absolute, squared = _by_resample(found, truth)
    error = found - truth
    return tuple(
        ValueFigures(
            name,
            truth=truth[:, i],
            found=found[:, i],
            r2=float(shares[i]),
            mean_absolute_error=float(np.abs(error[:, i]).mean()),
            root_mean_squared_error=float(np.sqrt((error[:, i] ** 2).mean())),
            intervals={
                score: interval
                for score, column in (
                    ("r2", determined[:, i]),
                    ("mean_absolute_error", absolute[:, i]),
                    ("root_mean_squared_error", squared[:, i]),
                )
                if (interval := _interval(column)) is not None
            },
        )
        for i, name in enumerate(names)
    )


def value_intervals(answers: Answers) -> dict[str, Interval]:
    """Of the mean R² over targets, 95 %, by bootstrap."""
    found, truth = answers.logits.astype(np.float64), answers.labels.astype(np.float64)
    interval = _interval(_by_resample(found, truth)[0].mean(axis=1))
    return {} if interval is None else {"r2": interval}


def _by_resample(found: np.ndarray, truth: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """R², mean absolute and root mean squared error of every bootstrap sample, ``[resample,
    target]`` each; R² is not-a-number where the truth of a sample does not vary."""
    count = truth.shape[1]
    centred, error = truth - truth.mean(axis=0), found - truth
    totals = _resampled(np.hstack([error**2, np.abs(error), centred**2, centred])) / len(truth)
    squared, absolute, square, mean = (totals[:, i * count : (i + 1) * count] for i in range(4))
    spread = square - mean**2
    # Rounding leaves something of a spread that is nothing.
    varies = spread > 1e-12 * np.maximum(square, np.finfo(np.float64).tiny)
    determined = 1 - _ratio(squared, np.where(varies, spread, 0.0))
    return determined, absolute, np.sqrt(squared)


def value_agreement(
    mine: Answers, other: Answers, names: Sequence[str]
) -> tuple[ValueAgreement, ...]:
    """How near the values of two models are, target by target."""
    found, theirs = mine.logits.astype(np.float64), other.logits.astype(np.float64)
    return tuple(
        ValueAgreement(
            name,
            distance=float(np.abs(found[:, i] - theirs[:, i]).mean()),
            correlation=correlation(found[:, i], theirs[:, i]),
        )
        for i, name in enumerate(names)
    )


def correlation(left: np.ndarray, right: np.ndarray) -> float | None:
    """Pearson's, of ``[example]`` each; None where either does not vary."""
    one, other = left - left.mean(), right - right.mean()
    scale = math.sqrt(float((one**2).sum()) * float((other**2).sum()))
    return float((one * other).sum()) / scale if scale > 0 else None


def deviations(answers: Answers) -> np.ndarray:
    """Of the true values, float64 ``[target]``; 1 of a target that does not vary."""
    spread = answers.labels.std(axis=0, dtype=np.float64)
    return np.where(spread > 0, spread, 1.0)


# --- bootstrap --------------------------------------------------------------------------------


def _resampled(quantities: np.ndarray) -> np.ndarray:
    """Sums over :data:`RESAMPLES` samples, as large as the split and drawn from it with
    replacement, of what is ``[example, quantity]``: float64 ``[resample, quantity]``."""
    rng, count = np.random.default_rng(SEED), len(quantities)
    wide = quantities.astype(np.float64)
    return np.stack(
        [
            np.bincount(rng.integers(0, count, count), minlength=count) @ wide
            for _ in range(RESAMPLES)
        ]
    )


def _ratio(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    """Not-a-number where it would be divided by nothing."""
    return np.divide(above, below, out=np.full_like(above, np.nan), where=below > 0)


def _interval(found: np.ndarray) -> Interval | None:
    """The middle 95 % of ``[resample]``; None where hardly any of them has a value."""
    known = found[np.isfinite(found)]
    if len(known) < RESAMPLES // 2:
        return None
    low, high = np.percentile(known, [2.5, 97.5])
    return float(low), float(high)
