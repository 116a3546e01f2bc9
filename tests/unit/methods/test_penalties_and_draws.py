"""The terms of the methods against values computed by hand, with plain floats."""

from __future__ import annotations

import math

import pytest
import torch

from rekd_edge import losses
from rekd_edge.selection import hard_kuma, hard_kuma_kept_chance, scored_draw

KEEP = torch.tensor([[1.0, 1.0, 0.0, 1.0], [0.0, 1.0, 1.0, 1.0]])
VALID = torch.tensor([[True, True, True, True], [True, True, False, False]])


def softplus(value: float) -> float:
    return math.log1p(math.exp(value))


def test_the_share_penalty_is_of_the_batch_and_of_each() -> None:
    # 3 + 1 of 4 + 2 valid tokens are kept
    assert float(losses.share_penalty(KEEP, VALID, 0.5)) == pytest.approx(4 / 6 - 0.5)
    assert float(losses.share_penalty(KEEP, VALID, 0.9)) == pytest.approx(0.9 - 4 / 6)
    each = losses.share_penalty_of_each(KEEP, VALID, 0.5)
    assert each.tolist() == pytest.approx([0.25, 0.0])


def test_coherence_counts_changes_between_valid_neighbours() -> None:
    # changes: 0, 1, 1 of 3 pairs, and 1 of 1 pair
    assert losses.coherence_of_each(KEEP, VALID).tolist() == pytest.approx([2 / 3, 1.0])
    assert float(losses.contiguity(KEEP, VALID)) == pytest.approx(3 / 4)
    board = torch.tensor([[1.0, 0.0, 1.0, 1.0]])  # 2 x 2: rows (1, 0), (1, 1)
    everywhere = torch.ones(1, 4, dtype=torch.bool)
    # down: 0, 1; across: 1, 0
    assert losses.coherence_of_each(board, everywhere, (2, 2)).tolist() == [0.5]


def test_expected_transitions_by_hand() -> None:
    chance = torch.tensor([[0.9, 0.2, 0.5], [0.3, 0.6, 0.0]])
    valid = torch.tensor([[True, True, True], [True, True, False]])
    first = (0.9 * 0.8 + 0.1 * 0.2 + 0.2 * 0.5 + 0.8 * 0.5) / 2
    second = 0.3 * 0.4 + 0.7 * 0.6
    found = float(losses.expected_transitions(chance, valid))
    assert found == pytest.approx((first + second) / 2)


def test_norm_utilisation_by_hand() -> None:
    representation = torch.tensor([[3.0, 4.0], [0.6, 0.8]])
    assert float(losses.norm_utilisation(representation)) == pytest.approx(
        -(math.log(5 + 1e-6) + math.log(1 + 1e-6)) / 2
    )


def test_jensen_shannon_by_hand_symmetric_and_bounded() -> None:
    first, second = torch.tensor([[0.9, 0.1]]), torch.tensor([[0.3, 0.7]])
    middle = (0.6, 0.4)
    kl = [
        sum(p * math.log(p / m) for p, m in zip(row, middle, strict=True))
        for row in ((0.9, 0.1), (0.3, 0.7))
    ]
    found = losses.jensen_shannon(first.log(), second.log())
    assert float(found) == pytest.approx(sum(kl) / 2, rel=1e-5)
    assert float(losses.jensen_shannon(second.log(), first.log())) == pytest.approx(float(found))
    far = torch.tensor([[60.0, -60.0]])
    assert float(losses.jensen_shannon(far, -far)) == pytest.approx(math.log(2))


def test_doubt_stops_at_chance() -> None:
    probability = torch.tensor([[0.2, 0.7, 0.1], [0.98, 0.01, 0.01]])
    wrong = torch.tensor([1, 2])  # fooled by the first; the second is below chance already
    found = losses.doubt(probability.log(), wrong)
    assert float(found) == pytest.approx(-(-math.log(0.7) + math.log(3)) / 2, rel=1e-5)
    logits = probability.log().requires_grad_()
    losses.doubt(logits, wrong).backward()
    assert logits.grad is not None
    assert logits.grad[0, 1] > 0  # a step down takes probability from the wrong label
    assert not logits.grad[1].any()


@pytest.mark.parametrize("score", [-3.0, 0.0, 2.5])
def test_hard_kuma_has_the_published_distribution(score: float) -> None:
    first, second = softplus(score), softplus(-score)
    zero = 1 - (1 - (0.1 / 1.2) ** first) ** second
    below_one = 1 - (1 - (1.1 / 1.2) ** first) ** second
    scores = torch.full((200_000,), score)
    assert float(hard_kuma_kept_chance(scores[:1])) == pytest.approx(1 - zero, abs=1e-5)
    torch.manual_seed(0)
    drawn = hard_kuma(scores)
    assert drawn.min() >= 0
    assert drawn.max() <= 1
    assert float((drawn == 0).float().mean()) == pytest.approx(zero, abs=0.005)
    assert float((drawn == 1).float().mean()) == pytest.approx(1 - below_one, abs=0.005)


def test_a_higher_score_is_kept_more_often_and_extremes_have_gradients() -> None:
    scores = torch.linspace(-60, 60, 241)
    chance = hard_kuma_kept_chance(scores)
    assert (chance.diff() >= 0).all()
    assert (hard_kuma_kept_chance(torch.linspace(-5, 5, 41)).diff() > 0).all()
    scores.requires_grad_()
    torch.manual_seed(0)
    (hard_kuma(scores).sum() + hard_kuma_kept_chance(scores).sum()).backward()
    assert scores.grad is not None
    assert scores.grad.isfinite().all()
    assert scores.grad[100:140].any()


def test_a_scored_draw_knows_its_log_probability() -> None:
    score = torch.tensor([[0.4, -1.0, 3.0], [2.0, 0.0, 9.0]], requires_grad=True)
    selectable = torch.tensor([[True, True, True], [True, True, False]])
    torch.manual_seed(1)
    keep, log_chance = scored_draw(score, selectable)
    assert not keep.requires_grad
    assert keep[1, 2] == 0
    for row in range(2):
        expected = 0.0
        for place in range(3):
            if selectable[row, place]:
                p = 1 / (1 + math.exp(-float(score[row, place].detach())))
                expected += math.log(p if keep[row, place] else 1 - p)
        assert float(log_chance[row].detach()) == pytest.approx(expected, rel=1e-5)
    log_chance.sum().backward()
    assert score.grad is not None
    chance = torch.sigmoid(score.detach())
    torch.testing.assert_close(score.grad, (keep - chance) * selectable)
