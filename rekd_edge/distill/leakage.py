"""What the positions of a rationale give away, apart from its content.

Both measures learn on one half of the examples and are tested on the other, and the other way
round. A position is counted among an example's selectable tokens, from the first and from the
last one, so that "always the end" is seen in texts of any length.
"""

from __future__ import annotations

import torch
from torch import Tensor

RIDGE = 10.0
"""Penalty of the probe's least squares, in examples."""


def _aligned(keep: Tensor, selectable: Tensor, *, from_end: bool) -> Tensor:
    """``keep`` with column r holding an example's r-th selectable token; bool
    ``[example, rank]``."""
    rank = selectable.cumsum(dim=1) - 1
    if from_end:
        rank = selectable.sum(dim=1, keepdim=True) - 1 - rank
    row, column = (keep & selectable).nonzero(as_tuple=True)
    aligned = torch.zeros_like(keep)
    aligned[row, rank[row, column]] = True
    return aligned


def _halves(count: int) -> list[tuple[Tensor, Tensor]]:
    """(learn on, test on), twice."""
    even = torch.arange(count) % 2 == 0
    return [(even, ~even), (~even, even)]


def position_overlap(keep: Tensor, selectable: Tensor) -> float:
    """How much of each rationale is foretold by how often positions are kept in other examples.

    Bool ``[example, token]`` each. 1: every example keeps the same positions; 0: no better than
    chance; 0 too where nothing could be dropped.
    """
    count = selectable.sum(dim=1)
    kept_ratio = float(keep.sum() / count.sum().clamp_min(1))
    if len(keep) < 2 or kept_ratio > 0.99:
        return 0.0
    there = torch.arange(keep.shape[1]) < count.unsqueeze(1)
    best = 0.0
    for from_end in (False, True):
        aligned = _aligned(keep, selectable, from_end=from_end)
        hit = 0
        for learn, test in _halves(len(keep)):
            often = aligned[learn].sum(dim=0) / there[learn].sum(dim=0).clamp_min(1)
            order = often.expand_as(there[test]).masked_fill(~there[test], -1.0)
            rank = order.argsort(dim=1, descending=True, stable=True).argsort(dim=1)
            foretold = rank < aligned[test].sum(dim=1, keepdim=True)
            hit += int((foretold & aligned[test]).sum())
        best = max(best, hit / max(1, int(keep.sum())))
    return max(0.0, (best - kept_ratio) / (1 - kept_ratio))


def position_probe(keep: Tensor, selectable: Tensor, labels: Tensor, classes: int) -> float:
    """Accuracy (0..1) of a linear probe that sees only which positions were kept.

    Least squares onto one-hot labels with a ridge; ``labels`` int64 ``[example]``.
    """
    forms = [_aligned(keep, selectable, from_end=False)]
    if not bool(selectable.all()):
        forms.append(_aligned(keep, selectable, from_end=True))
    mark = torch.cat([form.double() for form in forms], dim=1)
    target = torch.nn.functional.one_hot(labels, classes).double()
    right = 0
    for learn, test in _halves(len(keep)):
        if not bool(learn.any()) or not bool(test.any()):
            return 0.0
        middle, mean = mark[learn].mean(dim=0), target[learn].mean(dim=0)
        centred = mark[learn] - middle
        square = centred.T @ centred + RIDGE * torch.eye(mark.shape[1], dtype=mark.dtype)
        weight = torch.linalg.solve(square, centred.T @ (target[learn] - mean))
        answer = ((mark[test] - middle) @ weight + mean).argmax(dim=1)
        right += int((answer == labels[test]).sum())
    return right / len(keep)
