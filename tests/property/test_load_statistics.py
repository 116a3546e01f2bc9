"""Early stopping and percentiles of the load test, for any number of queries."""

from __future__ import annotations

import math
from statistics import median

from hypothesis import given
from hypothesis import strategies as st

from tests.bench_program import load_program

program = load_program()
PERCENTILES = st.sampled_from([50.0, 90.0, 95.0, 97.0, 99.0, 99.9])
LATENCIES = st.lists(st.integers(1, 10**9), min_size=1, max_size=300)


def binomial_cdf(n: int, t: int, p: float) -> float:
    """By exact counts of ways."""
    return math.fsum(math.comb(n, k) * p**k * (1 - p) ** (n - k) for k in range(t + 1))


@given(st.integers(1, 400), PERCENTILES)
def test_as_many_late_queries_are_allowed_as_the_binomial_says(n: int, percentile: float) -> None:
    t = program.allowed_overlatency(n, percentile)
    late = 1 - percentile / 100
    if t >= 0:
        assert binomial_cdf(n, t, late) < 0.01
    if t < n:
        assert binomial_cdf(n, t + 1, late) >= 0.01 * (1 - 1e-9)


@given(st.integers(1, 10**6), PERCENTILES)
def test_the_estimate_is_never_below_the_percentile(n: int, percentile: float) -> None:
    t = program.allowed_overlatency(n, percentile)
    if t >= 1:
        ordered = range(n)
        estimate = program.early_stopping_estimate(ordered, percentile)
        assert program.percentile_of(ordered, percentile) <= estimate <= n - 1


@given(st.integers(1, 5000), PERCENTILES)
def test_one_query_more_allows_at_most_one_late_query_more(n: int, percentile: float) -> None:
    less, more = (program.allowed_overlatency(m, percentile) for m in (n, n + 1))
    assert less <= more <= less + 1


@given(LATENCIES, PERCENTILES)
def test_a_percentile_is_a_latency_that_was_seen(latencies: list[int], percentile: float) -> None:
    ordered = sorted(latencies)
    found = program.percentile_of(ordered, percentile)
    assert found in ordered
    below = sum(latency < found for latency in ordered)
    assert below <= len(ordered) * percentile / 100


@given(LATENCIES)
def test_the_interval_of_the_median_holds_the_median(latencies: list[int]) -> None:
    middle, low, high = program.median_interval(sorted(latencies))
    assert middle == median(latencies)
    assert low <= middle <= high
    assert {low, high} <= set(latencies)


@given(st.lists(st.integers(1, 10**6), min_size=1, max_size=20), st.integers(3, 40))
def test_latencies_that_depend_on_the_query_alone_hold_still(own: list[int], passes: int) -> None:
    queries = list(range(len(own))) * passes
    windows = program.windows_of([own[query] for query in queries], queries)
    assert windows.repeated
    assert windows.problem == ""
    assert all(window == (1.0, 1.0, 1.0) for window in windows.medians)
