"""Properties of exactly-k selection over integer-valued scores, where ties abound."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rekd_edge.selection import (
    budget_fraction,
    gather_slots,
    keep_constant,
    keep_top_k,
    keep_with_margin,
    kept_positions,
    rationale_budget,
    selection_margin,
    slot_count,
)


@st.composite
def selections(draw: st.DrawFn) -> tuple[torch.Tensor, torch.Tensor, float]:
    count = draw(st.integers(1, 24))
    score = draw(st.lists(st.integers(-3, 3), min_size=count, max_size=count))
    selectable = draw(st.lists(st.booleans(), min_size=count, max_size=count))
    ratio = draw(st.sampled_from([0.05, 0.1, 0.15, 0.2, 0.25, 1 / 3, 0.5, 1.0]))
    return torch.tensor([score], dtype=torch.float32), torch.tensor([selectable]), ratio


@given(selections())
@settings(deadline=None, max_examples=200)
def test_keeps_exactly_the_budget_by_score_then_index(
    selection: tuple[torch.Tensor, torch.Tensor, float],
) -> None:
    score, selectable, ratio = selection
    fraction = budget_fraction(ratio)
    budget = rationale_budget(selectable.sum(dim=1), *fraction)
    keep = keep_top_k(score, selectable, budget)
    # An independent rule: sort by (-score, index), take the first k of the selectable ones.
    order = sorted(np.flatnonzero(selectable[0]), key=lambda i: (-float(score[0, i]), i))
    expected = sorted(int(i) for i in order[: int(budget[0])])
    assert keep[0].nonzero().flatten().tolist() == expected

    slots = slot_count(score.shape[1], *fraction)
    assert torch.equal(keep_top_k(score, selectable, budget, slots=slots), keep)
    index, valid = gather_slots(keep, slots)
    assert index[0][valid[0]].tolist() == expected
    if expected:
        assert set(index[0].tolist()) <= set(expected)


@given(selections())
@settings(deadline=None, max_examples=200)
def test_the_deployed_selection_is_the_trained_one(
    selection: tuple[torch.Tensor, torch.Tensor, float],
) -> None:
    score, selectable, ratio = selection
    fraction = budget_fraction(ratio)
    slots = slot_count(score.shape[1], *fraction)
    budget = rationale_budget(selectable.sum(dim=1), *fraction)
    expected = keep_top_k(score, selectable, budget)
    keep, margin = keep_with_margin(score, selectable, budget.unsqueeze(1), slots=slots)
    assert torch.equal(keep, expected)
    assert torch.equal(margin, selection_margin(score, selectable, expected))
    index, valid = gather_slots(keep, slots)
    assert torch.equal(kept_positions(keep, slots)[valid], index[valid])

    everything = torch.ones_like(selectable)
    expected = keep_top_k(score, everything, torch.tensor([slots]))
    keep, margin = keep_constant(score, slots)
    assert torch.equal(keep, expected)
    assert torch.equal(margin, selection_margin(score, everything, expected))


@given(selections(), st.integers(0, 2**16))
@settings(deadline=None, max_examples=100)
def test_invariant_under_increasing_maps_of_the_scores(
    selection: tuple[torch.Tensor, torch.Tensor, float], shift: int
) -> None:
    score, selectable, ratio = selection
    budget = rationale_budget(selectable.sum(dim=1), *budget_fraction(ratio))
    moved = score * 4 + shift
    assert torch.equal(keep_top_k(score, selectable, budget), keep_top_k(moved, selectable, budget))
