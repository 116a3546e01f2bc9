"""From answers to thresholds, and what is said of them."""

from __future__ import annotations

import io
import json

import numpy as np
import pytest
from pydantic import ValidationError
from rich.console import Console

from rekd_edge.calibrate.answers import Answers
from rekd_edge.calibrate.fit import calibrate
from rekd_edge.calibrate.probabilities import confidence_of
from rekd_edge.calibrate.report import Side, report_of
from rekd_edge.calibrate.spec import AbstentionSpec, Calibration
from rekd_edge.errors import GateError, UsageError


def answers(count: int, seed: int, *, boast: float = 3.0) -> Answers:
    """Labels drawn from softmax(z); the file says ``boast`` z."""
    generator = np.random.default_rng(seed)
    true = generator.normal(size=(count, 3)) * 2
    exponents = np.exp(true)
    shares = exponents / exponents.sum(axis=1, keepdims=True)
    labels = np.array([generator.choice(3, p=row) for row in shares])
    margin = generator.exponential(size=count)
    kept = tuple((index,) for index in range(count))
    return Answers((boast * true).astype(np.float32), margin, labels, kept)


def moved(original: Answers, changed: np.ndarray) -> Answers:
    """The same with another rationale where ``changed``."""
    kept = tuple((-1,) if c else k for k, c in zip(original.kept, changed, strict=True))
    return Answers(original.logits, original.margin, original.labels, kept)


def test_a_boasting_file_is_cooled_and_its_error_falls() -> None:
    dev, test = answers(2000, seed=1), answers(2000, seed=2)
    fitted = calibrate(dev)
    assert fitted.calibration.temperature == pytest.approx(3.0, rel=0.1)
    assert fitted.calibration.asked is None
    side = report_of(fitted, dev, test).test
    assert side.uncalibrated.ece > 0.1
    assert side.calibrated.ece < 0.03
    assert side.calibrated.nll < side.uncalibrated.nll
    assert side.coverage == 1
    assert side.risk == pytest.approx(1 - side.accuracy)
    assert side.by_confidence.area < side.by_margin.area  # margins are drawn at random here


def test_coverage_is_what_was_asked_for() -> None:
    dev, test = answers(1000, seed=3), answers(4000, seed=4)
    fitted = calibrate(dev, AbstentionSpec(coverage=0.8))
    found = report_of(fitted, dev, test)
    assert found.dev.coverage == 0.8
    assert found.test.coverage == pytest.approx(0.8, abs=0.05)
    assert found.test.risk is not None
    assert found.test.risk < 1 - found.test.accuracy
    assert fitted.calibration.margin_threshold is None
    everything = calibrate(dev, AbstentionSpec(coverage=1.0)).calibration
    assert everything.confidence_threshold is None


def test_a_risk_is_held_on_new_examples() -> None:
    dev, test = answers(3000, seed=5), answers(20000, seed=6)
    fitted = calibrate(dev, AbstentionSpec(risk=0.1))
    found = report_of(fitted, dev, test)
    assert found.promises["risk"].bound <= 0.1
    assert found.test.risk is not None
    assert found.test.risk <= 0.1
    assert 0.3 < found.test.coverage < 1


def test_near_ties_are_refused_where_rationales_differ() -> None:
    dev = answers(2000, seed=7)
    reference = moved(dev, dev.margin < 0.1)
    asked = AbstentionSpec(rationale_risk=0.02, coverage=0.5)
    fitted = calibrate(dev, asked, reference)
    threshold = fitted.calibration.margin_threshold
    assert threshold is not None
    assert 0.03 < threshold < 0.2
    side = Side.of(dev, fitted.calibration, reference)
    assert side.rationale_risk is not None
    assert side.rationale_risk <= 0.02
    assert side.coverage == 0.5
    assert side.refused["margin"] == int((dev.margin < threshold).sum())
    with pytest.raises(GateError, match=r"leaves 0\.\d+ of the development split"):
        calibrate(dev, AbstentionSpec(rationale_risk=0.02, coverage=0.999), reference)


def test_a_promise_is_about_those_finally_answered() -> None:
    dev = answers(1000, seed=14)
    temperature = calibrate(dev).calibration.temperature
    surest = np.argsort(-confidence_of(dev.logits, dev.problem, temperature))
    changed = np.zeros(1000, dtype=bool)
    changed[surest[:400:50]] = True
    changed[surest[3]] = True
    asked = AbstentionSpec(rationale_risk=0.02)
    everything = calibrate(dev, asked, moved(dev, changed)).promises["rationale_risk"]
    assert everything.bound <= 0.02
    with pytest.raises(GateError, match=r"at most 0\.0\d+ \(seen 0\.0225\) when 0\.400"):
        calibrate(dev, AbstentionSpec(rationale_risk=0.02, coverage=0.4), moved(dev, changed))
    unsure = np.zeros(1000, dtype=bool)
    unsure[surest[-9:]] = True
    kept = calibrate(dev, AbstentionSpec(rationale_risk=0.02, coverage=0.4), moved(dev, unsure))
    promise = kept.promises["rationale_risk"]
    assert (promise.coverage, promise.risk) == (0.4, 0)
    assert promise.bound == pytest.approx(1 - 0.005 ** (1 / 400))


def test_equal_rationales_need_no_margin() -> None:
    dev = answers(2000, seed=8)
    fitted = calibrate(dev, AbstentionSpec(rationale_risk=0.01), dev)
    assert fitted.calibration.margin_threshold is None
    assert fitted.promises["rationale_risk"].coverage == 1


def test_a_margin_without_end_can_be_the_threshold() -> None:
    dev = answers(1000, seed=9)
    margin = np.where(np.arange(1000) < 700, np.inf, dev.margin)
    dev = Answers(dev.logits, margin, dev.labels, dev.kept)
    reference = moved(dev, np.isfinite(margin))
    threshold = calibrate(
        dev, AbstentionSpec(rationale_risk=0.01), reference
    ).calibration.margin_threshold
    assert threshold is not None
    assert np.isfinite(threshold)
    assert ((margin >= threshold) == np.isinf(margin)).all()


def test_what_cannot_be_promised_is_refused_with_the_nearest() -> None:
    dev = answers(200, seed=10)
    with pytest.raises(GateError, match="cannot be promised from 200 examples") as caught:
        calibrate(dev, AbstentionSpec(risk=0.001))
    assert "the nearest is at most 0." in caught.value.message


def test_too_few_examples_are_refused() -> None:
    with pytest.raises(UsageError, match=r"needs 100 examples .* it has 99"):
        calibrate(answers(99, seed=0))


def test_the_thresholds_answer_what_the_report_counts() -> None:
    dev = answers(500, seed=11)
    calibration = calibrate(dev, AbstentionSpec(coverage=0.37)).calibration
    confidence = confidence_of(dev.logits, dev.problem, calibration.temperature)
    assert calibration.confidence_threshold is not None
    assert (confidence >= calibration.confidence_threshold).mean() == 0.37


def test_the_report_is_json_and_a_few_lines() -> None:
    dev, test = answers(300, seed=12), answers(300, seed=13)
    report = report_of(calibrate(dev, AbstentionSpec(coverage=0.9)), dev, test)
    document = json.loads(json.dumps(report.to_json(), allow_nan=False))
    assert Calibration.model_validate(document["calibration"]) == report.calibration
    points = document["test"]["by_confidence"]["points"]
    assert points[-1] == [1.0, pytest.approx(1 - document["test"]["accuracy"])]
    assert sum(one["count"] for one in document["test"]["calibrated"]["reliability"]) == 300
    console = Console(width=200, record=True, file=io.StringIO())
    report.render(console)
    assert "ECE on test" in console.export_text()


@pytest.mark.parametrize(
    "asked",
    [
        {},
        {"confidence": 0.9},
        {"coverage": 0.5, "risk": 0.1},
        {"coverage": 0},
        {"coverage": 1.01},
        {"risk": 1},
        {"risk": 0.1, "confidence": 1},
        {"cover": 0.5},
    ],
)
def test_contradictions_are_refused(asked: dict[str, float]) -> None:
    with pytest.raises(ValidationError):
        AbstentionSpec.model_validate(asked)


def test_a_threshold_nobody_asked_for_is_refused() -> None:
    with pytest.raises(ValidationError, match="without anything asked for"):
        Calibration(temperature=1.0, examples=100, confidence_threshold=0.5)
