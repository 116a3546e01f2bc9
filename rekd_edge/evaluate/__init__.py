"""How good a model is on a split, under each way of choosing the rationale."""

from rekd_edge.evaluate.accuracy import (
    DRAWN,
    Predictions,
    SelectionMode,
    evaluate_classifier,
    evaluate_rationalist,
    selection_forward,
)
from rekd_edge.evaluate.dev_loss import classification_loss, rationale_extraction_loss

__all__ = [
    "DRAWN",
    "Predictions",
    "SelectionMode",
    "classification_loss",
    "evaluate_classifier",
    "evaluate_rationalist",
    "rationale_extraction_loss",
    "selection_forward",
]
