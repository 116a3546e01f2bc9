"""Overlap of rationales, and what chance would give."""

from __future__ import annotations

import numpy as np
import pytest

from rekd_edge.evaluate.rationales import Rationales
from rekd_edge.evaluate.stability import chance_jaccard, mean_overlap, overlap


def rationales(*masks: str) -> Rationales:
    keep = [np.asarray([character == "x" for character in text]) for text in masks]
    return Rationales(
        keep=keep,
        score=[np.zeros(len(own)) for own in keep],
        selectable=[np.ones(len(own), dtype=bool) for own in keep],
        labels=np.zeros(len(keep), np.int64),
        predicted=None,
    )


def test_overlap_by_hand() -> None:
    found = overlap(rationales("xx..", "x..."), rationales("x.x.", "x..."))
    assert found.jaccard == pytest.approx((1 / 3 + 1) / 2)
    assert found.exact == 0.5
    # Two of four: shares 0, 1, 2 in 1, 4, 1 of 6 cases. One of four: equal in a quarter.
    assert found.chance_jaccard == pytest.approx(((4 / 6) / 3 + 1 / 6 + 1 / 4) / 2)


def test_mean_over_all_pairs() -> None:
    found = mean_overlap([rationales("x..."), rationales("x..."), rationales(".x..")])
    assert (found.jaccard, found.exact) == pytest.approx((1 / 3, 1 / 3))
    with pytest.raises(ValueError, match="two sets"):
        mean_overlap([rationales("x...")])


def test_chance_is_what_random_subsets_give() -> None:
    rng = np.random.default_rng(0)
    values = []
    for _ in range(4000):
        first, second = set(rng.permutation(12)[:3]), set(rng.permutation(12)[:5])
        values.append(len(first & second) / len(first | second))
    assert chance_jaccard(12, 3, 5) == pytest.approx(np.mean(values), abs=0.01)


def test_other_tokens_are_refused() -> None:
    with pytest.raises(ValueError, match="different tokens"):
        overlap(rationales("x..."), rationales("x.."))
    with pytest.raises(ValueError, match="different tokens"):
        overlap(rationales("x...", "x"), rationales("x..."))
