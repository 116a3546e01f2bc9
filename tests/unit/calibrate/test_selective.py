"""Risk-coverage and thresholds against values worked out by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rekd_edge.calibrate.selective import (
    COVERAGES_TRIED,
    highest_error_rate,
    risk_coverage,
    threshold_for_coverage,
    threshold_for_risk,
)


def test_risk_coverage_by_hand() -> None:
    score = np.array([0.9, 0.6, 0.8, 0.7])
    wrong = np.array([False, True, True, False])
    curve = risk_coverage(score, wrong)
    np.testing.assert_allclose(curve.coverage, [0.25, 0.5, 0.75, 1.0])
    np.testing.assert_allclose(curve.risk, [0, 1 / 2, 1 / 3, 1 / 2])
    np.testing.assert_allclose(curve.threshold, [0.9, 0.8, 0.7, 0.6])
    assert curve.area == pytest.approx((0 + 1 / 2 + 1 / 3 + 1 / 2) / 4)


def test_equal_scores_are_answered_together() -> None:
    curve = risk_coverage(np.array([1.0, 0.5, 0.5, np.inf]), np.array([False, True, False, False]))
    np.testing.assert_allclose(curve.coverage, [0.25, 0.5, 1.0])
    np.testing.assert_allclose(curve.risk, [0, 0, 0.25])
    assert curve.area == pytest.approx(0.5 * 0.25)
    level = risk_coverage(np.zeros(8), np.arange(8) < 3)
    assert level.area == pytest.approx(3 / 8)


@given(st.lists(st.tuples(st.integers(0, 9), st.booleans()), min_size=1, max_size=60))
def test_the_area_lies_between_the_best_order_and_the_worst(
    pairs: list[tuple[int, bool]],
) -> None:
    score = np.array([float(value) for value, _ in pairs])
    wrong = np.array([flag for _, flag in pairs])
    apart = np.arange(len(wrong)) / 1000  # no two scores alike
    best, worst = (risk_coverage(apart - sign * wrong, wrong).area for sign in (1, -1))
    assert best - 1e-12 <= risk_coverage(score, wrong).area <= worst + 1e-12


def test_coverage_takes_the_surest() -> None:
    score = np.array([0.2, 0.9, 0.4, 0.8, 0.6])
    assert threshold_for_coverage(score, 0.6) == 0.6
    assert threshold_for_coverage(score, 0.61) == 0.4
    assert threshold_for_coverage(score, 1.0) == 0.2
    refused = np.array([-np.inf, 0.9, -np.inf, 0.8, -np.inf])
    assert threshold_for_coverage(refused, 0.4) == 0.8
    assert threshold_for_coverage(refused, 0.5) is None


@given(
    st.lists(st.integers(0, 20), min_size=1, max_size=80),
    st.floats(min_value=0.01, max_value=1.0),
)
def test_at_least_the_coverage_is_answered_and_a_higher_threshold_would_not_do(
    values: list[int], coverage: float
) -> None:
    score = np.array([float(value) for value in values])
    threshold = threshold_for_coverage(score, coverage)
    assert threshold is not None
    assert (score >= threshold).mean() >= coverage - 1e-9
    assert (score > threshold).mean() < coverage


@pytest.mark.parametrize("count", [1, 10, 760])
def test_the_bound_without_errors_is_that_of_the_textbook(count: int) -> None:
    # (1 - p)^n = failure
    assert highest_error_rate(0, count, 0.05) == pytest.approx(1 - 0.05 ** (1 / count), rel=1e-9)


def test_the_bound_with_errors_is_that_of_scipy() -> None:
    beta = pytest.importorskip("scipy.stats").beta
    for errors, count in ((1, 10), (7, 100), (99, 100), (200, 5000)):
        by_quantile = beta.ppf(1 - 0.01, errors + 1, count - errors)
        assert highest_error_rate(errors, count, 0.01) == pytest.approx(by_quantile, rel=1e-7)
    assert highest_error_rate(10, 10, 0.01) == 1.0


def test_the_threshold_for_a_risk_answers_what_can_be_promised() -> None:
    # The 600 surest are right, the other 400 wrong every other time.
    score = np.linspace(1, 0, 1000)
    wrong = (np.arange(1000) >= 600) & (np.arange(1000) % 2 == 0)
    found, holds = threshold_for_risk(score, wrong, 0.02, 0.9)
    assert holds
    assert found.coverage == 0.6
    assert found.risk == 0
    failure = 0.1 / COVERAGES_TRIED
    assert found.bound == pytest.approx(1 - failure ** (1 / 600))
    found, holds = threshold_for_risk(score, wrong, 0.001, 0.9)
    assert not holds
    assert found.bound > 0.001


def test_a_promise_is_broken_as_seldom_as_was_accepted() -> None:
    # P(wrong | score s) = 0.4 (1 - s), s uniform: true risk above threshold t is 0.2 (1 - t).
    generator = np.random.default_rng(0)
    broken = answered = 0
    for _ in range(300):
        score = generator.random(400)
        wrong = generator.random(400) < 0.4 * (1 - score)
        found, holds = threshold_for_risk(score, wrong, 0.15, 0.8)
        answered += holds
        broken += holds and 0.2 * (1 - found.threshold) > 0.15
    assert answered > 250
    assert broken / 300 <= 0.2


def test_what_is_refused_already_is_never_answered() -> None:
    score = np.where(np.arange(400) < 100, 1.0, -np.inf)
    found, holds = threshold_for_risk(score, np.zeros(400, dtype=bool), 0.1, 0.9)
    assert holds
    assert found.coverage == 0.25
    nothing, holds = threshold_for_risk(np.full(4, -np.inf), np.zeros(4, dtype=bool), 0.1, 0.9)
    assert not holds
    assert nothing.threshold == math.inf
