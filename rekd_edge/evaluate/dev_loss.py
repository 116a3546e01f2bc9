"""The development losses by which the published code keeps an epoch (official code of arXiv
2601.22531): means over the batches of a pass in the order of the split."""

from __future__ import annotations

import statistics

from rekd_edge.evaluate.accuracy import Predictions
from rekd_edge.losses import budget_penalty_of_counts

DECIMALS = 3
"""Precision to which the published code compares losses of rationale extraction."""


def classification_loss(predictions: Predictions, *, batch_size: int) -> float:
    """Mean over batches of the mean task loss; the last batch may be smaller."""
    return statistics.fmean(_task_losses(predictions, batch_size))


def rationale_extraction_loss(
    predictions: Predictions, *, batch_size: int, rationale_ratio: float, lambda_select: float
) -> float:
    """Mean over batches of the task's loss + lambda_select * L_sel, to :data:`DECIMALS` decimals.

    L_sel is a square of batch means, so it depends on ``batch_size``.
    """
    kept = predictions.kept.double().split(batch_size)
    counted = predictions.counted.double().split(batch_size)
    penalties = [
        float(budget_penalty_of_counts(*pair, rationale_ratio))
        for pair in zip(kept, counted, strict=True)
    ]
    losses = [
        loss + lambda_select * penalty
        for loss, penalty in zip(_task_losses(predictions, batch_size), penalties, strict=True)
    ]
    return round(statistics.fmean(losses), DECIMALS)


def _task_losses(predictions: Predictions, batch_size: int) -> list[float]:
    batches = zip(
        predictions.logits.split(batch_size), predictions.labels.split(batch_size), strict=True
    )
    task_loss = predictions.problem.task_loss
    return [float(task_loss(logits, labels)) for logits, labels in batches]
