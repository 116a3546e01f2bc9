"""Temperature and calibration error against values worked out by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from rekd_edge.calibrate.probabilities import (
    HIGHEST_TEMPERATURE,
    LOWEST_TEMPERATURE,
    expected_calibration_error,
    fit_temperature,
    negative_log_likelihood,
    reliability,
    softmax,
)


def two_class(gap: float, right: int, wrong: int) -> tuple[np.ndarray, np.ndarray]:
    """Logits (gap, 0) for all, of which ``right`` have label 0."""
    logits = np.tile(np.array([[gap, 0.0]], dtype=np.float32), (right + wrong, 1))
    return logits, np.array([0] * right + [1] * wrong)


@pytest.mark.parametrize(("gap", "right", "wrong"), [(4.0, 80, 20), (0.5, 9, 1), (2.0, 3, 2)])
def test_the_temperature_makes_the_confidence_the_accuracy(
    gap: float, right: int, wrong: int
) -> None:
    # All logits alike: most likely where sigmoid(gap / T) = right / (right + wrong).
    by_hand = gap / math.log(right / wrong)
    found = fit_temperature(*two_class(gap, right, wrong))
    assert found == pytest.approx(by_hand, rel=1e-9)
    confidence = softmax(np.array([[gap, 0.0]]), found).max()
    assert confidence == pytest.approx(right / (right + wrong), rel=1e-9)


def test_no_other_temperature_is_more_likely() -> None:
    generator = np.random.default_rng(5)
    logits = generator.normal(size=(300, 4)).astype(np.float32) * 3
    labels = np.array([generator.choice(4, p=row) for row in softmax(logits, 2.5)])
    best = fit_temperature(logits, labels)
    assert 2.0 < best < 3.1
    least = negative_log_likelihood(logits, labels, best)
    for other in np.geomspace(0.1, 20, 400):
        assert negative_log_likelihood(logits, labels, float(other)) >= least


def test_the_likelihood_of_a_known_case() -> None:
    logits, labels = two_class(math.log(3), right=1, wrong=1)
    by_hand = -(math.log(0.75) + math.log(0.25)) / 2
    assert negative_log_likelihood(logits, labels) == pytest.approx(by_hand, rel=1e-6)


def test_what_the_examples_do_not_determine_stays_within_bounds() -> None:
    assert fit_temperature(*two_class(3.0, right=50, wrong=0)) == LOWEST_TEMPERATURE
    assert fit_temperature(*two_class(3.0, right=0, wrong=50)) == HIGHEST_TEMPERATURE
    assert fit_temperature(*two_class(3.0, right=25, wrong=25)) == HIGHEST_TEMPERATURE
    assert fit_temperature(*two_class(1e4, right=3, wrong=1)) == HIGHEST_TEMPERATURE


def test_calibration_error_by_hand() -> None:
    # Of four bins (.25, .5] holds .5, 1 right of 1; (.5, .75] .6 and .7, 1 of 2; (.75, 1] 2 of 2.
    confidence = np.array([0.5, 0.6, 0.7, 0.9, 1.0])
    right = np.array([True, True, False, True, True])
    by_hand = (1 * abs(1 - 0.5) + 2 * abs(0.5 - 0.65) + 2 * abs(1 - 0.95)) / 5
    assert expected_calibration_error(confidence, right, bins=4) == pytest.approx(by_hand)
    bins = reliability(confidence, right, bins=4)
    assert [one.count for one in bins] == [0, 1, 2, 2]
    assert (bins[0].confidence, bins[0].accuracy) == (None, None)
    assert (bins[2].confidence, bins[2].accuracy) == (pytest.approx(0.65), 0.5)


def test_a_calibrated_model_has_no_error_and_a_boaster_all_of_it() -> None:
    right = np.array([True] * 75 + [False] * 25)
    assert expected_calibration_error(np.full(100, 0.75), right) == pytest.approx(0)
    assert expected_calibration_error(np.ones(100), ~right | right) == 0
    assert expected_calibration_error(np.ones(100), np.zeros(100, dtype=bool)) == 1


def test_probabilities_of_large_logits_at_a_low_temperature() -> None:
    np.testing.assert_array_equal(softmax(np.array([[1e4, -1e4]]), 0.05), [[1.0, 0.0]])
