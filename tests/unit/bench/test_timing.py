"""Statistics of latencies, against values worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest

from rekd_edge.bench.timing import describe_machine, latency_percentiles, ratio_of_medians


def test_percentiles_are_samples_that_were_seen() -> None:
    samples = np.arange(1, 101) * 1000
    percentiles = latency_percentiles(samples)
    assert percentiles["50"] in samples
    assert percentiles["90"] == 91_000
    assert percentiles["99.9"] == 100_000


def test_a_ratio_of_paired_samples_is_exact_and_has_no_width() -> None:
    reference = np.random.default_rng(0).integers(1000, 9000, 301) * 2
    ratio = ratio_of_medians(reference // 2, reference)
    assert (ratio.value, ratio.low, ratio.high) == (0.5, 0.5, 0.5)


def test_the_interval_holds_the_truth_and_narrows_with_more_samples() -> None:
    rng = np.random.default_rng(0)

    def measured(count: int) -> tuple[float, float]:
        reference = rng.normal(1e6, 1e5, count)
        ratio = ratio_of_medians(rng.normal(6e5, 6e4, count), reference)
        assert ratio.low < 0.6 < ratio.high
        return ratio.low, ratio.high

    few, many = measured(50), measured(5000)
    assert many[1] - many[0] < (few[1] - few[0]) / 3


def test_ratios_need_pairs() -> None:
    with pytest.raises(ValueError, match="paired"):
        ratio_of_medians(np.ones(3), np.ones(4))
    with pytest.raises(ValueError, match="paired"):
        ratio_of_medians(np.ones(0), np.ones(0))


def test_the_machine_is_described() -> None:
    machine = describe_machine()
    assert machine["cpu"]
    assert machine["onnxruntime"]
    cores = machine["cores_available"]
    assert isinstance(cores, int)
    assert cores >= 1
