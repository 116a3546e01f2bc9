"""Every loss against values computed by hand, with plain floats."""

from __future__ import annotations

import math

import pytest
import torch

from rekd_edge import losses


def sigmoid(value: float) -> float:
    return 1 / (1 + math.exp(-value))


def bernoulli_kl(p: float, q: float) -> float:
    return p * math.log(p / q) + (1 - p) * math.log((1 - p) / (1 - q))


def test_budget_penalty_is_on_the_batch_mean() -> None:
    keep = torch.tensor([[1.0, 1.0, 1.0, 0.0], [1.0, 0.0, 0.0, 0.0]])
    valid = torch.tensor([[True, True, True, True], [True, True, False, False]])
    # mean count (3 + 1) / 2 = 2; target 0.5 * (4 + 2) / 2 = 1.5
    assert float(losses.budget_penalty(keep, valid, 0.5)) == pytest.approx(0.25)


def test_budget_penalty_of_a_padded_batch_has_one_target() -> None:
    keep = torch.zeros(2, 256)
    keep[0, :40] = 1
    keep[1, 200:220] = 1  # among the padding
    everywhere = torch.ones(2, 256, dtype=torch.bool)
    # mean count 30; target .1 * 256
    assert float(losses.budget_penalty(keep, everywhere, 0.1)) == pytest.approx((30 - 25.6) ** 2)


def test_rationale_kl_summed_sums_positions_and_divides_by_batch() -> None:
    teacher = torch.tensor([[[0.3, 0.7], [0.5, 0.5]], [[0.2, 0.8], [0.9, 0.1]]])
    student = torch.tensor([[[0.6, 0.4], [0.5, 0.5]], [[0.2, 0.8], [0.4, 0.6]]])
    valid = torch.tensor([[True, True], [True, False]])
    expected = bernoulli_kl(0.7, 0.4) / 2  # the other valid positions agree
    value = losses.rationale_kl_summed(teacher.log(), student.log(), valid)
    assert float(value) == pytest.approx(expected, rel=1e-5)


def test_rationale_kl_by_hand_and_zero_for_equal_margins() -> None:
    teacher = torch.tensor([[1.0, -2.0, 7.0]])
    student = torch.tensor([[0.5, 1.0, -7.0]])
    valid = torch.tensor([[True, True, False]])
    expected = (
        bernoulli_kl(sigmoid(0.5), sigmoid(0.25)) + bernoulli_kl(sigmoid(-1.0), sigmoid(0.5))
    ) / 2
    value = losses.rationale_kl(teacher, student, valid, temperature=2.0)
    assert float(value) == pytest.approx(expected, rel=1e-5)
    assert float(losses.rationale_kl(teacher, teacher, valid, temperature=2.0)) == 0.0


def test_rationale_kl_stays_finite_for_extreme_margins() -> None:
    teacher = torch.tensor([[200.0, -200.0]])
    value = losses.rationale_kl(teacher, -teacher, torch.ones(1, 2).bool(), temperature=1.0)
    assert float(value) == pytest.approx(200.0)


def test_prediction_kl_is_forward_and_batch_mean_without_temperature_factor() -> None:
    teacher = torch.tensor([[2.0, 0.0], [0.0, 0.0]])
    student = torch.tensor([[0.0, 1.0], [0.0, 0.0]])
    expected = bernoulli_kl(sigmoid(1.0), sigmoid(-0.5)) / 2
    value = losses.prediction_kl(teacher, student, temperature=2.0)
    assert float(value) == pytest.approx(expected, rel=1e-5)


def test_attribution_cross_entropy_ignores_invalid_tokens() -> None:
    score = torch.tensor([[1.0, 0.0, 50.0]])
    attribution = torch.tensor([[0.0, math.log(3.0), 50.0]])
    valid = torch.tensor([[True, True, False]])
    # target (1/4, 3/4); softmax of scores (e / (1 + e), 1 / (1 + e))
    log_first = 1.0 - math.log(1 + math.e)
    expected = -(0.25 * log_first + 0.75 * -math.log(1 + math.e))
    value = losses.attribution_cross_entropy(score, attribution, valid, temperature=1.0)
    assert float(value) == pytest.approx(expected, rel=1e-5)


def test_contiguity_is_the_mean_change_between_neighbours_along_the_text() -> None:
    probability = torch.tensor([[1.0, 0.0, 0.5, 9.0], [0.25, 0.25, 1.0, 0.0]])
    valid = torch.tensor([[True, True, True, False], [True, True, True, True]])
    # |1 - 0| + |0 - .5| in the first text, 0 + .75 + 1 in the second: five pairs.
    assert float(losses.contiguity(probability, valid)) == pytest.approx(3.25 / 5)


def test_contiguity_of_patches_goes_over_the_edges_of_the_grid() -> None:
    board = torch.tensor([[1.0, 0.0, 0.0], [1.0, 1.0, 0.0]]).reshape(1, 6)
    valid = torch.ones(1, 6, dtype=torch.bool)
    # Between columns: 1 and 0 in the first row, 0 and 1 in the second; between rows: 0, 1, 0.
    assert float(losses.contiguity(board, valid, (2, 3))) == pytest.approx(3 / 7)
    assert float(losses.contiguity(board, valid)) == pytest.approx(3 / 5)
    assert float(losses.contiguity(torch.ones(2, 1), torch.ones(2, 1, dtype=torch.bool))) == 0.0
