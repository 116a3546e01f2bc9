"""Comparison of answers, against values worked out by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from rekd_edge.check import differences, summarise
from rekd_edge.check.compare import LOWEST_SCORE
from rekd_edge.types import Outputs


def _outputs(**changed: np.ndarray) -> Outputs:
    values = {
        "logits": np.array([[1.0, 2.0], [4.0, -1.0]], dtype=np.float32),
        "rationale_mask": np.array([[False, True, True, False], [False, True, False, False]]),
        "selection_score": np.array(
            [[LOWEST_SCORE, 3.0, 2.0, 1.0], [LOWEST_SCORE, 5.0, 4.0, 4.5]], dtype=np.float32
        ),
        "selection_margin": np.array([1.0, 0.5], dtype=np.float32),
    }
    return Outputs(**{**values, **changed})


def test_equal_answers_differ_in_nothing() -> None:
    result = summarise([differences(_outputs(), _outputs())], near_tie_margin=1e-4)
    assert result.examples == 2
    assert result.max_logit_error == result.max_score_error == result.max_margin_error == 0
    assert result.label_agreement == result.rationale_exact == result.rationale_jaccard == 1


def test_logit_errors_are_absolute_and_scaled_by_the_reference() -> None:
    other = _outputs(logits=np.array([[1.5, 2.0], [4.0, -1.25]], dtype=np.float32))
    result = summarise([differences(_outputs(), other)], near_tie_margin=1e-4)
    assert result.max_logit_error == 0.5
    assert result.mean_logit_error == pytest.approx((0.5 + 0.25) / 2)
    assert result.max_scaled_logit_error == pytest.approx(0.5 / 2.0)


def test_jaccard_and_exactness_of_masks() -> None:
    mask = np.array([[False, True, False, True], [False, True, False, False]])
    result = summarise([differences(_outputs(), _outputs(rationale_mask=mask))], near_tie_margin=0)
    assert result.rationale_exact == 0.5
    assert result.rationale_jaccard == pytest.approx((1 / 3 + 1) / 2)
    assert result.unexplained_flips == 1


def test_another_rationale_is_explained_only_by_a_near_tie() -> None:
    mask = np.array([[False, True, False, True], [False, True, False, False]])
    reference = _outputs(selection_margin=np.array([1e-6, 0.5], dtype=np.float32))
    result = summarise(
        [differences(reference, _outputs(rationale_mask=mask))], near_tie_margin=1e-4
    )
    assert result.near_ties == 1
    assert result.unexplained_flips == 0


def test_logits_are_not_compared_where_the_evidence_differs() -> None:
    mask = np.array([[False, True, False, True], [False, True, False, False]])
    logits = np.array([[9.0, 2.0], [4.0, -1.0]], dtype=np.float32)
    other = _outputs(rationale_mask=mask, logits=logits)
    result = summarise([differences(_outputs(), other)], near_tie_margin=1e-4)
    assert result.max_logit_error == 0
    assert result.label_agreement == 0.5


def test_without_any_equal_rationale_the_logit_error_is_infinite() -> None:
    mask = ~_outputs().rationale_mask
    result = summarise([differences(_outputs(), _outputs(rationale_mask=mask))], near_tie_margin=9)
    assert result.max_logit_error == math.inf


@pytest.mark.parametrize("name", ["logits", "selection_score", "selection_margin"])
def test_not_a_number_counts_as_infinite(name: str) -> None:
    broken = np.array(getattr(_outputs(), name))
    broken.flat[1] = np.nan
    result = summarise([differences(_outputs(), _outputs(**{name: broken}))], near_tie_margin=0)
    errors = (result.max_logit_error, result.max_score_error, result.max_margin_error)
    assert math.inf in errors


def test_infinite_margins_equal_each_other_only() -> None:
    endless = _outputs(selection_margin=np.array([np.inf, 0.5], dtype=np.float32))
    assert summarise([differences(endless, endless)], near_tie_margin=0).max_margin_error == 0
    crossed = summarise([differences(endless, _outputs())], near_tie_margin=0)
    assert crossed.max_margin_error == math.inf


def test_a_score_for_a_position_that_cannot_be_selected_is_an_error() -> None:
    score = np.array(_outputs().selection_score)
    score[0, 0] = 0.0
    result = summarise(
        [differences(_outputs(), _outputs(selection_score=score))], near_tie_margin=0
    )
    assert result.max_score_error == math.inf


def test_other_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match="logits has shape"):
        differences(_outputs(), _outputs(logits=np.zeros((2, 3), dtype=np.float32)))
    with pytest.raises(ValueError, match="nothing was compared"):
        summarise([], near_tie_margin=0)


def test_scales_are_never_below_one() -> None:
    small = _outputs(logits=np.array([[0.01, 0.02], [0.0, 0.0]], dtype=np.float32))
    other = _outputs(logits=np.array([[0.01, 0.02], [0.0, 0.5]], dtype=np.float32))
    result = summarise([differences(small, other)], near_tie_margin=0)
    assert result.max_scaled_logit_error == result.max_logit_error == 0.5


def test_a_near_tie_is_measured_against_the_size_of_the_scores() -> None:
    mask = np.array([[False, True, False, True], [False, True, False, False]])
    margin = np.array([2e-4, 0.5], dtype=np.float32)
    small = _outputs(selection_margin=margin)
    grown = np.array(small.selection_score)
    grown[:, 1:] *= 10
    large = _outputs(selection_margin=margin, selection_score=grown)
    for reference, flips in ((small, 1), (large, 0)):
        other = Outputs(reference.logits, mask, reference.selection_score, margin)
        result = summarise([differences(reference, other)], near_tie_margin=5e-5)
        assert result.unexplained_flips == flips
