"""Calibration of several labels: a probability each, one temperature, and when to abstain."""

from __future__ import annotations

import math

import numpy as np
import pytest

from rekd_edge.calibrate.answers import Answers
from rekd_edge.calibrate.fit import calibrate
from rekd_edge.calibrate.probabilities import (
    confidence_of,
    decisions,
    fit_temperature,
    negative_log_likelihood,
    probabilities_of,
    sigmoid,
)
from rekd_edge.calibrate.report import report_of
from rekd_edge.calibrate.spec import AbstentionSpec
from rekd_edge.errors import UsageError
from rekd_edge.export_pipeline import require_calibratable
from rekd_edge.types import ProblemType

SEVERAL: ProblemType = "multi_label_classification"


def answers(count: int, seed: int, *, boast: float = 3.0) -> Answers:
    """Labels drawn from sigmoid(z); the file says ``boast`` z."""
    generator = np.random.default_rng(seed)
    true = generator.normal(size=(count, 3)) * 2
    labels = (generator.random(true.shape) < sigmoid(true)).astype(np.float32)
    kept = tuple((index,) for index in range(count))
    margin = generator.exponential(size=count)
    return Answers((boast * true).astype(np.float32), margin, labels, kept, SEVERAL)


@pytest.mark.parametrize(("logit", "hold", "fail"), [(4.0, 80, 20), (0.5, 9, 1), (2.0, 3, 2)])
def test_the_temperature_makes_the_probability_the_share(
    logit: float, hold: int, fail: int
) -> None:
    logits = np.full((hold + fail, 1), logit, np.float32)
    labels = np.array([[1.0]] * hold + [[0.0]] * fail)
    found = fit_temperature(logits, labels, SEVERAL)
    assert found == pytest.approx(logit / math.log(hold / fail), rel=1e-9)
    assert sigmoid(logits, found)[0, 0] == pytest.approx(hold / (hold + fail), rel=1e-9)


def test_no_other_temperature_is_more_likely() -> None:
    dev = answers(500, seed=5, boast=2.5)
    best = fit_temperature(dev.logits, dev.labels, SEVERAL)
    assert 2.0 < best < 3.1
    least = negative_log_likelihood(dev.logits, dev.labels, best, SEVERAL)
    for other in np.geomspace(0.1, 20, 200):
        assert negative_log_likelihood(dev.logits, dev.labels, float(other), SEVERAL) >= least


def test_a_boasting_file_is_cooled_and_its_error_falls() -> None:
    fitted = calibrate(answers(2000, seed=1))
    assert fitted.calibration.temperature == pytest.approx(3.0, rel=0.1)
    side = report_of(fitted, answers(2000, seed=1), answers(2000, seed=2)).test
    assert side.uncalibrated.ece > 0.05
    assert side.calibrated.ece < 0.02
    assert side.calibrated.nll < side.uncalibrated.nll
    assert sum(one.count for one in side.calibrated.reliability) == 2000 * 3


def test_the_least_sure_label_decides_and_an_answer_is_right_as_a_whole() -> None:
    logits = np.array([[4.0, 0.2], [-4.0, 4.0], [0.0, -4.0]], np.float32)
    low, high = 1 / (1 + math.exp(-0.2)), 1 / (1 + math.exp(-4))
    np.testing.assert_allclose(confidence_of(logits, SEVERAL), [low, high, 0.5], rtol=1e-6)
    labels = np.array([[1, 1], [0, 0], [0, 0]], np.float32)
    mine = Answers(logits, np.ones(3), labels, ((0,),) * 3, SEVERAL)
    assert mine.right.tolist() == [True, False, True]
    stated, came_true = decisions(logits, labels, SEVERAL, 1.0)
    assert stated.shape == came_true.shape == (6,)
    assert came_true.tolist() == [True, True, False, False, False, False]


def test_coverage_and_risk_are_of_whole_answers() -> None:
    dev, test = answers(3000, seed=3), answers(4000, seed=4)
    asked = report_of(calibrate(dev, AbstentionSpec(coverage=0.6)), dev, test)
    assert asked.dev.coverage == pytest.approx(0.6, abs=0.001)
    assert asked.test.coverage == pytest.approx(0.6, abs=0.05)
    assert asked.test.risk is not None
    assert asked.test.risk < 1 - asked.test.accuracy
    wanted = (1 - dev.right.mean()) * 0.7
    held = report_of(calibrate(dev, AbstentionSpec(risk=float(wanted))), dev, test)
    assert held.test.risk is not None
    assert held.test.risk <= wanted


def test_a_regression_has_nothing_to_calibrate_and_says_why() -> None:
    with pytest.raises(UsageError, match="no probabilities"):
        probabilities_of(np.zeros((1, 1)), "regression")
    require_calibratable("regression", None)
    require_calibratable(SEVERAL, AbstentionSpec(coverage=0.9))
    with pytest.raises(UsageError, match="nothing says how sure it is") as raised:
        require_calibratable("regression", AbstentionSpec(rationale_risk=0.1))
    assert "--coverage" in str(raised.value.hint)
