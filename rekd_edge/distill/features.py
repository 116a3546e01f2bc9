"""What a predictor knows just before it answers: the input of its head."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor

from rekd_edge.models.rationalist import Predictor


@contextmanager
def pooled_features(predictor: Predictor) -> Iterator[list[Tensor]]:
    """Collects the pooled representation, float ``[batch, channel]`` before dropout, of every pass
    of ``predictor`` inside the block, with its gradient."""
    found: list[Tensor] = []

    def remember(_: Any, inputs: tuple[Tensor, ...]) -> None:
        found.append(inputs[0])

    hook = predictor.dropout.register_forward_pre_hook(remember)
    try:
        yield found
    finally:
        hook.remove()


def patch_grid(predictor: Predictor) -> tuple[int, int] | None:
    """Rows and columns of the patches that a predictor is given; None for text."""
    return getattr(predictor.encoder, "grid", None)
