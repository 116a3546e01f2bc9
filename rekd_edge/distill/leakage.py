"""What the positions of a rationale give away, apart from its content.

Both measures learn on one half of the examples and are tested on the other, and the other way
round. A position is counted among an example's selectable tokens, from the first and from the
last one, so that "always the end" is seen in texts of any length.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from rekd_edge.models.problem import Problem, SingleLabel

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


def position_probe(
    keep: Tensor,
    selectable: Tensor,
    labels: Tensor,
    classes: int,
    problem: Problem | None = None,
) -> float:
    """Accuracy, or the primary score of another ``problem`` (0..1), of a linear probe that sees
    only which positions were kept.

    Least squares onto labels (one-hot ones of classes, int64 ``[example]``) with a ridge.
    """
    forms = [_aligned(keep, selectable, from_end=False)]
    if not bool(selectable.all()):
        forms.append(_aligned(keep, selectable, from_end=True))
    mark = torch.cat([form.double() for form in forms], dim=1)
    several = labels.dim() == 2
    target = labels.double() if several else F.one_hot(labels, classes).double()
    answers = torch.zeros_like(target)
    for learn, test in _halves(len(keep)):
        if not bool(learn.any()) or not bool(test.any()):
            return 0.0
        middle, mean = mark[learn].mean(dim=0), target[learn].mean(dim=0)
        centred = mark[learn] - middle
        square = centred.T @ centred + RIDGE * torch.eye(mark.shape[1], dtype=mark.dtype)
        weight = torch.linalg.solve(square, centred.T @ (target[learn] - mean))
        answers[test] = (mark[test] - middle) @ weight + mean
    problem = SingleLabel() if problem is None else problem
    if problem.kind == "multi_label_classification":
        answers = answers - 0.5
    return max(0.0, problem.score(answers, labels))
