"""Exactly-k selection with one tie rule for every runtime.

Runtimes break ties in TopK differently (onnxruntime#19759), but agree on the *values* of the k
best. So the k-th best value is the threshold: what lies above it is kept, and of the tokens that
equal it the earliest fill what room is left. The kept positions are then found by one TopK over
keys that are unique, so no runtime is left a choice (docs/adr/0013-ties-by-threshold.md).
"""

from __future__ import annotations

import torch
from torch import Tensor

LOWEST_SCORE = torch.finfo(torch.float32).min
"""Reported as the score of positions that can never be selected."""


def keep_top_k(
    score: Tensor, selectable: Tensor, budget: Tensor, *, slots: int | None = None
) -> Tensor:
    """The ``budget`` best selectable tokens of each example; ties go to the lower index.

    ``score`` float ``[batch, token]`` without NaN, ``selectable`` bool ``[batch, token]``,
    ``budget`` int64 ``[batch]``, at most ``slots`` where that is given: fewer tokens are then
    sorted. Returns bool ``[batch, token]`` with exactly ``min(budget, selectable)`` kept.
    """
    masked = torch.where(selectable, score, -torch.inf)
    best = torch.topk(masked, score.shape[1] if slots is None else slots, dim=1).values
    last = (budget - 1).clamp(min=0, max=best.shape[1] - 1)
    threshold = torch.gather(best, 1, last.unsqueeze(1))
    above = masked > threshold
    equal = (masked == threshold) & selectable
    room = budget - above.sum(dim=1)
    earliest = torch.cumsum(equal.to(torch.int64), dim=1) <= room.unsqueeze(1)
    return above | (equal & earliest)


def gather_slots(keep: Tensor, slots: int) -> tuple[Tensor, Tensor]:
    """Kept positions in ascending order, in ``slots`` slots.

    Returns ``rationale_index`` int64 ``[batch, slot]`` and ``rationale_valid`` bool
    ``[batch, slot]``. Unused slots point at the first kept position (so that no unselected
    content is even read) and are flagged invalid; with nothing kept they point at 0.
    """
    count = keep.shape[1]
    position = torch.arange(count, device=keep.device)
    # Unique keys: kept tokens score count..1 by position, dropped ones are below zero.
    key = torch.where(keep, count - position, -1 - position).to(torch.float32)
    index = torch.topk(key, slots, dim=1, largest=True, sorted=True).indices
    valid = torch.arange(slots, device=keep.device).unsqueeze(0) < keep.sum(dim=1, keepdim=True)
    first = index[:, :1].expand(-1, slots)
    return torch.where(valid, index, first), valid


def gather_tokens(values: Tensor, index: Tensor) -> Tensor:
    """``values[b, index[b, s]]``: ``[batch, token, ...]`` and int64 ``[batch, slot]`` to
    ``[batch, slot, ...]``."""
    if values.dim() == 2:
        return torch.gather(values, 1, index)
    expanded = index.unsqueeze(2).expand(-1, -1, values.shape[2])
    return torch.gather(values, 1, expanded)


def _extremes(score: Tensor, selectable: Tensor, keep: Tensor) -> tuple[Tensor, Tensor]:
    worst_kept = score.masked_fill(~keep, torch.inf).amin(dim=1)
    best_dropped = score.masked_fill(keep | ~selectable, -torch.inf).amax(dim=1)
    return worst_kept, best_dropped


def selection_margin(score: Tensor, selectable: Tensor, keep: Tensor) -> Tensor:
    """Score of the last kept token minus that of the first dropped one; ``[batch]``, >= 0.

    +inf where nothing was dropped. A small margin marks a rationale that rounding could change.
    """
    worst_kept, best_dropped = _extremes(score, selectable, keep)
    return worst_kept - best_dropped


def selection_threshold(score: Tensor, selectable: Tensor, keep: Tensor) -> Tensor:
    """Midpoint between the last kept and the first dropped score; ``[batch, 1]``, finite.

    Where nothing is dropped (or kept) the threshold lies one unit beyond the extreme score.
    """
    worst_kept, best_dropped = _extremes(score, selectable, keep)
    upper = torch.where(worst_kept.isinf(), best_dropped + 2.0, worst_kept)
    lower = torch.where(best_dropped.isinf(), worst_kept - 2.0, best_dropped)
    middle = (upper + lower) / 2
    return torch.nan_to_num(middle, nan=0.0, posinf=0.0, neginf=0.0).unsqueeze(1)


def straight_through_top_k(
    score: Tensor, selectable: Tensor, budget: Tensor, *, temperature: float
) -> tuple[Tensor, Tensor]:
    """Hard exactly-k selection whose gradient is that of a threshold-centred sigmoid.

    Forward: ``keep`` of :func:`keep_top_k` as 0/1. Backward: d sigmoid((score - t) / temperature)
    with t the detached midpoint between the k-th and (k+1)-th score, so that the surrogate sums
    to about k whatever the scale of the scores.

    Returns float ``[batch, token]`` with gradient, and ``keep`` bool ``[batch, token]``.
    """
    keep = keep_top_k(score.detach(), selectable, budget)
    threshold = selection_threshold(score.detach(), selectable, keep)
    soft = torch.sigmoid((score - threshold) / temperature) * selectable
    hard = keep.to(score.dtype)
    return hard + soft - soft.detach(), keep
