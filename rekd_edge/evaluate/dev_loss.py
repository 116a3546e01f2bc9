"""The development losses by which the published code keeps an epoch (official code of arXiv
2601.22531): means over the batches of a pass in the order of the split."""

from __future__ import annotations

import statistics

from torch.nn import functional as F

from rekd_edge.evaluate.accuracy import Predictions
from rekd_edge.losses import budget_penalty_of_counts

DECIMALS = 3
"""Precision to which the published code compares losses of rationale extraction."""


def classification_loss(predictions: Predictions, *, batch_size: int) -> float:
    """Mean over batches of the mean cross-entropy; the last batch may be smaller."""
    return statistics.fmean(_cross_entropies(predictions, batch_size))


def rationale_extraction_loss(
    predictions: Predictions, *, batch_size: int, rationale_ratio: float, lambda_select: float
) -> float:
    """Mean over batches of CE + lambda_select * L_sel, to :data:`DECIMALS` decimals.

    L_sel is a square of batch means, so it depends on ``batch_size``.
    """
    kept = predictions.kept.double().split(batch_size)
    counted = predictions.counted.double().split(batch_size)
    penalties = [
        float(budget_penalty_of_counts(*pair, rationale_ratio))
        for pair in zip(kept, counted, strict=True)
    ]
    entropies = _cross_entropies(predictions, batch_size)
    losses = [
        entropy + lambda_select * penalty
        for entropy, penalty in zip(entropies, penalties, strict=True)
    ]
    return round(statistics.fmean(losses), DECIMALS)


def _cross_entropies(predictions: Predictions, batch_size: int) -> list[float]:
    batches = zip(
        predictions.logits.split(batch_size), predictions.labels.split(batch_size), strict=True
    )
    return [float(F.cross_entropy(logits, labels)) for logits, labels in batches]
