"""How much each token matters to a predictor that was trained on random subsets.

Attributions explain one class of each example by its logit margin (that class's logit minus the
mean of the others). On training data this is the label, or the class that the predictor itself
predicts on the full input. Of several labels it is the mean logit of those that are there minus
that of the others, of a regression the value with either sign (:mod:`rekd_edge.models.problem`).
The predictor's parameters get no gradient.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor
from torch.nn import functional as F

from rekd_edge.models.encoder import TokenView
from rekd_edge.models.problem import Problem
from rekd_edge.models.rationalist import Predictor
from rekd_edge.types import Batch

AttributionSource = Callable[[Batch], Tensor]
"""The attribution of each content token of a batch, float ``[batch, token]``, 0 elsewhere."""


def mask_gradient(
    predictor: Predictor,
    view: TokenView,
    explained: Tensor | None = None,
    present: Tensor | None = None,
) -> Tensor:
    """d margin / d key weight of each token at the full input; float ``[batch, token]``.

    The key weight of a token is the factor with which every attention (and the pooling) counts
    it, so this is the first-order effect of removing the token: one forward and one backward
    pass an example, whatever its length. ``explained`` int64 ``[batch]``; None takes the
    predicted class. ``present`` bool ``[batch, token]`` is the full input; None: ``selectable``.
    """
    with torch.enable_grad():
        whole = view.selectable if present is None else present
        weight = whole.to(torch.float32).requires_grad_(True)
        logits = predictor(view.content, view.position, weight)
        return _effect_of(predictor.problem, logits, weight, explained) * view.selectable


def gradient_x_input(
    predictor: Predictor,
    view: TokenView,
    explained: Tensor | None = None,
    present: Tensor | None = None,
) -> Tensor:
    """Sum over channels of (d margin / d e) * e, where e is what stands for the token itself: its
    word embedding, patch embedding, or (convolutional networks) pixels; float ``[batch, token]``.

    e enters the network times a scale of 1, and the derivative with respect to that scale is this
    sum. Arguments as in :func:`mask_gradient`.
    """
    with torch.enable_grad():
        whole = view.selectable if present is None else present
        scale = torch.ones_like(whole, dtype=torch.float32).requires_grad_(True)
        logits = predictor(view.content, view.position, whole, scale)
        return _effect_of(predictor.problem, logits, scale, explained) * view.selectable


def _effect_of(
    problem: Problem, logits: Tensor, factor: Tensor, explained: Tensor | None
) -> Tensor:
    target = problem.decision(logits.detach()) if explained is None else explained
    quantities = problem.quantities(logits, target)
    gradients = [
        torch.autograd.grad(quantity.sum(), factor, retain_graph=number < len(quantities))[0]
        for number, quantity in enumerate(quantities, start=1)
    ]
    return problem.contribution(gradients)


@torch.no_grad()
def occlusion(
    predictor: Predictor, view: TokenView, explained: Tensor | None = None, *, chunk: int = 512
) -> Tensor:
    """Drop of the margin when one token is excluded; float ``[batch, token]``.

    One forward pass a token, ``chunk`` sequences at a time. ``explained`` as in
    :func:`mask_gradient`.
    """
    batch, count = view.selectable.shape
    problem = predictor.problem
    logits = predictor(view.content, view.position, view.selectable)
    target = problem.decision(logits) if explained is None else explained
    example, token = view.selectable.nonzero(as_tuple=True)
    drop = torch.zeros(batch, count, device=logits.device)
    full = problem.quantities(logits, target)
    for start in range(0, len(example), chunk):
        row, column = example[start : start + chunk], token[start : start + chunk]
        keep = view.selectable[row].clone()
        keep[torch.arange(len(row), device=row.device), column] = False
        without = predictor(view.content[row], view.position[row], keep)
        left = problem.quantities(without, target[row])
        effects = [all_of[row] - one for all_of, one in zip(full, left, strict=True)]
        drop[row, column] = problem.contribution(effects).to(drop.dtype)
    return drop


def normalise_attribution(attribution: Tensor, selectable: Tensor) -> Tensor:
    """Divides by the root mean square over each example's selectable tokens."""
    kept = attribution * selectable
    count = selectable.sum(dim=1, keepdim=True).clamp_min(1)
    scale = (kept.pow(2).sum(dim=1, keepdim=True) / count).sqrt()
    return kept / scale.clamp_min(1e-6)


def centre(score: Tensor, selectable: Tensor) -> Tensor:
    """Subtracts the mean over each example's selectable tokens; 0 elsewhere."""
    count = selectable.sum(dim=1, keepdim=True).clamp_min(1)
    mean = (score * selectable).sum(dim=1, keepdim=True) / count
    return (score - mean) * selectable


class CachedAttributions:
    """Attributions of a whole split, computed at the first request and looked up afterwards.

    They are computed in the loader's fixed order, so a resumed run sees the same numbers as an
    uninterrupted one (rounding depends on what a batch is padded to).
    """

    def __init__(self, compute: AttributionSource, make_loader: Callable[[], Iterable[Batch]]):
        self._compute = compute
        self._make_loader = make_loader
        self._table = RowTable()

    def __call__(self, batch: Batch) -> Tensor:
        if self._table.is_empty:
            for each in self._make_loader():
                self._table.add(each.index, self._compute(each))
        return self._table.rows(batch.index, content_width(batch))


def content_width(batch: Batch) -> int | None:
    """Content tokens on the token axis of a text batch; None for images, where all are equal."""
    ids = batch.inputs.get("input_ids")
    return None if ids is None else ids.shape[1] - 1


class RowTable:
    """One row for each example of a split, added batch by batch and looked up together."""

    def __init__(self) -> None:
        self._parts: list[tuple[Tensor, Tensor]] = []
        self._table: Tensor | None = None

    @property
    def is_empty(self) -> bool:
        return not self._parts and self._table is None

    def add(self, index: Tensor, rows: Tensor) -> None:
        """``rows`` ``[row, value]`` of the examples at ``index`` int64 ``[row]``."""
        self._parts.append((index, rows))

    def rows(self, index: Tensor, width: int | None) -> Tensor:
        """The rows at ``index``, cut or padded with zeros to ``width`` values."""
        table = self._joined()
        found = table[index.to(table.device, non_blocking=True)]
        if width is None:
            return found
        found = found[:, :width]
        return F.pad(found, (0, width - found.shape[1]))

    def _joined(self) -> Tensor:
        if self._table is None:
            first = self._parts[0][1]
            count = 1 + max(int(index.max()) for index, _ in self._parts)
            width = max(rows.shape[1] for _, rows in self._parts)
            self._table = first.new_zeros((count, width))
            for index, rows in self._parts:
                self._table[index.to(first.device), : rows.shape[1]] = rows
            self._parts.clear()
        return self._table
