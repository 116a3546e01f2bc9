"""Exactly-k selection with one tie rule for every runtime.

Runtimes break ties in TopK differently (onnxruntime#19759), but agree on the *values* of the k
best. So the k-th best value is the threshold: what lies above it is kept, and of the tokens that
equal it the earliest fill what room is left. The kept positions are then found by one TopK over
keys that are unique, so no runtime is left a choice (docs/adr/0013-ties-by-threshold.md).
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

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
    return _keep_from(masked, selectable, budget.unsqueeze(1), threshold)


def keep_with_margin(
    score: Tensor, selectable: Tensor, budget: Tensor, *, slots: int
) -> tuple[Tensor, Tensor]:
    """:func:`keep_top_k` and :func:`selection_margin` from one sorted list, in few operations: for
    deployed models.

    ``budget`` int64 ``[batch, 1]``, at most ``slots`` and at most what is selectable.
    """
    masked = torch.where(selectable, score, -torch.inf)
    best = torch.topk(F.pad(masked, (0, 1), value=-torch.inf), slots + 1, dim=1).values
    threshold = torch.gather(best, 1, (budget - 1).clamp(min=0))
    keep = _keep_from(masked, selectable, budget, threshold, deployed=True)
    gap = threshold - torch.gather(best, 1, budget)
    complete = selectable.sum(dim=1, keepdim=True) <= budget
    return keep, gap.masked_fill(complete, torch.inf).squeeze(1)


def keep_constant(score: Tensor, budget: int) -> tuple[Tensor, Tensor]:
    """:func:`keep_with_margin` where every token is selectable and every budget the same."""
    everything = budget == score.shape[1]
    best = torch.topk(score, budget if everything else budget + 1, dim=1).values
    threshold = best[:, budget - 1 : budget]
    keep = _keep_from(score, None, budget, threshold, deployed=True)
    if everything:
        return keep, torch.full_like(best[:, 0], torch.inf)
    return keep, (threshold - best[:, budget:]).squeeze(1)


def _keep_from(
    masked: Tensor,
    selectable: Tensor | None,
    budget: Tensor | int,
    threshold: Tensor,
    *,
    deployed: bool = False,
) -> Tensor:
    """All above the ``threshold`` ``[batch, 1]``, and the earliest that equal it up to the
    ``budget``, ``[batch, 1]`` or one for all. ``deployed`` models count in float32, exact to 2^24:
    TensorRT before 10.8 has running sums of nothing else; training counts in int64, whose sums a
    GPU adds in a fixed order."""
    above = masked > threshold
    equal = masked == threshold
    if selectable is not None:
        equal = equal & selectable
    room = budget - above.sum(dim=1, keepdim=True)
    count = torch.cumsum(equal.to(torch.float32 if deployed else torch.int64), dim=1)
    return above | (equal & (count <= room))


def gather_slots(keep: Tensor, slots: int) -> tuple[Tensor, Tensor]:
    """Kept positions in ascending order, in ``slots`` slots.

    Returns ``rationale_index`` int64 ``[batch, slot]`` and ``rationale_valid`` bool
    ``[batch, slot]``. Unused slots point at the first kept position (so that no unselected
    content is even read) and are flagged invalid; with nothing kept they point at 0.
    """
    index = kept_positions(keep, slots)
    valid = torch.arange(slots, device=keep.device).unsqueeze(0) < keep.sum(dim=1, keepdim=True)
    return torch.where(valid, index, index[:, :1]), valid


def kept_positions(keep: Tensor, slots: int) -> Tensor:
    """Kept positions in ascending order, then the others: int64 ``[batch, slot]``."""
    count = keep.shape[1]
    # Unique keys: kept tokens score count..1 by position, dropped ones zero or less.
    key = torch.arange(count, 0, -1, dtype=torch.float32, device=keep.device)
    # The first key is the count, on the device of the keys: ONNX Runtime computes sizes on the CPU,
    # and a CUDA graph can hold no copy from there.
    return torch.topk(torch.where(keep, key, key - key[0]), slots, dim=1).indices


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
    return hard + (soft - soft.detach()), keep
