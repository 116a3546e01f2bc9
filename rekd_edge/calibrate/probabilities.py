"""Temperature scaling and how far probabilities are from what comes true.

Classes share one probability among them (softmax); labels that do not exclude one another have one
each (sigmoid), and one temperature for all.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from rekd_edge.errors import UsageError
from rekd_edge.types import ProblemType

LOWEST_TEMPERATURE, HIGHEST_TEMPERATURE = 0.05, 20.0
"""Beyond these the examples do not say what the temperature is (all right, or all guessed)."""
ECE_BINS = 15
"""Of equal width, as in Guo et al. 2017."""


def softmax(logits: np.ndarray, temperature: float = 1.0) -> np.ndarray:
    """``softmax(logits / temperature)`` over the last axis, in float64."""
    scaled = logits.astype(np.float64) / temperature
    exponents = np.exp(scaled - scaled.max(axis=-1, keepdims=True))
    return exponents / exponents.sum(axis=-1, keepdims=True)


def sigmoid(logits: np.ndarray, temperature: float = 1.0) -> np.ndarray:
    """``1 / (1 + exp(-logits / temperature))``, in float64."""
    return np.exp(-np.logaddexp(0.0, -logits.astype(np.float64) / temperature))


def probabilities_of(
    logits: np.ndarray, problem: ProblemType, temperature: float = 1.0
) -> np.ndarray:
    """float64 ``[example, label]``; of the labels of a multi-label classification each its own.

    Raises :class:`UsageError` for a regression, which has none.
    """
    if problem == "regression":
        raise UsageError("a regression answers with numbers, which are no probabilities")
    several = problem == "multi_label_classification"
    return (sigmoid if several else softmax)(logits, temperature)


def confidence_of(logits: np.ndarray, problem: ProblemType, temperature: float = 1.0) -> np.ndarray:
    """How sure the answer is, float64 ``[example]``: the probability of the class; of several
    labels the least of ``max(p, 1 - p)``, how sure it is of the label that it is least sure of."""
    found = probabilities_of(logits, problem, temperature)
    if problem == "single_label_classification":
        return found.max(axis=1)
    return np.maximum(found, 1 - found).min(axis=1)


def decisions(
    logits: np.ndarray, labels: np.ndarray, problem: ProblemType, temperature: float
) -> tuple[np.ndarray, np.ndarray]:
    """What probabilities are held to: each with whether it came true, float64 and bool
    ``[decision]``. That of each answer's class; of several labels that of every label."""
    found = probabilities_of(logits, problem, temperature)
    if problem == "single_label_classification":
        return found.max(axis=1), logits.argmax(axis=1) == labels
    return found.ravel(), labels.ravel() > 0.5


def negative_log_likelihood(
    logits: np.ndarray,
    labels: np.ndarray,
    temperature: float = 1.0,
    problem: ProblemType = "single_label_classification",
) -> float:
    """Mean over examples (of several labels over all labels of all), in nats."""
    scaled = logits.astype(np.float64) / temperature
    if problem == "multi_label_classification":
        return float(np.logaddexp(0.0, np.where(labels > 0.5, -scaled, scaled)).mean())
    top = scaled.max(axis=1, keepdims=True)
    total = np.log(np.exp(scaled - top).sum(axis=1)) + top[:, 0]
    return float((total - scaled[np.arange(len(labels)), labels]).mean())


def fit_temperature(
    logits: np.ndarray,
    labels: np.ndarray,
    problem: ProblemType = "single_label_classification",
) -> float:
    """The T that makes ``softmax(logits / T)``, or of several labels ``sigmoid(logits / T)``, most
    likely (Guo et al. 2017, section 4.2), within :data:`LOWEST_TEMPERATURE` and
    :data:`HIGHEST_TEMPERATURE`.

    In b = 1/T the negative log-likelihood is convex, and its slope is
    ``mean(E_p(b z)[z] - z_label)``, for several labels ``mean((p(b z) - y) z)``: bisection finds
    the one place where it is 0.
    """
    wide = logits.astype(np.float64)
    if problem == "single_label_classification":
        true = np.eye(wide.shape[1])[labels]
    else:
        true = (labels > 0.5).astype(np.float64)
    own = (true * wide).sum(axis=1)

    def slope(inverse: float) -> float:
        found = probabilities_of(wide, problem, 1 / inverse)
        return float(((found * wide).sum(axis=1) - own).mean())

    low, high = 1 / HIGHEST_TEMPERATURE, 1 / LOWEST_TEMPERATURE
    if slope(high) <= 0:
        return LOWEST_TEMPERATURE
    if slope(low) >= 0:
        return HIGHEST_TEMPERATURE
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if slope(middle) < 0 else (low, middle)
    return 2 / (low + high)


@dataclass(frozen=True, slots=True)
class ReliabilityBin:
    """Answers whose confidence is above ``low`` and at most ``high``; means are None where there
    are none."""

    low: float
    high: float
    count: int
    confidence: float | None
    accuracy: float | None


def reliability(
    confidence: np.ndarray, right: np.ndarray, bins: int = ECE_BINS
) -> tuple[ReliabilityBin, ...]:
    """``confidence`` float ``[example]`` in 0..1, ``right`` bool ``[example]``."""
    edges = np.linspace(0, 1, bins + 1)
    place = np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)
    found = []
    for number in range(bins):
        inside = place == number
        count = int(inside.sum())
        found.append(
            ReliabilityBin(
                low=float(edges[number]),
                high=float(edges[number + 1]),
                count=count,
                confidence=float(confidence[inside].mean()) if count else None,
                accuracy=float(right[inside].mean()) if count else None,
            )
        )
    return tuple(found)


def expected_calibration_error(
    confidence: np.ndarray, right: np.ndarray, bins: int = ECE_BINS
) -> float:
    """``sum_b n_b / n |accuracy_b - confidence_b|`` over bins of equal width
    (Naeini et al. 2015)."""
    total = 0.0
    for one in reliability(confidence, right, bins):
        if one.accuracy is not None and one.confidence is not None:
            total += one.count * abs(one.accuracy - one.confidence)
    return total / len(confidence)
