"""How good a model is on a split, under each way of choosing the rationale."""

from rekd_edge.evaluate.accuracy import (
    Predictions,
    SelectionMode,
    evaluate_classifier,
    evaluate_rationalist,
    selection_forward,
)

__all__ = [
    "Predictions",
    "SelectionMode",
    "evaluate_classifier",
    "evaluate_rationalist",
    "selection_forward",
]
