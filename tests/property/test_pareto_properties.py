"""The front: nothing on it is beaten, everything off it is."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from rekd_edge.pareto import dominates, on_front

coordinates = st.one_of(
    st.integers(0, 3).map(float), st.floats(allow_nan=False, allow_infinity=False)
)
points = st.integers(1, 4).flatmap(
    lambda size: st.lists(st.tuples(*[coordinates] * size), min_size=1, max_size=12)
)


@given(points)
def test_nothing_on_the_front_is_dominated_and_everything_off_it_is_by_something_on_it(
    given_points: list[tuple[float, ...]],
) -> None:
    marks = on_front(given_points)
    front = [point for point, on in zip(given_points, marks, strict=True) if on]
    assert front
    for point, on in zip(given_points, marks, strict=True):
        if on:
            assert not any(dominates(other, point) for other in given_points)
        else:
            assert any(dominates(other, point) for other in front)


@given(points)
def test_the_best_in_one_coordinate_alone_is_on_the_front(
    given_points: list[tuple[float, ...]],
) -> None:
    marks = on_front(given_points)
    best = max(point[0] for point in given_points)
    holders = [on for point, on in zip(given_points, marks, strict=True) if point[0] == best]
    assert any(holders)


@given(points)
def test_dominance_is_a_strict_order(given_points: list[tuple[float, ...]]) -> None:
    for one in given_points:
        assert not dominates(one, one)
        for other in given_points:
            assert not (dominates(one, other) and dominates(other, one))
            for third in given_points:
                if dominates(one, other) and dominates(other, third):
                    assert dominates(one, third)
