from __future__ import annotations

import math

import pytest

from rekd_edge.recipe.schema import ObjectiveSpec, RatioScheduleSpec, TemperatureSpec
from rekd_edge.schedules import (
    alpha_at,
    learning_rate_factor,
    published_temperature_at,
    ratio_at,
    temperature_at,
)
from rekd_edge.selection import budget_fraction


def test_temperature_follows_the_published_schedule() -> None:
    spec = TemperatureSpec(start=5.0, end=0.1, update_every=100)
    total = 10_000
    gamma = math.log(50) / total
    assert temperature_at(0, total, spec) == 5.0
    assert temperature_at(199, total, spec) == pytest.approx(5.0 * math.exp(-gamma * 100))
    assert temperature_at(total, total, spec) == pytest.approx(0.1)
    assert temperature_at(2 * total, total, spec) == 0.1


@pytest.mark.parametrize(
    ("step", "number"),
    [(0, 0), (98, 0), (99, 100), (198, 100), (199, 200), (5_049, 5_000), (9_999, 10_000)],
)
def test_the_official_code_counts_steps_from_one(step: int, number: int) -> None:
    spec = TemperatureSpec(start=5.0, end=0.1, update_every=100)
    expected = max(5.0 * 50.0 ** (-number / 10_000), 0.1)
    assert published_temperature_at(step, 10_000, spec) == pytest.approx(expected, rel=1e-12)


def test_the_published_schedule_ends_at_its_floor_and_leaves_short_runs_alone() -> None:
    spec = TemperatureSpec(start=5.0, end=0.1, update_every=100)
    assert published_temperature_at(19_999, 10_000, spec) == 0.1
    assert published_temperature_at(98, 99, spec) == 5.0
    assert temperature_at(98, 99, spec) < 0.2


def test_short_runs_anneal_too() -> None:
    spec = TemperatureSpec(start=5.0, end=0.1, update_every=100)
    assert temperature_at(45, 50, spec) < 0.2


@pytest.mark.parametrize(
    ("kind", "middle", "end"), [("constant", 1, 1), ("linear", 0.5, 0), ("cosine", 0.5, 0)]
)
def test_learning_rate_rises_then_follows_its_kind(kind: str, middle: float, end: float) -> None:
    def factor(step: int) -> float:
        return learning_rate_factor(step, 110, warmup_share=10 / 110, kind=kind)

    rising = [factor(step) for step in range(10)]
    assert rising == sorted(rising)
    assert rising[0] > 0
    assert factor(10) == 1.0
    assert factor(60) == pytest.approx(middle)
    assert factor(110) == pytest.approx(end, abs=1e-9)


def test_unknown_schedule_is_refused() -> None:
    with pytest.raises(ValueError, match="unknown"):
        learning_rate_factor(1, 10, warmup_share=0, kind="step")


def test_alpha_goes_from_its_start_at_the_first_step_to_its_end_at_the_last() -> None:
    spec = ObjectiveSpec(alpha=0.2, alpha_end=0.8)
    assert [alpha_at(step, 4, spec) for step in range(4)] == pytest.approx([0.2, 0.4, 0.6, 0.8])
    assert alpha_at(0, 1, spec) == 0.2
    assert alpha_at(3, 4, ObjectiveSpec(alpha=0.2)) == 0.2


def test_the_ratio_falls_linearly_and_then_is_the_recipes() -> None:
    schedule = RatioScheduleSpec(start=1.0, until=0.5)
    found = [ratio_at(step, 8, schedule, 0.2) for step in range(8)]
    assert found == pytest.approx([1.0, 0.8, 0.6, 0.4, 0.2, 0.2, 0.2, 0.2])
    assert ratio_at(3, 8, None, 0.2) == 0.2
    exact = 0.123456789
    assert ratio_at(7, 8, schedule, exact) == exact
    # Budgets of a falling ratio are integers that cannot overflow.
    assert all(budget_fraction(ratio_at(s, 997, schedule, exact))[1] <= 10_000 for s in range(498))
