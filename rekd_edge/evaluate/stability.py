"""How much rationales change when something changes that should not matter: a seed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from math import comb

import numpy as np

from rekd_edge.evaluate.rationales import Rationales


@dataclass(frozen=True, slots=True)
class Overlap:
    """Means over examples: ``jaccard`` of the kept tokens (shared over joined), the share of
    examples whose rationales are ``exact``-ly equal, and ``chance_jaccard``, the expected Jaccard
    of two random rationales of the same sizes."""

    jaccard: float
    exact: float
    chance_jaccard: float
    examples: int


def overlap(first: Rationales, second: Rationales) -> Overlap:
    """Overlap of two models' rationales of one split.

    Raises:
        ValueError: the two are not about the same tokens.
    """
    if len(first) != len(second) or not all(
        np.array_equal(one, other)
        for one, other in zip(first.selectable, second.selectable, strict=True)
    ):
        raise ValueError("the rationales are about different tokens")
    jaccard, exact, chance = [], [], []
    for one, other in zip(first.masks(), second.masks(), strict=True):
        joined = int((one | other).sum())
        jaccard.append(int((one & other).sum()) / joined if joined else 1.0)
        exact.append(bool(np.array_equal(one, other)))
        chance.append(chance_jaccard(len(one), int(one.sum()), int(other.sum())))
    return Overlap(
        float(np.mean(jaccard)), float(np.mean(exact)), float(np.mean(chance)), len(first)
    )


def chance_jaccard(tokens: int, first: int, second: int) -> float:
    """Expected Jaccard of two independent uniform subsets of ``first`` and ``second`` tokens.

    The number of shared tokens is hypergeometric.
    """
    if first + second == 0:
        return 1.0
    ways = comb(tokens, second)
    return sum(
        comb(first, shared) * comb(tokens - first, second - shared) / ways
        * shared / (first + second - shared)
        for shared in range(max(0, first + second - tokens), min(first, second) + 1)
    )  # fmt: skip


def mean_overlap(rationales: Sequence[Rationales]) -> Overlap:
    """Mean over all pairs of at least two sets of rationales."""
    pairs = [overlap(one, other) for one, other in combinations(rationales, 2)]
    if not pairs:
        raise ValueError("an overlap needs two sets of rationales")
    return Overlap(
        float(np.mean([pair.jaccard for pair in pairs])),
        float(np.mean([pair.exact for pair in pairs])),
        float(np.mean([pair.chance_jaccard for pair in pairs])),
        pairs[0].examples,
    )
