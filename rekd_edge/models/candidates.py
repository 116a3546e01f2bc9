"""Which positions a selection draws for, counts and compares.

The deployed selection chooses among content tokens alone. The published text code draws for all
positions of an input padded to its full length: ``[CLS]``, ``[SEP]`` and padding included
(arXiv 2601.22531, official code). Padding is drawn for but never attended to.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from rekd_edge.models.encoder import BertEncoder, TokenView
from rekd_edge.models.rationalist import BlockSelector, Rationalist, Scores
from rekd_edge.recipe.form import Masking


@dataclass(frozen=True, slots=True)
class Positions:
    """``special``: ``[CLS]`` and ``[SEP]`` can be dropped or kept. ``padded_length``: texts are
    padded to that many tokens and padding is drawn for and counted. Neither touches images."""

    special: bool = False
    padded_length: int | None = None


ALL_CONTENT = Positions()
"""Content tokens alone, as deployed."""


@dataclass(frozen=True, slots=True)
class Candidates:
    """``logits`` ``[batch, position, 2]`` (drop, keep) and ``counted`` bool ``[batch, position]``,
    where the first ``num_prefix`` positions are the model's own tokens (0 or 1) and the others the
    content tokens of ``scores``."""

    logits: Tensor
    counted: Tensor
    num_prefix: int
    scores: Scores


def candidates(
    model: Rationalist, inputs: Mapping[str, Tensor], positions: Positions
) -> Candidates:
    """Selection logits of every position that ``positions`` asks for."""
    encoder, selector = model.predictor.encoder, model.selector
    is_text = isinstance(encoder, BertEncoder)
    if is_text and positions.padded_length is not None:
        inputs = padded(encoder, inputs, positions.padded_length)
    special = is_text and positions.special
    prefix: Tensor | None = None
    if special:
        if not isinstance(selector, BlockSelector):
            raise ValueError(f"a {type(selector).__name__} does not score special tokens")
        scores, prefix = selector.with_prefix(inputs)
    else:
        scores = selector(inputs)
    view = scores.view
    counted = view.selectable
    if positions.padded_length is not None:
        counted = counted | ~view.attended
    if prefix is None:
        return Candidates(scores.logits, counted, 0, scores)
    counted = counted | view.attended
    always = counted.new_ones(prefix.shape[:2])
    logits = torch.cat([selector.score_hidden(prefix), scores.logits], dim=1)
    return Candidates(logits, torch.cat([always, counted], dim=1), prefix.shape[1], scores)


def padded(encoder: BertEncoder, inputs: Mapping[str, Tensor], length: int) -> dict[str, Tensor]:
    """Text inputs ``[batch, token]`` padded on the right to ``length`` tokens."""
    missing = length - inputs["input_ids"].shape[1]
    if missing <= 0:
        return dict(inputs)
    padding = {"input_ids": int(encoder.backbone.config.pad_token_id or 0)}
    return {
        name: torch.nn.functional.pad(value, (0, missing), value=padding.get(name, 0))
        for name, value in inputs.items()
    }


def classify(
    model: Rationalist, view: TokenView, keep: Tensor, num_prefix: int, masking: Masking
) -> Tensor:
    """Logits ``[batch, class]`` of ``model`` from ``keep`` float ``[batch, position]``, which may
    carry a gradient: by zeroed embeddings, or by excluded keys (content tokens only)."""
    content = keep[:, num_prefix:]
    if masking == "zero":
        return model.classify_zeroed(view, content, keep[:, :num_prefix] if num_prefix else None)
    return model.classify_masked(view, content * view.selectable)
