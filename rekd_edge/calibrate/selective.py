"""Answering a part of the questions: what is left to get wrong, and which threshold to set."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from rekd_edge.calibrate.spec import Calibration

COVERAGES_TRIED = 20
"""Evenly spaced shares of the examples at which a risk is looked at."""
CURVE_POINTS = 100


@dataclass(frozen=True, slots=True)
class Refusals:
    """Which answers a runtime withholds, by reason: bool ``[example]`` each."""

    confidence: np.ndarray
    margin: np.ndarray

    @staticmethod
    def of(confidence: np.ndarray, margin: np.ndarray, calibration: Calibration) -> Refusals:
        """``confidence`` at the calibration's temperature, and ``selection_margin``."""
        return Refusals(
            confidence < (calibration.confidence_threshold or 0.0),
            margin < (calibration.margin_threshold or 0.0),
        )

    @property
    def answered(self) -> np.ndarray:
        return ~(self.confidence | self.margin)


@dataclass(frozen=True, slots=True)
class RiskCoverage:
    """Error rate of those answered when the surest are answered first: float ``[distinct score]``
    each, ascending in coverage. ``threshold`` is the score down to which is answered there."""

    coverage: np.ndarray
    risk: np.ndarray
    threshold: np.ndarray

    @property
    def area(self) -> float:
        """Mean risk over all coverages (AURC, Geifman et al. 2019): each example counts the risk at
        the coverage that first takes it in. Low is good; answering in random order gives the error
        rate."""
        return float((np.diff(self.coverage, prepend=0.0) * self.risk).sum())


def risk_coverage(score: np.ndarray, wrong: np.ndarray) -> RiskCoverage:
    """``score`` float ``[example]`` (high is sure; infinite is allowed), ``wrong`` bool
    ``[example]``. Examples of equal score come together: no threshold divides them."""
    order = np.argsort(-score, kind="stable")
    ordered, errors = score[order], np.cumsum(wrong[order])
    last = np.append(ordered[1:] != ordered[:-1], True)
    answered = np.flatnonzero(last) + 1
    return RiskCoverage(
        coverage=answered / len(score),
        risk=errors[last] / answered,
        threshold=ordered[last],
    )


@dataclass(frozen=True, slots=True)
class Curve:
    """Risk-coverage: ``area`` over all of it, ``points`` (coverage, risk) thinned out."""

    area: float
    points: tuple[tuple[float, float], ...]

    @staticmethod
    def of(found: RiskCoverage) -> Curve:
        last = len(found.coverage) - 1
        chosen = np.unique(np.linspace(0, last, min(CURVE_POINTS, last + 1)).round().astype(int))
        points = tuple((float(found.coverage[i]), float(found.risk[i])) for i in chosen)
        return Curve(found.area, points)


def threshold_for_coverage(score: np.ndarray, coverage: float) -> float | None:
    """The highest score down to which at least ``coverage`` of the examples lie. ``-inf`` marks
    examples that are refused anyway; None where too many are."""
    wanted = max(1, math.ceil(round(coverage * len(score), 9)))
    found = float(np.sort(score)[::-1][wanted - 1])
    return None if found == -math.inf else found


@dataclass(frozen=True, slots=True)
class BoundedThreshold:
    """``coverage`` and ``risk`` are those seen; the true risk is above ``bound`` only with the
    chance that was accepted."""

    threshold: float
    coverage: float
    risk: float
    bound: float


def threshold_for_risk(
    score: np.ndarray, wrong: np.ndarray, risk: float, confidence: float
) -> tuple[BoundedThreshold, bool]:
    """The threshold that answers most with an error rate of at most ``risk``, and True; or the one
    that comes nearest to it, and False.

    Chosen among thresholds at :data:`COVERAGES_TRIED` coverages, each held to an upper bound that
    fails with probability ``(1 - confidence) / COVERAGES_TRIED``, so that the choice among them
    does not spoil it (Geifman and El-Yaniv 2017, lemma 3.1, over a grid instead of a search).
    ``-inf`` marks examples that are refused anyway.
    """
    failure = (1 - confidence) / COVERAGES_TRIED
    ordered = np.sort(score)[::-1]
    seen = []
    for number in range(1, COVERAGES_TRIED + 1):
        threshold = float(ordered[math.ceil(number * len(score) / COVERAGES_TRIED) - 1])
        if threshold == -math.inf:
            break
        answered = score >= threshold
        count, errors = int(answered.sum()), int(wrong[answered].sum())
        bound = highest_error_rate(errors, count, failure)
        seen.append(BoundedThreshold(threshold, count / len(score), errors / count, bound))
    held = [one for one in seen if one.bound <= risk]
    if held:
        return max(held, key=lambda one: one.coverage), True
    if not seen:
        return BoundedThreshold(math.inf, 0.0, 0.0, 1.0), False
    return min(seen, key=lambda one: one.bound), False


def highest_error_rate(errors: int, count: int, failure: float) -> float:
    """The rate p at which ``errors`` or fewer of ``count`` come with probability ``failure`` (upper
    Clopper-Pearson bound): the true rate is above it that seldom."""
    if errors >= count:
        return 1.0
    some = np.arange(errors + 1)
    ways = np.asarray(
        [math.lgamma(count + 1) - math.lgamma(k + 1) - math.lgamma(count - k + 1) for k in some]
    )

    def at_most(rate: float) -> float:
        terms = ways + some * math.log(rate) + (count - some) * math.log1p(-rate)
        return float(np.exp(terms).sum())

    low, high = errors / count, 1.0
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (middle, high) if at_most(middle) > failure else (low, middle)
    return high
