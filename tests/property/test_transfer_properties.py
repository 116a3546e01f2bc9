"""Laws of carrying values between patch grids and between tokenizers."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from rekd_edge.distill.transfer import (
    area_overlap,
    at_least_half,
    carry_by_area,
    carry_by_span,
    covered_by_span,
)

Spans = list[tuple[int, int]]
grids = st.tuples(st.integers(1, 9), st.integers(1, 9))


@st.composite
def cuttings(draw: st.DrawFn, *, gaps: bool = True) -> Spans:
    """Disjoint spans in order with special tokens, and maybe gaps, between them."""
    spans: Spans = [(0, 0)]
    at = 0
    for length in draw(st.lists(st.integers(1, 6), min_size=1, max_size=12)):
        at += draw(st.integers(0, 3)) if gaps else 0
        spans.append((at, at + length))
        at += length
    return [*spans, *[(0, 0)] * draw(st.integers(0, 2))]


@st.composite
def values_for(draw: st.DrawFn, count: int) -> Tensor:
    numbers = st.lists(st.integers(-1000, 1000), min_size=count, max_size=count)
    return torch.tensor([draw(numbers), draw(numbers)], dtype=torch.float64) / 8


def batched(spans: Spans) -> Tensor:
    return torch.tensor([spans, spans])


def real(spans: Spans) -> Tensor:
    return torch.tensor([end > start for start, end in spans])


@settings(deadline=None)
@given(st.data(), grids, grids)
def test_area_conserves_mass_and_keeps_constants(
    data: st.DataObject, mine: tuple[int, int], other: tuple[int, int]
) -> None:
    values = data.draw(values_for(mine[0] * mine[1]))
    carried = carry_by_area(values, mine, other, "extensive")
    assert carried.shape == (2, other[0] * other[1])
    torch.testing.assert_close(carried.sum(dim=1), values.sum(dim=1))
    level = carry_by_area(torch.full_like(values, 0.7), mine, other, "intensive")
    torch.testing.assert_close(level, torch.full_like(level, 0.7))
    mean = carry_by_area(values, mine, other, "intensive")
    assert bool((mean.amax(dim=1) <= values.amax(dim=1) + 1e-9).all())
    assert bool((mean.amin(dim=1) >= values.amin(dim=1) - 1e-9).all())


@settings(deadline=None)
@given(st.data(), grids, st.sampled_from(["extensive", "intensive"]))
def test_area_is_the_identity_on_equal_grids(
    data: st.DataObject, grid: tuple[int, int], quantity: str
) -> None:
    values = data.draw(values_for(grid[0] * grid[1]))
    carried = carry_by_area(values, grid, grid, quantity)  # type: ignore[arg-type]
    assert torch.equal(carried, values)
    cell = float(grid[0] * grid[1])
    assert torch.equal(area_overlap(grid, grid), cell * torch.eye(int(cell), dtype=torch.float64))


@settings(deadline=None)
@given(st.data(), grids, grids)
def test_there_and_back_on_a_multiple_is_the_identity(
    data: st.DataObject, grid: tuple[int, int], times: tuple[int, int]
) -> None:
    values = data.draw(values_for(grid[0] * grid[1]))
    finer = (grid[0] * times[0], grid[1] * times[1])
    for quantity in ("extensive", "intensive"):
        there = carry_by_area(values, grid, finer, quantity)
        torch.testing.assert_close(carry_by_area(there, finer, grid, quantity), values)


@settings(deadline=None)
@given(st.data(), cuttings(), cuttings())
def test_spans_conserve_mass_and_keep_constants(
    data: st.DataObject, mine: Spans, other: Spans
) -> None:
    values = data.draw(values_for(len(mine)))
    carried = carry_by_span(values, batched(mine), batched(other), "extensive")
    torch.testing.assert_close(carried.sum(dim=1), values[:, real(mine)].sum(dim=1))
    assert bool((carried[:, ~real(other)] == 0).all())
    level = carry_by_span(torch.full_like(values, 0.7), batched(mine), batched(other), "intensive")
    torch.testing.assert_close(level[:, real(other)], torch.full_like(level, 0.7)[:, real(other)])
    assert bool((level[:, ~real(other)] == 0).all())


@settings(deadline=None)
@given(st.data(), cuttings(), st.sampled_from(["extensive", "intensive"]))
def test_spans_are_the_identity_on_equal_tokens(
    data: st.DataObject, spans: Spans, quantity: str
) -> None:
    values = data.draw(values_for(len(spans)))
    carried = carry_by_span(values, batched(spans), batched(spans), quantity)  # type: ignore[arg-type]
    torch.testing.assert_close(carried, values * real(spans))


@settings(deadline=None)
@given(cuttings(), cuttings())
def test_covered_is_symmetric_and_says_who_was_alone(mine: Spans, other: Spans) -> None:
    covered = covered_by_span(batched(mine), batched(other))[0].tolist()
    for (start, end), found in zip(other, covered, strict=True):
        shared = any(max(start, a) < min(end, b) for a, b in mine)
        assert found is shared


@settings(deadline=None)
@given(st.data(), grids, grids)
def test_a_carried_subset_is_never_empty_and_all_stays_all(
    data: st.DataObject, mine: tuple[int, int], other: tuple[int, int]
) -> None:
    count = mine[0] * mine[1]
    kept = data.draw(st.lists(st.booleans(), min_size=count, max_size=count))
    keep = torch.tensor([kept, [True] * count])
    share = carry_by_area(keep.double(), mine, other, "intensive")
    selectable = torch.ones_like(share, dtype=torch.bool)
    carried = at_least_half(share, selectable)
    assert bool(carried.any(dim=1).all())
    assert bool(carried[1].all())
    if carried[0].sum() > 1:
        assert bool((share[0][carried[0]] >= 0.499).all())


def test_autocast_does_not_round_a_share() -> None:
    keep = torch.zeros(1, 9)
    keep[0, :4] = 1.0
    with torch.autocast("cpu", dtype=torch.bfloat16):
        share = carry_by_area(keep, (1, 9), (1, 1), "intensive")
        low = carry_by_area(keep.bfloat16(), (1, 9), (1, 1), "intensive")
    for carried in (share, low):
        torch.testing.assert_close(carried, torch.tensor([[4 / 9]]), atol=1e-6, rtol=0)
