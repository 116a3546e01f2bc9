"""From a file's answers to the development split to temperature and thresholds."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from rekd_edge.calibrate.answers import Answers
from rekd_edge.calibrate.probabilities import confidence_of, fit_temperature
from rekd_edge.calibrate.selective import (
    COVERAGES_TRIED,
    BoundedThreshold,
    Refusals,
    highest_error_rate,
    threshold_for_coverage,
    threshold_for_risk,
)
from rekd_edge.calibrate.spec import AbstentionSpec, Calibration
from rekd_edge.errors import GateError, UsageError

FEWEST_EXAMPLES = 100
"""Below, a temperature and a threshold say more of chance than of the model."""


@dataclass(frozen=True, slots=True)
class Fitted:
    """``promises`` are the risks asked for, ``risk`` and ``rationale_risk``, as seen and bounded
    on the development split."""

    calibration: Calibration
    promises: dict[str, BoundedThreshold]


def require_enough(count: int) -> None:
    """Raises :class:`UsageError` for a development split of fewer than :data:`FEWEST_EXAMPLES`."""
    if count < FEWEST_EXAMPLES:
        raise UsageError(
            f"calibration needs {FEWEST_EXAMPLES} examples in the development split, "
            f"it has {count}",
            hint="raise data.split.dev or data.limit.dev in the recipe and train again",
        )


def calibrate(
    dev: Answers, asked: AbstentionSpec | None = None, reference: Answers | None = None
) -> Fitted:
    """Temperature from all of ``dev``, thresholds as ``asked``. ``reference`` are the torch model's
    answers to the same examples, needed for `rationale_risk`.

    Margins are held to their threshold first, then confidence among the rest. What answers all
    of ``dev`` is no threshold. The promise of `rationale_risk` is about those whom both thresholds
    answer. Raises :class:`UsageError` for too few examples, and
    :class:`GateError` where what was asked cannot be had.
    """
    require_enough(len(dev))
    temperature = fit_temperature(dev.logits, dev.labels, dev.problem)
    confidence = confidence_of(dev.logits, dev.problem, temperature)
    promises: dict[str, BoundedThreshold] = {}
    margin_threshold: float | None = None
    changed: np.ndarray | None = None
    if asked is not None and asked.rationale_risk is not None:
        if reference is None:
            raise UsageError("rationale_risk needs the torch model's rationales")
        changed = dev.other_rationale(reference)
        found, holds = threshold_for_risk(
            dev.margin, changed, asked.rationale_risk, asked.confidence
        )
        if not holds:
            raise _not_to_be_had("rationale_risk", asked.rationale_risk, found, len(dev))
        promises["rationale_risk"] = found
        margin_threshold = _threshold(found.threshold, dev.margin)
    refused = np.zeros(len(dev), dtype=bool)
    if margin_threshold is not None:
        refused = dev.margin < margin_threshold
    score = np.where(refused, -np.inf, confidence)
    lowest: float | None = None
    if asked is not None and asked.coverage is not None:
        lowest = threshold_for_coverage(score, asked.coverage)
        if lowest is None:
            share = 1 - float(refused.mean())
            raise GateError(
                f"rationale_risk {asked.rationale_risk:g} leaves {share:.3f} of the development "
                f"split to be answered, and coverage {asked.coverage:g} was asked for",
                hint="ask for less coverage, or accept more rationale_risk",
            )
    elif asked is not None and asked.risk is not None:
        found, holds = threshold_for_risk(score, ~dev.right, asked.risk, asked.confidence)
        if not holds:
            raise _not_to_be_had("risk", asked.risk, found, len(dev))
        promises["risk"] = found
        lowest = found.threshold
    calibration = Calibration(
        temperature=temperature,
        confidence_threshold=None if lowest is None else _threshold(lowest, confidence),
        margin_threshold=margin_threshold,
        asked=asked,
        examples=len(dev),
    )
    if changed is not None and asked is not None and asked.rationale_risk is not None:
        answered = Refusals.of(confidence, dev.margin, calibration).answered
        threshold = promises["rationale_risk"].threshold
        seen = _seen(changed, answered, threshold, (1 - asked.confidence) / COVERAGES_TRIED)
        if seen.bound > asked.rationale_risk:
            raise _not_to_be_had("rationale_risk", asked.rationale_risk, seen, len(dev))
        promises["rationale_risk"] = seen
    return Fitted(calibration, promises)


def _seen(
    wrong: np.ndarray, answered: np.ndarray, threshold: float, failure: float
) -> BoundedThreshold:
    """``wrong`` and ``answered`` are bool ``[example]``."""
    count, errors = int(answered.sum()), int(wrong[answered].sum())
    bound = highest_error_rate(errors, count, failure)
    return BoundedThreshold(threshold, count / len(answered), errors / count, bound)


def _threshold(lowest: float, score: np.ndarray) -> float | None:
    """``lowest``, or None where it refuses nothing. An infinite one (a margin where nothing was
    dropped) becomes the next number above the finite scores."""
    if lowest <= float(score.min()):
        return None
    if lowest == np.inf:
        return float(np.nextafter(score[np.isfinite(score)].max(), np.inf, dtype=np.float64))
    return lowest


def _not_to_be_had(name: str, wanted: float, nearest: BoundedThreshold, count: int) -> GateError:
    return GateError(
        f"{name} {wanted:g} cannot be promised from {count} examples of the development split: the "
        f"nearest is at most {nearest.bound:.3g} (seen {nearest.risk:.3g}) when "
        f"{nearest.coverage:.3f} are answered",
        hint=f"accept more {name}, less confidence, or give more development examples",
    )
