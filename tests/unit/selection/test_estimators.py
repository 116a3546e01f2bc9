"""Each surrogate's gradient against a value found in another way."""

from __future__ import annotations

import math
from typing import Literal

import pytest
import torch
from torch import Tensor

from rekd_edge.selection import (
    gumbel_noise,
    keep_top_k,
    select_top_k,
    soft_selection,
    straight_through_top_k,
)

SCORE = torch.tensor([[0.8, -0.3, 0.1, 1.9, 9.0]])
SELECTABLE = torch.tensor([[True, True, True, True, False]])
BUDGET = torch.tensor([2])
VALUE = torch.tensor([[2.0, -1.0, 0.5, 3.0, 100.0]])
"""What keeping each token is worth; the last one is padding."""


def gradient(
    estimator: Literal["soft_top_k", "subset_softmax", "perturbed"], **settings: float
) -> Tensor:
    """d sum(value * soft) / d score of the case above."""
    score = SCORE.clone().requires_grad_(True)
    samples = int(settings.pop("samples", 64))
    soft = soft_selection(estimator, score, SELECTABLE, BUDGET, samples=samples, **settings)
    (found,) = torch.autograd.grad((soft * VALUE).sum(), score)
    return found[0]


def test_the_default_is_bit_identical_to_the_threshold_centred_sigmoid_with_its_noise() -> None:
    score = torch.randn(4, 9, generator=torch.Generator().manual_seed(0)).requires_grad_(True)
    selectable = torch.ones(4, 9, dtype=torch.bool)
    budget = torch.tensor([1, 2, 3, 9])
    torch.manual_seed(7)
    tried = score + 1.5 * (gumbel_noise(score) - gumbel_noise(score))
    expected, _ = straight_through_top_k(tried, selectable, budget, temperature=0.5)
    torch.manual_seed(7)
    weight, _ = select_top_k("sigmoid", score, selectable, budget, temperature=0.5, noise_scale=1.5)
    assert torch.equal(weight, expected)
    upstream = torch.randn(4, 9)
    ours, theirs = (torch.autograd.grad(w, score, upstream)[0] for w in (weight, expected))
    assert torch.equal(ours, theirs)


@pytest.mark.parametrize("estimator", ["soft_top_k", "subset_softmax"])
@pytest.mark.parametrize("temperature", [0.3, 2.0])
def test_relaxations_have_the_gradient_of_their_own_forward(
    estimator: Literal["soft_top_k", "subset_softmax"], temperature: float
) -> None:
    def objective(score: Tensor) -> Tensor:
        soft = soft_selection(estimator, score, SELECTABLE, BUDGET, temperature=temperature)
        return (soft * VALUE.double()).sum()

    step = 1e-5
    found = gradient(estimator, temperature=temperature)
    for token in range(5):
        shift = torch.zeros(1, 5, dtype=torch.float64)
        shift[0, token] = step
        double = SCORE.double()
        numeric = (objective(double + shift) - objective(double - shift)) / (2 * step)
        assert float(found[token]) == pytest.approx(float(numeric), abs=1e-5)
    assert found[4] == 0


def test_gradients_of_an_exact_sum_are_centred() -> None:
    """More of every score changes nothing, so the gradient of soft_top_k sums to zero."""
    assert float(gradient("soft_top_k", temperature=0.7).sum()) == pytest.approx(0.0, abs=1e-6)


def test_perturbed_gradient_is_the_closed_form_for_one_of_two() -> None:
    """P(keep 0) = Phi((s0 - s1) / (sigma * sqrt 2)); its derivative is a Gaussian density."""
    torch.manual_seed(0)
    deviation, gap = 0.8, 0.6
    score = torch.tensor([[gap, 0.0]], requires_grad=True)
    selectable = torch.ones(1, 2, dtype=torch.bool)
    soft = soft_selection(
        "perturbed",
        score,
        selectable,
        torch.tensor([1]),
        temperature=deviation,
        samples=200_000,
    )
    spread = deviation * math.sqrt(2)
    probability = 0.5 * (1 + math.erf(gap / spread / math.sqrt(2)))
    density = math.exp(-((gap / spread) ** 2) / 2) / math.sqrt(2 * math.pi) / spread
    assert float(soft.detach()[0, 0]) == pytest.approx(probability, abs=0.005)
    (found,) = torch.autograd.grad(soft[0, 0], score)
    assert found[0].tolist() == pytest.approx([density, -density], abs=0.01)


def test_perturbed_gradient_points_along_finite_differences_of_the_smoothed_objective() -> None:
    deviation = 0.6
    noise = deviation * torch.randn(400_000, 5, generator=torch.Generator().manual_seed(1))
    count = len(noise)
    wide = SELECTABLE.expand(count, -1)

    def smoothed(score: Tensor) -> float:
        keep = keep_top_k(score + noise, wide, BUDGET.expand(count))
        return float((keep.float() * VALUE).sum(dim=1).mean())

    step, numeric = 0.15, torch.zeros(5)
    for token in range(4):
        shift = torch.zeros(1, 5)
        shift[0, token] = step
        numeric[token] = (smoothed(SCORE + shift) - smoothed(SCORE - shift)) / (2 * step)
    torch.manual_seed(0)
    found = gradient("perturbed", temperature=deviation, samples=200_000)
    assert float(torch.cosine_similarity(found, numeric, dim=0)) > 0.999
    assert found.tolist() == pytest.approx(numeric.tolist(), abs=0.03)
    # With the few draws of a training step the direction is right on average.
    few = torch.stack(
        [gradient("perturbed", temperature=deviation, samples=16) for _ in range(500)]
    )
    assert few.mean(dim=0).tolist() == pytest.approx(numeric.tolist(), abs=0.15)


def test_soft_top_k_of_everything_keeps_everything_without_gradient() -> None:
    score = torch.tensor([[3.0, -2.0]], requires_grad=True)
    everything = torch.ones(1, 2, dtype=torch.bool)
    soft = soft_selection("soft_top_k", score, everything, torch.tensor([2]), temperature=1.0)
    assert soft.tolist() == [[1.0, 1.0]]
    (found,) = torch.autograd.grad(soft.sum(), score)
    assert found.tolist() == [[0.0, 0.0]]


def test_gumbel_noise_samples_without_replacement() -> None:
    """The first of Gumbel-top-k is a draw from softmax(score) (Xie & Ermon 2019)."""
    torch.manual_seed(0)
    score = torch.tensor([1.0, 0.0, -1.0]).expand(40_000, 3)
    one = torch.ones(40_000, dtype=torch.int64)
    _, keep = select_top_k(
        "subset_softmax", score, torch.ones_like(score, dtype=torch.bool), one,
        temperature=1.0, noise_scale=1.0,
    )  # fmt: skip
    expected = torch.softmax(score[0], dim=0).tolist()
    assert keep.float().mean(dim=0).tolist() == pytest.approx(expected, abs=0.01)


def test_one_sample_gives_no_gradient_and_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 2 samples"):
        soft_selection("perturbed", SCORE, SELECTABLE, BUDGET, temperature=1.0, samples=1)
