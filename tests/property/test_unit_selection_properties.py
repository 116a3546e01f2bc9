"""Laws of the selection of whole units, against a slow one that goes through them one by one."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from rekd_edge.models.units import SentenceUnits, WordUnits, region_of_patch
from rekd_edge.selection import (
    Estimator,
    cut_units,
    keep_constant,
    keep_units,
    select_top_k,
    unit_margin,
    unit_mean,
    unit_of_starts,
    within_budget,
)

Units = tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]
"""Score, selectable and unit ``[1, token]``, and a budget ``[1]``."""


@st.composite
def runs(draw: st.DrawFn) -> Units:
    """Runs of tokens with few different scores, special tokens among them."""
    count = draw(st.integers(1, 20))
    flags = st.lists(st.booleans(), min_size=count, max_size=count)
    selectable = torch.tensor([draw(flags)])
    starts = torch.tensor([draw(flags)]) | ~selectable
    starts[:, 0] = True
    starts[:, 1:] |= ~selectable[:, :-1]
    scores = st.integers(-2, 2) | st.integers(-50, 50)
    drawn = draw(st.lists(scores, min_size=count, max_size=count))
    unit = unit_of_starts(starts)
    score = unit_mean(torch.tensor([drawn], dtype=torch.float32), unit)
    most = max(1, int(selectable.sum()))
    return score, selectable, unit, torch.tensor([draw(st.integers(1, most))])


@st.composite
def regions(draw: st.DrawFn) -> Units:
    """Blocks of a patch grid."""
    size = draw(st.integers(2, 3))
    grid = (size * draw(st.integers(1, 3)), size * draw(st.integers(1, 3)))
    unit = region_of_patch(grid, size, torch.device("cpu")).unsqueeze(0)
    count = unit.shape[1]
    drawn = draw(st.lists(st.integers(-3, 3), min_size=count, max_size=count))
    score = unit_mean(torch.tensor([drawn], dtype=torch.float32), unit)
    budget = torch.tensor([draw(st.integers(size * size, count))])
    return score, torch.ones_like(unit, dtype=torch.bool), unit, budget


def one_by_one(units: Units) -> list[int]:
    """The tokens kept, by going through the units in the order of (-score, place)."""
    score, selectable, unit, budget = (tensor[0].numpy() for tensor in units)
    members: dict[int, list[int]] = {}
    for token in np.flatnonzero(selectable):
        members.setdefault(int(unit[token]), []).append(int(token))
    kept: list[int] = []
    for first in sorted(members, key=lambda first: (-score[first], first)):
        tokens = members[first]
        if not kept and len(tokens) > budget:
            return tokens[:budget]
        if len(kept) + len(tokens) > budget:
            break
        kept += tokens
    return sorted(kept)


@given(runs() | regions())
@settings(deadline=None, max_examples=300)
def test_whole_units_in_order_of_rank_while_they_fit(units: Units) -> None:
    score, selectable, unit, budget = units
    keep = keep_units(score, selectable, budget, unit)
    assert keep[0].nonzero().flatten().tolist() == one_by_one(units)
    assert int(keep.sum()) <= int(budget)
    assert bool(keep.any()) == bool(selectable.any())
    is_cut = bool(cut_units(selectable, unit, keep))
    sizes = unit[selectable].unique(return_counts=True)[1]
    assert not is_cut or int(sizes.max()) > int(budget)
    if not is_cut:
        assert bool((keep.gather(1, unit) & selectable == keep).all())


@given(runs(), st.integers(0, 2**16))
@settings(deadline=None, max_examples=300)
def test_smaller_changes_than_the_margin_change_nothing(units: Units, seed: int) -> None:
    score, selectable, unit, budget = units
    keep = keep_units(score, selectable, budget, unit)
    margin = unit_margin(score, selectable, budget, unit, keep)
    allowed = within_budget(unit, selectable, budget)
    if bool((allowed & ~keep).any()):
        assert 0 <= float(margin) < float("inf")
    else:
        assert float(margin) == float("inf")
    assume(float(margin) > 0)
    reach = min(float(margin), 100.0)
    random = torch.rand(score.shape, generator=torch.Generator().manual_seed(seed))
    moved = score + (0.98 * reach * (random - 0.5)).gather(1, unit)
    assert torch.equal(keep_units(moved, selectable, budget, unit), keep)


@given(runs())
@settings(deadline=None, max_examples=300)
def test_a_change_of_the_margin_can_change_the_rationale(units: Units) -> None:
    score, selectable, unit, budget = units
    keep = keep_units(score, selectable, budget, unit)
    margin = unit_margin(score, selectable, budget, unit, keep)
    assume(0 <= float(margin) < float("inf"))
    step = float(margin) * 1.01 + 0.01
    firsts = unit[selectable].unique()
    raised = [torch.where(unit == first, score + step, score) for first in firsts]
    assert any(not torch.equal(keep_units(s, selectable, budget, unit), keep) for s in raised)


@given(regions())
@settings(deadline=None, max_examples=150)
def test_the_deployed_selection_of_regions_is_the_trained_one(units: Units) -> None:
    score, selectable, unit, budget = units
    firsts, region = unit[0].unique(return_inverse=True)
    area = unit.shape[1] // len(firsts)
    keep, margin = keep_constant(score[:, firsts], int(budget) // area)
    expected = keep_units(score, selectable, budget, unit)
    assert torch.equal(keep[:, region], expected)
    assert torch.equal(margin, unit_margin(score, selectable, budget, unit, expected))


@given(runs(), st.sampled_from(["sigmoid", "soft_top_k", "subset_softmax", "perturbed"]))
@settings(deadline=None, max_examples=150)
def test_estimators_weigh_what_is_kept_and_push_units_as_a_whole(
    units: Units, estimator: Estimator
) -> None:
    score, selectable, unit, budget = units
    torch.manual_seed(0)
    own = score.clone().requires_grad_(True)
    weight, keep = select_top_k(estimator, own, selectable, budget, temperature=1.0, unit=unit)
    assert torch.equal(keep, keep_units(score, selectable, budget, unit))
    assert torch.allclose(weight, keep.float(), atol=1e-5)
    (gradient,) = torch.autograd.grad(weight.sum(), own)
    assert bool(gradient.isfinite().all())
    assert not gradient[~selectable].any()


@given(runs())
@settings(deadline=None, max_examples=150)
def test_the_mean_of_a_unit_is_one_number(units: Units) -> None:
    _, _, unit, _ = units
    values = torch.randn(unit.shape, generator=torch.Generator().manual_seed(len(unit[0])))
    mean = unit_mean(values, unit)
    assert torch.equal(mean, mean.gather(1, unit))
    for first in unit.unique():
        own = unit == first
        assert abs(float(mean[own][0]) - float(values[own].double().mean())) < 1e-6


WORDS = ("film", "##s", "'", "t", ".")
SENTENCES = ("film", ".", '"')


@given(st.lists(st.sampled_from(range(len(WORDS))), min_size=1, max_size=12), st.integers(0, 4))
@settings(deadline=None, max_examples=200)
def test_words_as_one_would_join_them_by_hand(ids: list[int], padding: int) -> None:
    content = torch.tensor([ids + [0] * padding])
    selectable = torch.arange(content.shape[1]).unsqueeze(0) < len(ids)
    unit = WordUnits([0, 1, 2, 3, 0])(content, selectable)[0].tolist()
    expected: list[int] = []
    for place, own in enumerate(ids):
        before, after = ids[place - 1 : place], ids[place + 1 : place + 2]
        joins = own == 1 or (own == 2 and after == [3]) or (own == 3 and before == [2])
        expected.append(expected[-1] if joins and expected else place)
    assert unit == expected + list(range(len(ids), content.shape[1]))


@given(st.lists(st.sampled_from(range(len(SENTENCES))), min_size=1, max_size=14))
@settings(deadline=None, max_examples=200)
def test_sentences_as_one_would_cut_them_by_hand(ids: list[int]) -> None:
    content = torch.tensor([ids])
    unit = SentenceUnits([0, 1, 2])(content, torch.ones_like(content, dtype=torch.bool))
    written = "".join("w.c"[own] for own in ids)
    expected, start = [], 0
    for place in range(len(ids)):
        before = written[start:place]
        closed = before.endswith((".", ".c", ".cc"))
        if written[place] == "w" and closed:
            start = place
        expected.append(start)
    assert unit[0].tolist() == expected
