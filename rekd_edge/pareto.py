"""Pareto fronts of points whose every coordinate is better when larger."""

from __future__ import annotations

from collections.abc import Sequence


def dominates(left: Sequence[float], right: Sequence[float]) -> bool:
    """Whether ``left`` is nowhere below ``right`` and somewhere above it."""
    return all(a >= b for a, b in zip(left, right, strict=True)) and any(
        a > b for a, b in zip(left, right, strict=True)
    )


def on_front(points: Sequence[Sequence[float]]) -> list[bool]:
    """For each point whether no other one dominates it; equal points stand or fall together."""
    return [not any(dominates(other, point) for other in points) for point in points]
