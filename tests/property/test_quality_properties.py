"""Laws of the measures of rationales."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from rekd_edge.evaluate.eraser import agreement, runs
from rekd_edge.evaluate.stability import chance_jaccard


@st.composite
def examples(draw: st.DrawFn) -> tuple[list[np.ndarray], list[np.ndarray], list[np.ndarray]]:
    keep, gold, score = [], [], []
    for _ in range(draw(st.integers(1, 4))):
        count = draw(st.integers(1, 20))
        booleans = st.lists(st.booleans(), min_size=count, max_size=count)
        own = np.asarray(draw(booleans))
        marked = np.asarray(draw(booleans))
        marked[draw(st.integers(0, count - 1))] = True
        values = draw(st.lists(st.integers(-3, 3), min_size=count, max_size=count))
        keep.append(own)
        gold.append(marked)
        score.append(np.asarray(values, dtype=np.float64))
    return keep, gold, score


@given(examples())
@settings(deadline=None, max_examples=150)
def test_measures_are_shares_and_perfect_only_for_the_gold(
    sample: tuple[list[np.ndarray], list[np.ndarray], list[np.ndarray]],
) -> None:
    keep, gold, score = sample
    found = agreement(keep, gold, score)
    for f1 in (found.token_micro, found.token_macro, found.iou_micro, found.iou_macro):
        assert 0 <= f1.precision <= 1
        assert 0 <= f1.recall <= 1
        assert 0 <= f1.f1 <= 1
    assert 0 < found.auprc <= 1 + 1e-12
    assert 0 < found.average_precision <= 1 + 1e-12
    equal = all(np.array_equal(k, g) for k, g in zip(keep, gold, strict=True))
    assert (found.token_micro.f1 == 1) == equal
    assert (found.mean_iou == 1) == equal
    perfect = agreement(gold, gold, [one.astype(np.float64) for one in gold])
    assert perfect.iou_micro.f1 == perfect.iou_macro.f1 == perfect.token_macro.f1 == 1
    assert perfect.auprc == perfect.average_precision == 1


@given(examples())
@settings(deadline=None, max_examples=100)
def test_the_areas_depend_on_the_order_of_the_scores_alone(
    sample: tuple[list[np.ndarray], list[np.ndarray], list[np.ndarray]],
) -> None:
    keep, gold, score = sample
    moved = [np.exp(own) * 2 + 1 for own in score]
    assert agreement(keep, gold, score) == agreement(keep, gold, moved)


@given(st.lists(st.booleans(), max_size=30))
def test_runs_give_the_flags_back(values: list[bool]) -> None:
    again = np.zeros(len(values), dtype=bool)
    for start, end in runs(np.asarray(values, dtype=bool)):
        assert start < end
        assert not again[max(0, start - 1) : end].any()
        again[start:end] = True
    assert again.tolist() == values


@given(st.integers(1, 30), st.data())
def test_chance_overlap_is_symmetric_and_one_only_for_everything(
    tokens: int, data: st.DataObject
) -> None:
    first = data.draw(st.integers(1, tokens))
    second = data.draw(st.integers(1, tokens))
    value = chance_jaccard(tokens, first, second)
    assert abs(value - chance_jaccard(tokens, second, first)) < 1e-12
    assert 0 < value <= 1 + 1e-12
    assert (value > 1 - 1e-12) == (first == second == tokens)
