"""Figures, choices and comparisons behind the page."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from sklearn.metrics import confusion_matrix

from rekd_edge.calibrate.spec import AbstentionSpec, Calibration
from rekd_edge.report.charts import Series, line_chart
from rekd_edge.report.content import Box, Span
from rekd_edge.report.examples import Compared, choose, compare_boxes, segments
from rekd_edge.report.statistics import (
    Answers,
    agreement,
    confidence,
    confusion,
    wilson_interval,
)


def answers(seed: int, count: int = 60, classes: int = 3) -> Answers:
    rng = np.random.default_rng(seed)
    return Answers(
        logits=rng.normal(size=(count, classes)) * 3,
        labels=np.random.default_rng(0).integers(0, classes, count),
        margin=rng.exponential(size=count),
        kept=tuple(np.sort(rng.choice(12, 3, replace=False)) for _ in range(count)),
        candidates=np.full(count, 12),
    )


def test_confusion_is_scikit_learns() -> None:
    found = answers(1)
    assert (confusion(found, 3) == confusion_matrix(found.labels, found.predicted)).all()


@pytest.mark.parametrize(
    ("share", "count", "low", "high"),
    [(0.5, 10, 0.2366, 0.7634), (0.0, 20, 0.0, 0.1611), (1.0, 20, 0.8389, 1.0)],
)
def test_wilson(share: float, count: int, low: float, high: float) -> None:
    """Values of R's `prop.test(correct = FALSE)`."""
    assert wilson_interval(share, count) == pytest.approx((low, high), abs=1e-4)


def test_agreement_of_a_model_with_itself_and_with_another() -> None:
    one, other = answers(1), answers(2)
    same = agreement(one, one, "one", same_tokens=True)
    assert (same.labels, same.rationale_exact, same.rationale_jaccard) == (1.0, 1.0, 1.0)
    found = agreement(one, other, "other", same_tokens=True)
    exact = np.mean([list(a) == list(b) for a, b in zip(one.kept, other.kept, strict=True)])
    assert found.rationale_exact == exact < 1
    assert agreement(one, other, "other", same_tokens=False).rationale_exact is None


def test_risk_and_calibration() -> None:
    """The risk of all answers is the error; a perfectly sure and right model has none."""
    found = answers(1)
    seen = confidence(found, "m")
    assert seen.points[-1] == (1.0, pytest.approx(1 - found.accuracy))
    order = np.argsort(-found.probabilities.max(axis=1))
    assert seen.points[0] == (1 / 60, float(not found.right[order[0]]))
    assert seen.risk_at(0.5) == pytest.approx(1 - found.right[order[:30]].mean())
    assert (len(seen.bins), sum(b.count for b in seen.bins)) == (15, 60)
    labels = found.labels
    sure = Answers(np.eye(3)[labels] * 50, labels, found.margin, found.kept, found.candidates)
    assert confidence(sure, "m").calibration_error == pytest.approx(0, abs=1e-9)
    assert {risk for _, risk in confidence(sure, "m").points} == {0.0}


def test_probabilities_and_refusals_are_those_of_the_calibration() -> None:
    plain = answers(1)
    assert plain.refusals is None
    own = plain.probabilities.max(axis=1)
    told = Calibration(
        temperature=2.0,
        confidence_threshold=0.6,
        margin_threshold=0.3,
        asked=AbstentionSpec(coverage=0.5),
        examples=100,
    )
    found = replace(plain, calibration=told)
    powers = np.exp(plain.logits / 2)
    assert found.probabilities == pytest.approx(powers / powers.sum(axis=1, keepdims=True))
    refused = found.refusals
    assert refused is not None
    assert (refused.confidence == (found.probabilities.max(axis=1) < 0.6)).all()
    assert (refused.margin == (plain.margin < 0.3)).all()
    assert 0 < refused.answered.sum() < 60
    assert confidence(found, "m").calibration_error != confidence(plain, "m").calibration_error
    assert (found.probabilities.max(axis=1) <= own + 1e-12).all()


def test_examples_are_what_their_group_says() -> None:
    student, file = answers(1), answers(2)
    pair = Compared("file", "student", same_tokens=True, deployed=True)
    chosen = choose({"student": student, "file": file}, primary="file", compared=[pair], count=20)
    assert [one.key for one in chosen] == ["wrong", "fragile", "different", "sample"]
    every = [index for one in chosen for index in one.indices]
    assert len(every) == len(set(every)) == 20
    wrong, fragile, different, sample = (one.indices for one in chosen)
    probability = file.probabilities.max(axis=1)
    assert not file.right[list(wrong)].any()
    assert (np.diff(probability[list(wrong)]) <= 0).all()
    left = np.setdiff1d(np.arange(60), wrong)
    assert set(fragile) == set(left[np.argsort(file.margin[left])][:5])
    assert all(
        file.predicted[i] != student.predicted[i] or list(file.kept[i]) != list(student.kept[i])
        for i in different
    )
    assert len({int(file.labels[i]) for i in sample[:3]}) == 3
    again = choose({"student": student, "file": file}, primary="file", compared=[pair], count=20)
    assert again == chosen


def test_more_examples_than_there_are() -> None:
    file = answers(2, count=7)
    chosen = choose({"file": file}, primary="file", compared=[], count=100)
    assert sorted(i for one in chosen for i in one.indices) == list(range(7))
    assert choose({"file": file}, primary="file", compared=[], count=0) == ()


def test_segments_of_two_rationales() -> None:
    text = "a dull and lifeless film"
    found = segments(text, [Span(2, 6), Span(11, 15)], [Span(2, 6), Span(15, 19)])
    assert [(s.text, s.state) for s in found] == [
        ("a ", "none"),
        ("dull", "both"),
        (" and ", "none"),
        ("life", "only"),
        ("less", "missing"),
        (" film", "none"),
    ]
    assert "".join(s.text for s in found) == text
    assert [s.state for s in segments(text, [Span(0, 24)], None)] == ["kept"]
    assert segments("", [], None) == ()


def test_boxes_of_two_grids() -> None:
    """A quarter of a 2 x 2 grid holds four patches of a 4 x 4 grid."""
    coarse = [Box(0, 0, 0.5, 0.5)]
    fine = [Box(x / 4, y / 4, 0.25, 0.25) for x, y in ((0, 0), (1, 1), (3, 3))]
    assert [state for _, state in compare_boxes(fine, coarse)] == ["both", "both", "only"]
    assert [state for _, state in compare_boxes(coarse, fine)] == ["both", "missing"]
    assert [state for _, state in compare_boxes(fine, None)] == ["kept"] * 3


def test_a_chart_keeps_its_points_inside() -> None:
    steps = list(range(0, 100_000, 10))
    losses = [1000.0 - step / 200 for step in steps]
    chart = line_chart("t", [Series("s", steps, losses)], x_label="x", y_label="y", description="d")
    assert len(chart) < 8_000
    path = chart[chart.index('class="line s0" d="M') :]
    pairs = path[path.index("M") + 1 : path.index('"/>')].split("L")
    places = [tuple(map(float, pair.split())) for pair in pairs]
    assert all(0 <= x <= 360 and 0 <= y <= 230 for x, y in places)
    assert places[0][1] < places[-1][1]
    constant = line_chart(
        "t", [Series("s", [5.0], [0.0])], x_label="x", y_label="y", description="d"
    )
    assert "nan" not in constant
