"""What the answers of each problem type are, and how good they are.

Logits are float ``[example, label]``. Labels are int64 ``[example]`` of a single-label
classification; float ``[example, label]``, 0 or 1, of a multi-label one; float
``[example, target]`` of a regression, whose "logits" are the values themselves.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from rekd_edge.types import ProblemType

PRIMARY: dict[ProblemType, str] = {
    "single_label_classification": "accuracy",
    "multi_label_classification": "f1_micro",
    "regression": "r2",
}
"""The score that a model is chosen by and held to; 1 is perfect, higher is better."""
SCORE_TITLES: dict[str, str] = {"accuracy": "accuracy", "f1_micro": "micro F1", "r2": "R²"}
"""The primary scores, for people."""
PROBLEM_TITLES: dict[ProblemType, str] = {
    "single_label_classification": "single-label classification",
    "multi_label_classification": "multi-label classification",
    "regression": "regression",
}


def answers(logits: np.ndarray, problem: ProblemType) -> np.ndarray:
    """The decision: class ``[example]``; bool ``[example, label]``, a probability above one half;
    or the values ``[example, target]``."""
    if problem == "single_label_classification":
        return logits.argmax(axis=1)
    return logits > 0 if problem == "multi_label_classification" else logits


def same_answers(left: np.ndarray, right: np.ndarray, problem: ProblemType) -> np.ndarray | None:
    """Whether two sets of logits decide alike, bool ``[example]``: the same class, or every label
    alike. None for a regression: values are near or far, which is for the logits' error to say."""
    if problem == "regression":
        return None
    same = answers(left, problem) == answers(right, problem)
    return same if same.ndim == 1 else same.all(axis=1)


def clear_answers(
    reference: np.ndarray, found: np.ndarray, problem: ProblemType, near: float
) -> np.ndarray:
    """:func:`same_answers` where ``reference`` is not in doubt: bool ``[clear example]``. In doubt
    is what lies within ``near`` of its largest magnitude: the two best classes of each other, a
    label of its boundary. Values are alike within that distance, and never in doubt."""
    reach = near * np.abs(reference).max()
    same = same_answers(reference, found, problem)
    if same is None:
        return (np.abs(found - reference) <= reach).all(axis=1)
    if problem == "multi_label_classification":
        return same[np.abs(reference).min(axis=1) > reach]
    best = np.sort(reference, axis=1)
    return same[best[:, -1] - best[:, -2] > reach]


def uninformed(labels: np.ndarray, problem: ProblemType, count: int) -> np.ndarray:
    """Logits float64 ``[example, label]`` of whoever does not look at the input and always answers
    alike: the commonest class; the commonest labels, as many of them as score best (which of all
    sets is the one with the highest micro F1); or the mean."""
    if problem == "regression":
        return np.broadcast_to(labels.mean(axis=0, dtype=np.float64), labels.shape)
    if problem == "single_label_classification":
        row = np.zeros(count)
        row[np.bincount(labels, minlength=count).argmax()] = 1.0
        return np.broadcast_to(row, (len(labels), count))
    counts = (labels > 0.5).sum(axis=0)
    order = np.argsort(-counts, kind="stable")
    some = np.arange(1, count + 1)
    most = int((2 * counts[order].cumsum() / (len(labels) * some + counts.sum())).argmax()) + 1
    row = np.full(count, -1.0)
    row[order[:most]] = 1.0
    return np.broadcast_to(row, labels.shape)


def penalised(logits: np.ndarray, labels: np.ndarray, problem: ProblemType) -> np.ndarray:
    """The logits of examples that have one that is not finite, replaced by a wrong answer: another
    class, or every label the other way. A regression's are not-a-number, and so is its score."""
    bad = ~np.isfinite(logits).all(axis=1)
    if not bad.any():
        return logits
    found = logits.copy()
    if problem == "regression":
        found[bad] = np.nan
    elif problem == "multi_label_classification":
        found[bad] = np.where(labels[bad] > 0.5, -1.0, 1.0)
    else:
        count = logits.shape[1]
        found[bad] = np.eye(count)[(labels[bad] + 1) % count]
    return found


@dataclass(frozen=True, slots=True)
class Reading:
    """What a row of logits means, where two rows are compared. ``unit`` float ``[label]`` is what
    an error of one is: 1 for a logit, a target's standard deviation for a value, so that bounds on
    errors mean the same for prices and for stars. None stands for 1."""

    problem: ProblemType = "single_label_classification"
    unit: np.ndarray | None = None

    @staticmethod
    def of(problem: ProblemType, labels: np.ndarray) -> Reading:
        """``labels`` are those of the whole split; a target that does not vary has unit 1."""
        if problem != "regression":
            return Reading(problem)
        spread = labels.std(axis=0, dtype=np.float64)
        return Reading(problem, np.where(spread > 0, spread, 1.0))

    def in_units(self, logits: np.ndarray) -> np.ndarray:
        """float64 ``[example, label]``."""
        wide = logits.astype(np.float64)
        return wide if self.unit is None else wide / self.unit


def scores(logits: np.ndarray, labels: np.ndarray, problem: ProblemType) -> dict[str, float]:
    """Every score of a problem type by its name in scikit-learn; the primary one comes first."""
    if problem == "single_label_classification":
        return {"accuracy": float((logits.argmax(axis=1) == labels).mean())}
    truth = labels.astype(np.float64)
    if problem == "multi_label_classification":
        return _multi_label(answers(logits, problem), truth > 0.5)
    return _regression(logits.astype(np.float64), truth)


def label_scores(
    logits: np.ndarray, labels: np.ndarray, problem: ProblemType, count: int
) -> tuple[np.ndarray, np.ndarray]:
    """How good each label's answers are, and how many examples that is about: float64 and int64
    ``[label]``. The share of a class's examples that are answered right (0 without any); a label's
    F1, over the examples that have it; a target's r2, over all."""
    if problem == "single_label_classification":
        right = logits.argmax(axis=1) == labels
        support = np.bincount(labels, minlength=count)
        found = np.bincount(labels, weights=right, minlength=count)
        return found / np.maximum(support, 1), support
    truth = labels.astype(np.float64)
    if problem == "regression":
        share = _unexplained(logits.astype(np.float64), truth)
        return 1 - share, np.full(count, len(labels))
    has = truth > 0.5
    return _f1_of_each(answers(logits, problem), has), has.sum(axis=0)


def _f1_of_each(found: np.ndarray, truth: np.ndarray) -> np.ndarray:
    hits = (found & truth).sum(axis=0)
    total = found.sum(axis=0) + truth.sum(axis=0)
    return np.divide(2 * hits, total, out=np.zeros(len(hits)), where=total > 0)


def _multi_label(found: np.ndarray, truth: np.ndarray) -> dict[str, float]:
    every = found.sum() + truth.sum()
    return {
        "f1_micro": float(2 * (found & truth).sum() / every) if every else 0.0,
        "f1_macro": float(_f1_of_each(found, truth).mean()),
        "accuracy": float((found == truth).all(axis=1).mean()),
    }


def _unexplained(found: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """1 - r2 of each target; of one without variance 1, or 0 where it is met exactly."""
    residual = ((found - truth) ** 2).sum(axis=0)
    spread = ((truth - truth.mean(axis=0)) ** 2).sum(axis=0)
    return np.divide(residual, spread, out=np.where(residual > 0, 1.0, 0.0), where=spread > 0)


def _regression(found: np.ndarray, truth: np.ndarray) -> dict[str, float]:
    """r2 is the mean over targets; of a target without variance it is 0 unless met exactly (1)."""
    error = np.abs(found - truth)
    return {
        "r2": float((1 - _unexplained(found, truth)).mean()),
        "mean_absolute_error": float(error.mean()),
        "root_mean_squared_error": float(np.sqrt(((found - truth) ** 2).mean())),
    }
