"""Carrying values from one model's tokens to another's, by area (images) or characters (text).

Two kinds of value behave differently:

- *extensive* values add up (how many tokens are kept, the effect of removing one): each token's
  value is shared out over the tokens that it overlaps, and the sum stays what it was;
- *intensive* values are levels (a score, the share that is kept): each token takes the mean of the
  tokens that it overlaps, and a constant stays what it was.

Where both sides cut their input alike (and no two tokens share a character), both are the identity.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

Quantity = Literal["extensive", "intensive"]
Grid = tuple[int, int]
"""Rows and columns."""

HALF = 0.5 - 1e-6
"""Half of a token, less what rounding can take away."""


def carry_by_area(values: Tensor, from_grid: Grid, to_grid: Grid, quantity: Quantity) -> Tensor:
    """``[batch, token]`` (or ``[batch, token, channel]``) on ``from_grid`` to the same on
    ``to_grid``; both grids cover the whole image, row by row.

    Raises:
        ValueError: the token axis is not that of ``from_grid``.
    """
    if values.shape[1] != from_grid[0] * from_grid[1]:
        raise ValueError(f"{values.shape[1]} values are no grid of {from_grid}")
    if from_grid == to_grid:
        return values
    overlap = area_overlap(from_grid, to_grid).to(values.device)
    return _product(_weights(overlap, quantity), values)


def carry_by_span(
    values: Tensor, from_spans: Tensor, to_spans: Tensor, quantity: Quantity
) -> Tensor:
    """``[batch, token]`` (or ``[batch, token, channel]``) on tokens with ``from_spans`` int64
    ``[batch, token, 2]`` (first character, and one past the last) to tokens with ``to_spans``.

    A token without characters (special tokens, padding) gives and gets nothing. One that overlaps
    no token of the other side gives to, or takes from, the nearest one (the first of several), so
    that nothing is lost where the other side has any character; :func:`covered_by_span` tells
    which tokens those are.
    """
    overlap = span_overlap(from_spans, to_spans)
    gives, gets = _has_characters(from_spans), _has_characters(to_spans)
    distance = _distance(from_spans, to_spans)
    if quantity == "extensive":
        lonely = gives & (overlap.sum(dim=1) == 0)
        overlap = overlap + _nearest(distance, gets.unsqueeze(2), 1) * lonely.unsqueeze(1)
    else:
        lonely = gets & (overlap.sum(dim=2) == 0)
        overlap = overlap + _nearest(distance, gives.unsqueeze(1), 2) * lonely.unsqueeze(2)
    return _product(_weights(overlap.double(), quantity), values)


def covered_by_span(from_spans: Tensor, to_spans: Tensor) -> Tensor:
    """Which tokens of ``to_spans`` share a character with one of ``from_spans``; bool
    ``[batch, token]``."""
    return span_overlap(from_spans, to_spans).sum(dim=2) > 0


def at_least_half(share: Tensor, selectable: Tensor) -> Tensor:
    """The selectable tokens of which at least half is kept; where there is none, the one with the
    largest share (the first of several). ``share`` float and ``selectable`` bool
    ``[batch, token]``; bool ``[batch, token]``, empty only where nothing is selectable."""
    keep = (share >= HALF) & selectable
    best = share.masked_fill(~selectable, -torch.inf).argmax(dim=1, keepdim=True)
    only = torch.zeros_like(keep).scatter(1, best, True) & selectable
    return torch.where(keep.any(dim=1, keepdim=True), keep, only)


def area_overlap(from_grid: Grid, to_grid: Grid) -> Tensor:
    """Area that each pair of cells shares, float64 ``[to token, from token]``; the image has area
    ``rows * columns`` of both grids multiplied, so that every entry is a whole number."""
    rows = _line_overlap(from_grid[0], to_grid[0])
    columns = _line_overlap(from_grid[1], to_grid[1])
    return torch.kron(rows, columns)


def _line_overlap(from_count: int, to_count: int) -> Tensor:
    start = torch.arange(from_count, dtype=torch.float64) * to_count
    other = torch.arange(to_count, dtype=torch.float64).unsqueeze(1) * from_count
    last = torch.minimum(start + to_count, other + from_count)
    return (last - torch.maximum(start, other)).clamp_min(0)


def span_overlap(from_spans: Tensor, to_spans: Tensor) -> Tensor:
    """Characters that each pair of tokens shares, int64 ``[batch, to token, from token]``."""
    mine, other = to_spans.unsqueeze(2), from_spans.unsqueeze(1)
    last = torch.minimum(mine[..., 1], other[..., 1])
    return (last - torch.maximum(mine[..., 0], other[..., 0])).clamp_min(0)


def _has_characters(spans: Tensor) -> Tensor:
    return spans[..., 1] > spans[..., 0]


def _distance(from_spans: Tensor, to_spans: Tensor) -> Tensor:
    """Characters between two tokens, int64 ``[batch, to token, from token]``."""
    mine, other = to_spans.unsqueeze(2), from_spans.unsqueeze(1)
    gap = torch.maximum(mine[..., 0] - other[..., 1], other[..., 0] - mine[..., 1])
    return gap.clamp_min(0)


def _nearest(distance: Tensor, allowed: Tensor, dim: int) -> Tensor:
    """1 at the nearest allowed token along ``dim``, all 0 where none is allowed; int64."""
    far = torch.iinfo(distance.dtype).max
    distance = distance.masked_fill(~allowed, far)
    position = torch.arange(distance.shape[dim], device=distance.device)
    shape = [-1 if axis == dim else 1 for axis in range(3)]
    nearest = distance.argmin(dim=dim, keepdim=True) == position.view(shape)
    return (nearest & allowed).to(distance.dtype)


def _weights(overlap: Tensor, quantity: Quantity) -> Tensor:
    """An overlap ``[..., to, from]`` whose columns (extensive) or rows (intensive) sum to 1."""
    total = overlap.sum(dim=-2 if quantity == "extensive" else -1, keepdim=True)
    return overlap / total.clamp_min(1)


def _product(weights: Tensor, values: Tensor) -> Tensor:
    """``weights @ values`` along the token axis, in float32 at least, whatever autocast says: a
    rounded share would fall on the wrong side of a half."""
    dtype = torch.promote_types(values.dtype, torch.float32)
    weights, wide = weights.to(dtype), values.to(dtype)
    with torch.autocast(values.device.type, enabled=False):
        if values.dim() == 2:
            return (weights @ wide.unsqueeze(2)).squeeze(2)
        return weights @ wide
