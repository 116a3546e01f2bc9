"""What the answers of each problem type are, and how good they are.

Logits are float ``[example, label]``. Labels are int64 ``[example]`` of a single-label
classification; float ``[example, label]``, 0 or 1, of a multi-label one; float
``[example, target]`` of a regression, whose "logits" are the values themselves.
"""

from __future__ import annotations

import numpy as np

from rekd_edge.types import ProblemType

PRIMARY: dict[ProblemType, str] = {
    "single_label_classification": "accuracy",
    "multi_label_classification": "f1_micro",
    "regression": "r2",
}
"""The score that a model is chosen by and held to; 1 is perfect, higher is better."""


def answers(logits: np.ndarray, problem: ProblemType) -> np.ndarray:
    """The decision: class ``[example]``; bool ``[example, label]``, a probability above one half;
    or the values ``[example, target]``."""
    if problem == "single_label_classification":
        return logits.argmax(axis=1)
    return logits > 0 if problem == "multi_label_classification" else logits


def scores(logits: np.ndarray, labels: np.ndarray, problem: ProblemType) -> dict[str, float]:
    """Every score of a problem type by its name in scikit-learn; the primary one comes first."""
    if problem == "single_label_classification":
        return {"accuracy": float((logits.argmax(axis=1) == labels).mean())}
    truth = labels.astype(np.float64)
    if problem == "multi_label_classification":
        return _multi_label(answers(logits, problem), truth > 0.5)
    return _regression(logits.astype(np.float64), truth)


def _multi_label(found: np.ndarray, truth: np.ndarray) -> dict[str, float]:
    hits = (found & truth).sum(axis=0)
    total = found.sum(axis=0) + truth.sum(axis=0)
    per_label = np.divide(2 * hits, total, out=np.zeros(len(hits)), where=total > 0)
    every = total.sum()
    return {
        "f1_micro": float(2 * hits.sum() / every) if every else 0.0,
        "f1_macro": float(per_label.mean()),
        "accuracy": float((found == truth).all(axis=1).mean()),
    }


def _regression(found: np.ndarray, truth: np.ndarray) -> dict[str, float]:
    """r2 is the mean over targets; of a target without variance it is 0 unless met exactly (1)."""
    residual = ((found - truth) ** 2).sum(axis=0)
    spread = ((truth - truth.mean(axis=0)) ** 2).sum(axis=0)
    share = np.divide(residual, spread, out=np.where(residual > 0, 1.0, 0.0), where=spread > 0)
    error = np.abs(found - truth)
    return {
        "r2": float((1 - share).mean()),
        "mean_absolute_error": float(error.mean()),
        "root_mean_squared_error": float(np.sqrt(((found - truth) ** 2).mean())),
    }
