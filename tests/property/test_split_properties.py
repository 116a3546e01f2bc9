"""Stratified cuts: disjoint, complete, stable, and fair to every class."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from rekd_edge.data.split import stratified_limit, stratified_split

class_counts = st.lists(st.integers(4, 60), min_size=1, max_size=6)
seeds = st.integers(0, 2**32 - 1)
shares = st.floats(0.02, 0.4)


def shuffled_labels(counts: list[int], seed: int) -> np.ndarray:
    labels = np.repeat(np.arange(len(counts)), counts)
    return np.random.default_rng(seed).permutation(labels)


@given(class_counts, shares, shares, seeds, seeds)
def test_split_is_a_fair_partition(
    counts: list[int], dev: float, test: float, order_seed: int, seed: int
) -> None:
    labels = shuffled_labels(counts, order_seed)
    parts = stratified_split(labels, {"test": test, "dev": dev}, rest="train", seed=seed)
    together = np.concatenate(list(parts.values()))
    assert sorted(together) == list(range(len(labels)))
    for name, share in (("test", test), ("dev", dev)):
        assert np.all(np.diff(parts[name]) > 0)
        for label, count in enumerate(counts):
            taken = int((labels[parts[name]] == label).sum())
            assert taken >= 1
            assert abs(taken - share * count) <= 1
    for label in range(len(counts)):
        assert (labels[parts["train"]] == label).any()


@given(class_counts, shares, seeds)
def test_split_depends_on_labels_and_seed_alone(counts: list[int], test: float, seed: int) -> None:
    labels = shuffled_labels(counts, 0)
    first = stratified_split(labels, {"test": test}, rest="train", seed=seed)
    np.random.default_rng().random(7)  # other generators have no say in it
    second = stratified_split(labels.copy(), {"test": test}, rest="train", seed=seed)
    for name in first:
        np.testing.assert_array_equal(first[name], second[name])


@given(class_counts, seeds, st.data())
def test_limit_keeps_class_shares(counts: list[int], seed: int, data: st.DataObject) -> None:
    labels = shuffled_labels(counts, seed)
    limit = data.draw(st.integers(len(counts), len(labels) + 3))
    chosen = stratified_limit(labels, limit, seed=seed)
    assert len(chosen) == min(limit, len(labels))
    assert np.all(np.diff(chosen) > 0)
    for label, count in enumerate(counts):
        taken = int((labels[chosen] == label).sum())
        exact = count * len(chosen) / len(labels)
        assert 1 <= taken <= count
        # A rare class keeps one example even where its share is below; others make room.
        assert taken == 1 or taken - exact < 1
        if min(counts) * limit >= len(labels):
            assert abs(taken - exact) < 1


@given(class_counts, seeds)
def test_another_seed_gives_another_cut(counts: list[int], seed: int) -> None:
    labels = shuffled_labels([count + 40 for count in counts], 1)
    one = stratified_split(labels, {"test": 0.3}, rest="train", seed=seed)
    other = stratified_split(labels, {"test": 0.3}, rest="train", seed=seed + 1)
    assert len(one["test"]) == len(other["test"])
    assert not np.array_equal(one["test"], other["test"])
