"""Exactly as :mod:`rekd_edge.selection.topk`, but of whole units: words, sentences, image regions.

``unit`` int64 ``[batch, token]`` says of each token which one is the first of its unit; a token
that can never be selected is a unit of its own. All tokens of a unit carry one score. Units are
ranked by (score, earlier unit), and kept whole in that order for as long as their tokens fit the
budget, which counts tokens: no unit is kept while a better one is dropped. A unit that is longer
than the budget is cut to its first ``budget`` tokens, so the best one always fits
(docs/adr/0033-units.md).

Comparisons of each token with each other one need no scatter and no sorting of units; they cost
O(token^2). ``unit`` None stands for tokens that are units themselves: what is asked for is then
returned as it is.
"""

from __future__ import annotations

import torch
from torch import Tensor

from rekd_edge.selection.topk import keep_top_k, kept_positions, selection_margin


def unit_of_starts(starts: Tensor) -> Tensor:
    """``unit`` of runs of tokens, from bool ``[batch, token]``: where one starts. Token 0 does."""
    order = kept_positions(starts, starts.shape[1])
    return torch.gather(order, 1, torch.cumsum(starts.to(torch.int64), dim=1) - 1)


def of_unit(values: Tensor, unit: Tensor | None) -> Tensor:
    """The value of each unit's first token on all of its tokens, ``[batch, token]``."""
    return values if unit is None else torch.gather(values, 1, unit)


def unit_mean(values: Tensor, unit: Tensor | None) -> Tensor:
    """The mean of each unit's values on all of its tokens, the same to the last bit; float
    ``[batch, token]``. Summed in float32 and without a matrix product, whose inputs some runtimes
    round."""
    if unit is None:
        return values
    same = unit.unsqueeze(2) == unit.unsqueeze(1)
    total = torch.where(same, values.float().unsqueeze(1), 0.0).sum(dim=2)
    return of_unit(total / same.sum(dim=2), unit).to(values.dtype)


def within_budget(unit: Tensor | None, selectable: Tensor, budget: Tensor) -> Tensor:
    """The tokens that a rationale may hold at all, bool ``[batch, token]``: the selectable ones,
    and of a unit longer than ``budget`` int64 ``[batch]`` its first ``budget``."""
    if unit is None:
        return selectable
    place = torch.arange(unit.shape[1], device=unit.device)
    same = unit.unsqueeze(2) == unit.unsqueeze(1)
    before = (same & (place.unsqueeze(0) < place.unsqueeze(1))).sum(dim=2)
    return selectable & (before < budget.unsqueeze(1))


def keep_units(score: Tensor, selectable: Tensor, budget: Tensor, unit: Tensor | None) -> Tensor:
    """The best units whose tokens fit ``budget`` int64 ``[batch]``: bool ``[batch, token]``, at
    most ``budget`` kept, and at least one where one is selectable.

    ``score`` float ``[batch, token]`` without NaN, one value for each unit (:func:`unit_mean`,
    :func:`of_unit`); ``selectable`` bool ``[batch, token]``. Without units, :func:`keep_top_k`.
    """
    if unit is None:
        return keep_top_k(score, selectable, budget)
    allowed = within_budget(unit, selectable, budget)
    return allowed & (_ranked_up_to(score, allowed, unit) <= budget.unsqueeze(1))


def _ranked_up_to(score: Tensor, allowed: Tensor, unit: Tensor) -> Tensor:
    """``allowed`` tokens of all units that rank no lower than the own one, ``[batch, token]``."""
    own, other = score.unsqueeze(2), score.unsqueeze(1)
    earlier = unit.unsqueeze(1) <= unit.unsqueeze(2)
    ahead = (other > own) | ((other == own) & earlier)
    return (ahead & allowed.unsqueeze(1)).sum(dim=2)


def unit_margin(
    score: Tensor, selectable: Tensor, budget: Tensor, unit: Tensor, keep: Tensor
) -> Tensor:
    """How far two scores must move towards each other before ``keep`` of :func:`keep_units`
    changes; ``[batch]``, >= 0, +inf where nothing was dropped.

    Between the last unit kept and the first dropped, which did not fit; or between that one and the
    best that would have fitted into the room that is left, had it come first. The order of the
    units that are kept, and of those that would not fit, does not matter.
    """
    allowed = within_budget(unit, selectable, budget)
    same = (unit.unsqueeze(2) == unit.unsqueeze(1)) & allowed.unsqueeze(1)
    room = budget - keep.sum(dim=1)
    fits = allowed & ~keep & (same.sum(dim=2) <= room.unsqueeze(1))
    dropped = score.masked_fill(keep | ~allowed, -torch.inf).amax(dim=1)
    next_fitting = score.masked_fill(~fits, -torch.inf).amax(dim=1)
    overtaken = (dropped - next_fitting).masked_fill(fits.sum(dim=1) == 0, torch.inf)
    return torch.minimum(selection_margin(score, allowed, keep), overtaken)


def cut_units(selectable: Tensor, unit: Tensor, keep: Tensor) -> Tensor:
    """Which rationales hold a part of a unit, the best being longer than the budget; bool
    ``[batch]``."""
    return (of_unit(keep, unit) & selectable & ~keep).any(dim=1)
