"""How far an artefact's answers are from those of the torch model it was made from.

Rationales are stricter than labels (an int8 toy net kept 98 % of its labels and 66 % of its
masks), so masks are compared as sets, example by example. Logits are compared where both kept
the same rationale: with other evidence another answer is no rounding error, and such examples
are counted on their own. A rationale may differ honestly only where the reference says that its
last kept and first dropped token are nearly tied.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from rekd_edge.problem import Reading, same_answers
from rekd_edge.types import Outputs

LOWEST_SCORE = float(np.finfo(np.float32).min)
"""Score of positions that can never be selected; they are left out of score errors."""
_AS_LOGITS = Reading()


@dataclass(frozen=True, slots=True)
class ExampleDifferences:
    """Per example, ``[example]`` each.

    ``logit_error``, ``score_error`` and ``margin_error`` are largest absolute differences, those of
    logits in the units of :class:`~rekd_edge.problem.Reading`; not-a-number counts as infinite.
    ``mean_logit_error`` is over an example's logits. ``logit_scale`` and ``score_scale`` are the
    reference's largest magnitudes, at least 1: float32 rounds in proportion to them. ``margin`` is
    the reference's selection margin. ``same_label`` is None for a regression. ``same_answer`` says
    of a pair of students that the same one answers, from the same rationale and in the same case;
    it is True of a student alone.
    """

    logit_error: np.ndarray
    mean_logit_error: np.ndarray
    logit_scale: np.ndarray
    score_error: np.ndarray
    score_scale: np.ndarray
    margin_error: np.ndarray
    same_label: np.ndarray | None
    same_rationale: np.ndarray
    same_answer: np.ndarray
    jaccard: np.ndarray
    margin: np.ndarray


@dataclass(frozen=True, slots=True)
class Comparison:
    """Summary over examples.

    ``max_logit_error`` is over examples with the same rationale (and, of a pair of students, the
    same of them answering, which ``rationale_exact`` asks for too), and is also the absolute
    tolerance that would have passed; infinite if there is no such example. Of a regression, whose
    logits are values, all these are over the target's standard deviation; ``mean_value_error`` is
    the mean over all its examples, whatever their rationale, and stands where ``label_agreement``
    stands for a classification: each is None for the other. ``scaled`` errors are
    divided by the example's scale (:class:`ExampleDifferences`), margins by that of the scores.
    ``unexplained_flips`` counts examples whose rationale differs although their margin is above
    ``near_tie_margin`` times the scale of the scores; ``near_ties`` counts those at or below it.
    """

    examples: int
    max_logit_error: float
    mean_logit_error: float
    max_scaled_logit_error: float
    max_score_error: float
    max_scaled_score_error: float
    max_margin_error: float
    max_scaled_margin_error: float
    label_agreement: float | None
    rationale_exact: float
    rationale_jaccard: float
    near_ties: int
    near_tie_margin: float
    unexplained_flips: int
    answer_agreement: float
    mean_value_error: float | None = None

    def to_json(self) -> dict[str, Any]:
        """Without what the problem type does not have."""
        found = asdict(self)
        for name in ("label_agreement", "mean_value_error"):
            if found[name] is None:
                del found[name]
        return found


def differences(
    reference: Outputs, candidate: Outputs, reading: Reading = _AS_LOGITS
) -> ExampleDifferences:
    """Compares two answers to the same batch. Raises ValueError if their shapes differ."""
    for name in ("logits", "rationale_mask", "selection_score", "selection_margin"):
        mine, theirs = getattr(reference, name), getattr(candidate, name)
        if mine.shape != theirs.shape:
            raise ValueError(f"{name} has shape {theirs.shape}, the torch model {mine.shape}")
    if reference.case is not None and candidate.case is None:
        raise ValueError("the file answers as a student alone, the torch model is a pair")
    mine = reading.in_units(reference.logits)
    logit_error = _error(reading.in_units(candidate.logits), mine)
    scored = reference.selection_score > LOWEST_SCORE
    score_difference = np.where(
        scored == (candidate.selection_score > LOWEST_SCORE),
        np.where(scored, _error(candidate.selection_score, reference.selection_score), 0.0),
        np.inf,
    )
    kept, kept_too = reference.rationale_mask, candidate.rationale_mask
    union = (kept | kept_too).sum(axis=1)
    shared = (kept & kept_too).sum(axis=1)
    return ExampleDifferences(
        logit_error=_largest(logit_error),
        mean_logit_error=_finite(logit_error).mean(axis=1),
        logit_scale=_scale(mine),
        score_error=_largest(score_difference),
        score_scale=_scale(np.where(scored, reference.selection_score, 0.0)),
        margin_error=_margin_error(reference.selection_margin, candidate.selection_margin),
        same_label=same_answers(reference.logits, candidate.logits, reading.problem),
        same_rationale=(kept == kept_too).all(axis=1),
        same_answer=_same_answer(reference, candidate),
        jaccard=np.where(union == 0, 1.0, shared / np.maximum(union, 1)),
        margin=reference.selection_margin,
    )


def _same_answer(reference: Outputs, candidate: Outputs) -> np.ndarray:
    if reference.case is None or reference.answer_mask is None:
        return np.ones(len(reference.logits), dtype=bool)
    same_mask = (reference.answer_mask == candidate.answer_mask).all(axis=1)
    return same_mask & (reference.case == candidate.case)


def _error(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Absolute difference in double precision, in which no two float32 overflow."""
    with np.errstate(invalid="ignore"):  # infinity minus itself: not a number, counted as infinite
        return np.abs(left.astype(np.float64) - right.astype(np.float64))


def _scale(values: np.ndarray) -> np.ndarray:
    """Largest magnitude of each example, at least 1; ``[batch]``."""
    return np.maximum(np.abs(values.astype(np.float64)).max(axis=1, initial=0.0), 1.0)


def _finite(difference: np.ndarray) -> np.ndarray:
    """Not-a-number counts as infinite."""
    return np.where(np.isnan(difference), np.inf, difference)


def _largest(difference: np.ndarray) -> np.ndarray:
    return _finite(difference).max(axis=1, initial=0.0).astype(np.float64)


def _margin_error(reference: np.ndarray, candidate: np.ndarray) -> np.ndarray:
    """Infinite margins (nothing was dropped) are equal to each other and to nothing else."""
    both = np.isposinf(reference) & np.isposinf(candidate)
    error = np.where(both, 0.0, _error(candidate, reference))
    return _finite(error).astype(np.float64)


def concatenate(parts: Sequence[ExampleDifferences]) -> ExampleDifferences:
    def joined(name: str) -> np.ndarray | None:
        values = [getattr(part, name) for part in parts]
        return None if values[0] is None else np.concatenate(values)

    fields: Mapping[str, Any] = {name: joined(name) for name in ExampleDifferences.__slots__}
    return ExampleDifferences(**fields)


def summarise(parts: Sequence[ExampleDifferences], *, near_tie_margin: float) -> Comparison:
    """Raises ValueError without any example."""
    if not parts:
        raise ValueError("nothing was compared")
    every = concatenate(parts)
    count = len(every.same_rationale)
    if count == 0:
        raise ValueError("nothing was compared")
    same = every.same_rationale & every.same_answer
    near = every.margin <= near_tie_margin * every.score_scale
    with np.errstate(invalid="ignore"):  # infinite over infinite: not a number, which fails gates
        scaled_logit = every.logit_error / every.logit_scale
        scaled_score = every.score_error / every.score_scale
        scaled_margin = every.margin_error / every.score_scale

    def worst(values: np.ndarray) -> float:
        """Over examples with the same rationale; infinite without any."""
        return float(values[same].max()) if same.any() else float("inf")

    return Comparison(
        examples=count,
        max_logit_error=worst(every.logit_error),
        mean_logit_error=float(every.logit_error[same].mean()) if same.any() else float("inf"),
        max_scaled_logit_error=worst(scaled_logit),
        max_score_error=float(every.score_error.max()),
        max_scaled_score_error=float(scaled_score.max()),
        max_margin_error=worst(every.margin_error),
        max_scaled_margin_error=worst(scaled_margin),
        label_agreement=None if every.same_label is None else float(every.same_label.mean()),
        mean_value_error=(
            float(every.mean_logit_error.mean()) if every.same_label is None else None
        ),
        rationale_exact=float(same.mean()),
        rationale_jaccard=float(every.jaccard.mean()),
        near_ties=int(near.sum()),
        near_tie_margin=near_tie_margin,
        unexplained_flips=int((~every.same_rationale & ~near).sum()),
        answer_agreement=float(every.same_answer.mean()),
    )
