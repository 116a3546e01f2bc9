"""Figures of several labels and of values, worked out by hand, and which examples are shown."""

from __future__ import annotations

import math

import numpy as np
import pytest

from rekd_edge.calibrate.spec import AbstentionSpec, Calibration
from rekd_edge.report.charts import bar_chart, dot_chart, front_chart
from rekd_edge.report.content import FrontPoint
from rekd_edge.report.examples import Compared, Segment, choose, joined
from rekd_edge.report.kinds import kind_for, number
from rekd_edge.report.statistics import (
    Answers,
    agreement,
    confidence,
    correlation,
    label_calibration_errors,
    label_figures,
    label_intervals,
    value_agreement,
    value_figures,
    value_intervals,
    wilson_interval,
)
from rekd_edge.types import ProblemType

NAMES = ("plot", "acting", "music")
LABELS, VALUES = kind_for("multi_label_classification"), kind_for("regression")


def answers(
    logits: object, labels: object, problem: ProblemType, calibration: Calibration | None = None
) -> Answers:
    found, truth = np.asarray(logits, dtype=np.float64), np.asarray(labels, dtype=np.float32)
    count = len(found)
    kept = tuple(np.asarray([0, 1 + i % 3]) for i in range(count))
    margin = np.linspace(1, 2, count)
    return Answers(found, truth, margin, kept, np.full(count, 9), calibration, problem)


def several(calibration: Calibration | None = None) -> Answers:
    """Of four examples: one label missing, one extra, all right, all right (none)."""
    given = np.asarray([[1, 0, 0], [1, 1, 0], [0, 1, 0], [0, 0, 0]])
    there = [[1, 1, 0], [1, 0, 0], [0, 1, 0], [0, 0, 0]]
    return answers(4.0 * given - 2.0, there, "multi_label_classification", calibration)


def test_each_label_has_its_table() -> None:
    plot, acting, music = label_figures(several(), NAMES)
    assert (plot.both, plot.extra, plot.missing, plot.neither) == (2, 0, 0, 2)
    assert (acting.both, acting.extra, acting.missing, acting.neither) == (1, 1, 1, 1)
    assert (acting.prevalence, acting.precision, acting.recall, acting.f1) == (0.5, 0.5, 0.5, 0.5)
    assert (music.prevalence, music.precision, music.recall, music.f1) == (0.0, None, None, 0.0)
    found = LABELS.result("m", "s", several(), NAMES)
    # Three of four given ones are there, and three of four that are there are given.
    assert found.scores == {"f1_micro": 0.75, "f1_macro": 0.5, "accuracy": 0.5}
    assert found.accuracy == 0.75
    assert found.per_class == {"plot": 1.0, "acting": 0.5, "music": 0.0}
    assert found.support == {"plot": 2, "acting": 2, "music": 0}


def test_intervals_of_labels() -> None:
    found = label_intervals(several())
    assert found == label_intervals(several())
    assert found["accuracy"] == wilson_interval(0.5, 4)
    assert found["f1_micro"][0] < 0.75 < found["f1_micro"][1] <= 1.0
    perfect = answers([[2.0, -2.0]] * 9, [[1, 0]] * 9, "multi_label_classification")
    assert label_intervals(perfect)["f1_micro"] == (1.0, 1.0)
    # Nothing is there and nothing given: no sample has a micro F1.
    empty = answers([[-2.0, -2.0]] * 9, [[0, 0]] * 9, "multi_label_classification")
    assert "f1_micro" not in label_intervals(empty)


def test_labels_are_as_sure_as_their_bundle_says() -> None:
    """Four fifths for a logit of ln 4; at a temperature of 2 two thirds."""
    logits = np.log(4.0) * np.asarray([[1.0, 1.0], [1.0, -1.0]])
    plain = answers(logits, [[1, 1], [0, 0]], "multi_label_classification")
    assert label_calibration_errors(plain) == pytest.approx((0.3, 0.2))
    seen = confidence(plain, "m")
    # .8 came true in two of three, .2 in none of one.
    assert seen.calibration_error == pytest.approx(0.75 * abs(0.8 - 2 / 3) + 0.25 * 0.2)
    assert seen.points == ((1.0, 0.5),)  # both are equally sure, one has a label wrong
    told = Calibration(
        temperature=2.0, confidence_threshold=0.7, asked=AbstentionSpec(coverage=0.5), examples=100
    )
    found = answers(logits, [[1, 1], [0, 0]], "multi_label_classification", told)
    assert found.confidence == pytest.approx([2 / 3, 2 / 3])
    assert found.refusals is not None
    assert found.refusals.confidence.all()
    shown = LABELS.confidence(found, "m")
    assert shown is not None
    assert shown.by_label == pytest.approx((2 / 3 - 0.5, 1 / 3))


def test_agreement_on_labels_is_on_all_of_them() -> None:
    one = several()
    other = answers(
        one.logits * [[1, 1, 1], [1, -1, 1], [1, 1, 1], [1, 1, 1]],
        one.labels,
        "multi_label_classification",
    )
    found = agreement(one, other, "other", same_tokens=True)
    assert (found.labels, found.rationale_exact) == (0.75, 1.0)
    # Of {plot, acting} and {plot} a half is shared.
    assert LABELS.differs(one, other).tolist() == [0.0, 0.5, 0.0, 0.0]


def test_an_answer_of_labels_says_what_is_extra_and_what_missing() -> None:
    found = several()
    first, second = LABELS.said(found, 0, NAMES), LABELS.said(found, 1, NAMES)
    assert [(mark.name, mark.state) for mark in first.labels] == [
        ("plot", "right"),
        ("acting", "missing"),
    ]
    assert [(mark.name, mark.state) for mark in second.labels] == [
        ("plot", "right"),
        ("acting", "extra"),
    ]
    assert (first.right, second.right, LABELS.said(found, 2, NAMES).right) == (False, False, True)
    assert first.labels[1].probability == pytest.approx(1 / (1 + math.e**2))
    assert LABELS.truth(found, 0, NAMES) == "plot, acting"
    assert (LABELS.truth(found, 3, NAMES), LABELS.said(found, 3, NAMES).label) == (
        "none",
        "no label",
    )


def test_examples_of_every_label() -> None:
    rng = np.random.default_rng(0)
    there = rng.random((60, 3)) < [0.5, 0.3, 0.1]
    there[:5] = False
    found = answers(rng.normal(size=(60, 3)), there, "multi_label_classification")
    groups = {one.key: one for one in choose({"m": found}, primary="m", compared=[], count=24)}
    assert list(groups) == ["wrong", "fragile", "sample"]
    wrong = list(groups["wrong"].indices)
    assert not found.right[wrong].any()
    assert (np.diff(found.confidence[wrong]) <= 0).all()
    shown = groups["sample"].indices[:4]
    for label, index in enumerate(shown[:3]):
        assert there[index, label]
    assert not there[shown[3]].any()
    every = [index for one in groups.values() for index in one.indices]
    assert len(every) == len(set(every)) == 24


def values() -> Answers:
    """Errors 0, 0, 0, 2 in the one target, and -1000, 1000, 1000, -1000 in the other."""
    truth = [[0, 0], [1, 2000], [2, 4000], [3, 6000]]
    found = [[0, -1000], [1, 3000], [2, 5000], [5, 5000]]
    return answers(found, truth, "regression")


def test_each_target_has_its_errors_in_its_unit() -> None:
    first, second = value_figures(values(), ("stars", "length"))
    assert (first.r2, first.mean_absolute_error, first.root_mean_squared_error) == (
        pytest.approx(1 - 4 / 5),
        0.5,
        1.0,
    )
    assert (second.r2, second.mean_absolute_error, second.root_mean_squared_error) == (
        pytest.approx(1 - 4e6 / 2e7),
        1000.0,
        1000.0,
    )
    assert first.error.tolist() == [0, 0, 0, 2]
    result = VALUES.result("m", "s", values(), ("stars", "length"))
    assert result.accuracy == pytest.approx((0.2 + 0.8) / 2)
    assert result.per_class == pytest.approx({"stars": 0.2, "length": 0.8})
    assert second.intervals["mean_absolute_error"] == (1000.0, 1000.0)
    assert VALUES.confidence(values(), "m") is None


def test_intervals_of_values_are_those_of_many_examples() -> None:
    """Of 2,000 errors of deviation 1 the mean's interval is 1.96 standard errors either way, and
    R² lies between those of most samples."""
    rng = np.random.default_rng(0)
    truth = rng.normal(size=(2000, 1)) * 3
    found = answers(truth + rng.normal(size=(2000, 1)), truth, "regression")
    (figures,) = value_figures(found, ("stars",))
    low, high = figures.intervals["mean_absolute_error"]
    error = np.abs(figures.error)
    reach = 1.96 * error.std() / math.sqrt(2000)
    assert low == pytest.approx(error.mean() - reach, abs=0.2 * reach)
    assert high == pytest.approx(error.mean() + reach, abs=0.2 * reach)
    # What is left, 1 - R², is a quotient of two sums of 2,000 squares: it is off by the root of 4 /
    # 2000 of itself.
    reach = 1.96 * (1 - figures.r2) * math.sqrt(4 / 2000)
    ends = (figures.r2 - reach, figures.r2 + reach)
    assert figures.intervals["r2"] == pytest.approx(ends, abs=0.2 * reach)
    assert figures.intervals["r2"] == pytest.approx(value_intervals(found)["r2"])
    flat = answers([[1.0], [2.0]], [[5.0], [5.0]], "regression")
    assert "r2" not in value_figures(flat, ("stars",))[0].intervals
    assert value_intervals(flat) == {}


def test_values_of_two_models() -> None:
    one = values()
    step = np.asarray([[1, 0], [0, 0], [0, 0], [0, 0]])
    other = answers(one.logits + step, one.labels, "regression")
    first, second = value_agreement(one, other, ("stars", "length"))
    assert (first.name, first.distance) == ("stars", 0.25)
    expected = np.corrcoef(one.logits[:, 0], other.logits[:, 0])[0, 1]
    assert first.correlation == pytest.approx(expected)
    assert (second.distance, second.correlation) == (0.0, pytest.approx(1.0))
    assert correlation(np.ones(3), np.arange(3.0)) is None
    assert agreement(one, other, "other", same_tokens=True).labels is None
    # One deviation of 0..3 is the root of 5 / 4; the mean over both targets.
    assert VALUES.differs(one, other) == pytest.approx([1 / math.sqrt(1.25) / 2, 0, 0, 0])
    near = answers(one.logits + 1e-4, one.labels, "regression")
    assert not VALUES.differs(one, near).any()


def test_examples_over_the_range_of_values() -> None:
    rng = np.random.default_rng(0)
    truth = rng.permutation(200).astype(np.float64)[:, None]
    error = rng.normal(size=(200, 1))
    found = answers(truth + error, truth, "regression")
    other = answers(truth, truth, "regression")
    pair = [Compared("file", "student", same_tokens=True, deployed=True)]
    given = {"student": other, "file": found}
    wrong, fragile, different, sample = choose(given, primary="file", compared=pair, count=40)
    assert wrong.title == "Largest errors"
    assert list(wrong.indices) == np.argsort(-np.abs(error[:, 0]))[:10].tolist()
    assert list(fragile.indices) == [i for i in range(200) if i not in wrong.indices][:10]
    assert len(different.indices) == 10  # those that are left with the largest distance
    # One of each twenty, the lowest first.
    assert (truth[list(sample.indices), 0] // 20).tolist() == list(range(10))


def test_reasons_are_those_of_the_kind() -> None:
    several_labels = {"a": several(), "b": several()}
    assert LABELS.fault(several_labels, "a", 0) == "all models have a label wrong"
    assert LABELS.fault(several_labels, "a", 3) == ""
    assert LABELS.dispute(several_labels, 0) == ""
    far = values()
    step = np.asarray([[0, 0], [0, 9000], [0, 0], [0, 0]])
    moved = answers(far.logits + step, far.labels, "regression")
    assert VALUES.dispute({"a": far, "b": moved}, 1) == "values 2 deviations apart"
    assert VALUES.dispute({"a": far, "b": moved}, 0) == ""
    many = answers(np.arange(50.0)[:, None], np.zeros((50, 1)), "regression")
    assert VALUES.fault({"m": many}, "m", 49) == "error among the largest 2.0%"
    assert VALUES.fault({"m": many}, "m", 40) == ""


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (0.0, "0"),
        (-0.0, "0"),
        (-3.14159, "-3.142"),
        (0.012346, "0.01235"),
        (1234.6, "1,235"),
        (1234567.0, "1,234,567"),
        (2.5e-12, "2.500e-12"),
        (math.nan, "not a number"),
    ],
)
def test_numbers_can_be_read(value: float, words: str) -> None:
    assert number(value) == words


def test_whole_sentences_are_marked_whole() -> None:
    found = [
        Segment("It", "both"),
        Segment(" ", "none"),
        Segment("is", "both"),
        Segment(" ", "none"),
        Segment("dull", "only"),
        Segment(" but ", "none"),
        Segment("short", "only"),
    ]
    assert [(one.text, one.state) for one in joined(found)] == [
        ("It is", "both"),
        (" ", "none"),
        ("dull", "only"),
        (" but ", "none"),
        ("short", "only"),
    ]


def test_charts_of_values_say_what_they_show() -> None:
    words = {"x_label": "x", "y_label": "y", "description": "d <b>"}
    dots = dot_chart("t", [0.0, 10.0], [0.0, 10.0], **words)
    path = dots[dots.index('class="dots" d="') + 16 :]
    first, second = path[: path.index('"')].removeprefix("M").split("M")
    assert (first, second) == ("62.2 247.4h.01", "331.8 36.6h.01")
    assert "d &lt;b&gt;" in dots
    bars = bar_chart("t", [-1.0, 0.0, 1.0], [3, 1], **words)
    heights = [float(part.split('"')[0]) for part in bars.split('height="')[1:]]
    assert heights[0] == pytest.approx(3 * heights[1], abs=0.2)
    # A score below 0 stays on the figure.
    points = [FrontPoint("a", -0.5, 1.0, True, True), FrontPoint("b", -0.6, 2.0, False, True)]
    front = front_chart("t", points, "d", score="R²", percent=False)
    assert "R²" in front
    assert "%" not in front
    assert all(0 <= float(part.split('"')[0]) <= 280 for part in front.split('cy="')[1:])
